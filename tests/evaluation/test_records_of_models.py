"""Whatever can be sampled can be put on record: wrapped models, models in models, functions, any dtype and layout."""

import json

import pytest
import torch

from sde_toolkit import (
    MLP,
    VPSDE,
    CosineVPSDE,
    FlowMatching,
    ScoreModel,
    clip_x0,
    ddim,
    dynamic_threshold,
    reschedule,
)
from sde_toolkit.calibration.calibration_files import model_digest
from sde_toolkit.evaluation import compare_solvers
from sde_toolkit.jobs.fingerprints import behaviour, digest, model_fingerprint
from sde_toolkit.jobs.provenance import provenance_of

INNER = {
    "module": lambda: MLP(event_shape=(2,), width=8, depth=1),
    "function": lambda: lambda x, time: -x,
    "model in a model": lambda: ScoreModel(MLP(event_shape=(2,), width=8, depth=1), VPSDE(), event_shape=(2,)).output,
    "compiled": lambda: torch.compile(MLP(event_shape=(2,), width=8, depth=1), backend="eager"),
    "bfloat16": lambda: MLP(event_shape=(2,), width=8, depth=1).bfloat16(),
    "with notes": lambda: WithNotes(),
}
WRAPPERS = {
    "bare": lambda model: model,
    "clipped": clip_x0,
    "dynamic": dynamic_threshold,
    "rescheduled": lambda model: reschedule(model, FlowMatching()),
    "all": lambda model: clip_x0(reschedule(dynamic_threshold(model), VPSDE(0.1, 19.0))),
    "nested": lambda model: ScoreModel(model, VPSDE(), "v", event_shape=(2,)),
}


class WithNotes(torch.nn.Module):
    """Its state has something that is no tensor, and a sparse one."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.eye(2).to_sparse())

    def get_extra_state(self):
        return {"step": 1}

    def set_extra_state(self, state):
        pass

    def forward(self, x, time):
        return -x


def built(inner, wrapper):
    torch.manual_seed(0)
    return WRAPPERS[wrapper](ScoreModel(INNER[inner](), VPSDE(), event_shape=(2,))).eval()


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("inner", INNER)
def test_every_model_has_a_record(inner, wrapper):
    model = built(inner, wrapper)
    record = provenance_of(model, "own", None, seed=0)
    assert json.loads(json.dumps(record)) == record
    fingerprint = model_fingerprint(model)
    assert digest(fingerprint) == digest(json.loads(json.dumps(fingerprint)))
    assert model_digest(model) == model_digest(built(inner, wrapper))
    assert fingerprint == model_fingerprint(built(inner, wrapper))


def test_the_record_tells_wrappers_and_their_settings_apart():
    model = built("module", "bare")
    wrapped = [model, *(wrap(model) for name, wrap in WRAPPERS.items() if name != "bare"), clip_x0(model, -2, 2)]
    wrapped += [dynamic_threshold(model, 0.9), reschedule(model, CosineVPSDE()), clip_x0(clip_x0(model))]
    prints = [digest(model_fingerprint(each)) for each in wrapped]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("wrapper", [name for name in WRAPPERS if name not in ("bare", "nested")])
def test_a_function_inside_wrappers_is_known_by_what_it_answers(wrapper):
    one, other = (
        WRAPPERS[wrapper](ScoreModel(f, VPSDE(), event_shape=(2,))) for f in (lambda x, t: x, lambda x, t: -x)
    )
    assert behaviour(one, (2,))
    assert behaviour(one, (2,)) != behaviour(other, (2,))


def test_a_compiled_network_has_the_digests_of_the_network_inside():
    network = MLP(event_shape=(2,), width=8, depth=1)
    one, other = (ScoreModel(n, VPSDE(), event_shape=(2,)) for n in (network, torch.compile(network, backend="eager")))
    assert model_fingerprint(one) == model_fingerprint(other)
    assert model_digest(one) == model_digest(other)


@pytest.mark.parametrize("wrapper", ["clipped", "all"])
def test_a_wrapped_model_is_compared_and_put_on_record(wrapper):
    model = built("module", wrapper)
    compared = compare_solvers(model, {"ddim": ddim()}, [3], n=8)
    assert compared is not None
    assert provenance_of(model, "own", None, seed=0)["model"]["description"] == model.description()
