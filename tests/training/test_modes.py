"""Nothing is left in another mode than it was found in, however training ends."""

import dataclasses

import pytest
import torch
from test_saving import SHORT

from sde_toolkit import VPSDE, DenoisingScoreMatching, ScoreModel
from sde_toolkit.data import checkerboard
from sde_toolkit.errors import NonFiniteError
from sde_toolkit.training import train

OPTIONS = dataclasses.replace(SHORT, steps=4, evaluate_every=2, held_out=8, log_every=1, patience=2)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.norm = torch.nn.Linear(2, 8), torch.nn.BatchNorm1d(8)
        self.drop, self.leave = torch.nn.Dropout(0.5), torch.nn.Linear(8, 2)
        self.seen = []

    def forward(self, x, time):
        self.seen.append((self.training, self.norm.training, self.drop.training))
        return self.leave(self.drop(self.norm(self.enter(x))))


@dataclasses.dataclass(frozen=True)
class Watch:
    every: int = 2

    def __call__(self, scene):
        assert not any(module.training for module in scene.model.modules())


def no_finite_loss(*arguments):
    return DenoisingScoreMatching("edm")(*arguments) * float("nan")


@pytest.mark.parametrize("ends", ["whole", "fails", "goes on"])
@pytest.mark.parametrize("found", ["training", "evaluation", "mixed"])
def test_every_module_is_left_as_it_was_found(tmp_path, found, ends):
    """Steps in training mode, looks in evaluation mode, the average in evaluation mode."""
    network = Net()
    model = ScoreModel(network, VPSDE(), "edm", event_shape=(2,)).train(found == "training")
    network.drop.train(found == "mixed")
    modes = [module.training for module in model.modules()]
    loss = DenoisingScoreMatching("edm")
    if ends == "fails":
        with pytest.raises(NonFiniteError):
            train(model, checkerboard(n=50), tmp_path, OPTIONS, loss=no_finite_loss, watchers=[Watch()])
    else:
        stop = 2 if ends == "goes on" else None
        train(model, checkerboard(n=50), tmp_path, OPTIONS, loss=loss, watchers=[Watch()], until=stop)
        average = train(model, checkerboard(n=50), tmp_path, OPTIONS, loss=loss, watchers=[Watch()])
        assert average is not model
        assert not any(module.training for module in average.modules())
    assert [module.training for module in model.modules()] == modes
    assert set(network.seen) <= {(True,) * 3, (False,) * 3}
    assert (True,) * 3 in network.seen
