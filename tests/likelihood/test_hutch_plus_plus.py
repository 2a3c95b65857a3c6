"""Hutch++ has one answer: on every device, in either precision, and where the Jacobian has fewer directions than its
sketch.
"""

import pytest
import torch
from densities import F64, model_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sde_toolkit import VPSDE, ScoreModel, log_likelihood, sample
from sde_toolkit.likelihood import ExactTrace, Hutchinson, HutchPlusPlus, jacobian, reverse

D, SKETCH = 64, HutchPlusPlus(rank=8, probes=4)
SPECTRA = {
    "rank 2": torch.tensor([3.0, 1.0] + [0.0] * (D - 2)),
    "rank 2 and a little": torch.tensor([3.0, 1.0] + [1e-4] * (D - 2)),
    "fast": 0.1 ** torch.arange(D),
    "zero": torch.zeros(D),
}


class Tilted(nn.Module):
    """A network whose Jacobian is not symmetric."""

    def __init__(self, dimension):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.A, self.B = (torch.randn(dimension, dimension, generator=generator).double() for _ in range(2))

    def forward(self, x, time):
        return torch.tanh(x @ self.A / 4 + time[:, None]) @ self.B / 4


@pytest.mark.parametrize("divergence", [ExactTrace(), Hutchinson(3), HutchPlusPlus(2, 3)], ids=str)
def test_log_p_does_not_depend_on_which_way_is_faster(monkeypatch, divergence):
    """A machine's speed decides how products are taken; it must not decide the answer."""
    model, x = model_of(Tilted(10), VPSDE(), "v"), torch.ones(2, 10).double()
    told = log_likelihood(model, x, divergence=type(divergence)(**{**vars(divergence), "mode": reverse}), nfe=8, **F64)
    seconds = iter([1.0, 4.0, 2.0])  # of the network, reverse, forward
    monkeypatch.setattr(jacobian, "_seconds", lambda work, x: next(seconds))
    found = log_likelihood(model, x, divergence=divergence, nfe=8, **F64)
    torch.testing.assert_close(found.replicates, told.replicates, rtol=1e-10, atol=1e-10)


def field_of(spectrum):
    """x to A tanh(x), with the singular values of A as given."""
    generator = torch.Generator().manual_seed(5)
    U, V = (torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64)).Q for _ in range(2))
    A = (U * spectrum.double()) @ V.T
    return lambda x: torch.tanh(x) @ A.to(x.dtype).T


def traces(field, x):
    directions = SKETCH.directions(tuple(x.shape), 0, 0).to(x.dtype)
    return SKETCH.traces(reverse(field, x)[1], x, directions).double()


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
def test_more_directions_than_the_jacobian_has_change_nothing_but_rounding(spectrum):
    """The columns of the sketch depend on each other, and what is left of some of them is rounding."""
    field, generator = field_of(spectrum), torch.Generator().manual_seed(1)
    x, off = (torch.randn(20, D, generator=generator, dtype=torch.float64) for _ in range(2))
    found = traces(field, x)
    for other in (traces(field, x.float()), traces(field, x + 1e-7 * off)):
        assert (found - other).abs().max() <= 1e-5 * spectrum.max()


@pytest.mark.filterwarnings("ignore:at the data end")
def test_log_p_of_a_trained_network_is_that_of_float64():
    model = ScoreModel.from_pretrained("digits").double()
    x = sample(model, "auto", nfe=6, shape=(2, *model.event_shape), dtype=torch.float64).x
    how = {"space": "model", "divergence": HutchPlusPlus(8, 2), "nfe": 8, "detail": 0.2}
    fine = log_likelihood(model, x, **how, **F64)
    coarse = log_likelihood(model.float(), x.float(), **how)
    assert (coarse.replicates - fine.replicates).abs().max() < 1e-3


class InFloat32(TorchDispatchMode):
    """Notes operations on matrices in float32, which a device may do in TF32."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        name = function.__name__.partition(".")[0]
        if any(isinstance(a, torch.Tensor) and a.dtype == torch.float32 for a in arguments):
            self.seen |= {name} & {"mm", "bmm", "addmm", "baddbmm", "linalg_qr", "matmul"}
        return function(*arguments, **(named or {}))


def test_what_the_sketch_caught_is_taken_out_without_tf32_and_no_product_is_wasted():
    x, taken = torch.randn(3, D), []

    def products(v, last=False):
        taken.append(len(v))
        return torch.linspace(0, 1, D) * v

    with InFloat32() as noted:
        SKETCH.traces(products, x, SKETCH.directions(tuple(x.shape), 0, 0))
    assert not noted.seen
    assert sum(taken) == SKETCH.products(D)
