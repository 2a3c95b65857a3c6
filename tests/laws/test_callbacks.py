"""A callback may put another state in the place of the solver's: the run goes on as one that starts there."""

import pytest
import torch
from catalogue import SOLVERS, RandomNetwork, model_of, name

from sde_toolkit import VPSDE, BrownianPath, ddim, ddpm, dpmpp_3m, encode, grids, probability_flow, sample
from sde_toolkit.errors import ArgumentError, NonFiniteError
from sde_toolkit.integrators import PerSample

pytestmark = pytest.mark.on_device

SDE = VPSDE()
GRID = grids.uniform(SDE, 7, start=0.98, end=0.1)
MODEL = model_of(RandomNetwork(), SDE)
AT = 3  # the step after which the state is edited


def edit(x):
    return 0.5 * x.flip(1) + 0.25


def editing(step):
    return edit(step.x) if step.index == AT else None


@pytest.mark.parametrize("solver", [s for s in SOLVERS if not hasattr(s.integrator, "S_churn")], ids=name)
def test_an_edited_run_is_two_runs(solver):
    """The noise of the steps comes from one path, so that both halves meet that of the whole."""
    run = {"dtype": torch.float64, "trajectory": True, "path": BrownianPath() if solver.eta > 0 else None}
    try:
        edited = sample(MODEL, solver, GRID, shape=(5, 2), callback=editing, batch_size=2, tweedie=True, **run)
    except ArgumentError as error:
        if error.argument != "path":
            raise
        pytest.skip("it takes no path, and its second half alone would draw other noise")
    first = sample(MODEL, solver, GRID[: AT + 2], shape=(5, 2), **run)
    second = sample(MODEL, solver, GRID[AT + 1 :], x_start=edit(first.x), tweedie=True, **run)
    torch.testing.assert_close(edited.x, second.x, rtol=1e-9, atol=1e-9)
    both = torch.cat([first.trajectory[:-1], second.trajectory])
    torch.testing.assert_close(edited.trajectory, both, rtol=1e-9, atol=1e-9)
    if edited.statistics is not None:
        for field in ("accepted", "evaluations"):
            one, other = (getattr(half.statistics, field) for half in (first, second))
            assert torch.equal(getattr(edited.statistics, field), one + other)


def test_an_edited_encoding_is_two_encodings():
    x = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2)
    for solver in (ddim(), dpmpp_3m(), probability_flow(PerSample())):
        edited = encode(MODEL, solver, GRID, x, callback=editing)
        middle = len(GRID) - 2 - AT
        first = encode(MODEL, solver, GRID[middle:], x)
        second = encode(MODEL, solver, GRID[: middle + 1], edit(first.x))
        torch.testing.assert_close(edited.x, second.x, rtol=1e-9, atol=1e-9)


@pytest.mark.on_card("the mock device compiles nothing")
@pytest.mark.parametrize("solver", [ddim(), ddpm(), dpmpp_3m()], ids=name)
def test_compiled_steps_see_the_edit(solver):
    ends = [
        sample(MODEL, solver, GRID, shape=(5, 2), dtype=torch.float64, callback=editing, compile=how).x
        for how in (False, "aot_eager")
    ]
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)


def test_the_last_step_can_be_edited_and_none_leaves_everything_as_it_is():
    def run(callback=None):
        return sample(MODEL, ddim(), GRID, shape=(4, 2), dtype=torch.float64, callback=callback).x

    plain = run()
    for nothing in (lambda step: None, lambda step: step.x):
        assert torch.equal(run(nothing), plain)
    assert torch.equal(run(lambda step: edit(step.x) if step.index == len(GRID) - 2 else None), edit(plain))


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda x: True, "returned a bool"),
        (lambda x: [x], "returned a list"),
        (lambda x: x[:1], r"shape \(1, 2\)"),
        (lambda x: x.float(), "float32"),
        (lambda x: x.to("meta"), "meta"),
        (lambda x: x.mul_(2), "in place"),
        (lambda x: [x.zero_(), None][1], "in place"),
    ],
)
@pytest.mark.parametrize("compile", [False, "aot_eager"])
def test_what_is_no_state_is_refused(returned, said, compile):
    with pytest.raises(ArgumentError, match=rf"callback.*{said}"):
        sample(MODEL, ddim(), GRID, shape=(4, 2), dtype=torch.float64,
               callback=lambda step: returned(step.x), compile=compile)  # fmt: skip


@pytest.mark.parametrize("solver", [ddim(), ddpm()], ids=name)
@pytest.mark.parametrize("at", [0, 3, 6])
def test_an_edit_that_is_not_finite_is_named_with_its_step(solver, at):
    def spoil(step):
        return step.x / 0 if step.index == at else None

    with pytest.raises(NonFiniteError) as caught:
        sample(MODEL, solver, GRID, shape=(4, 2), dtype=torch.float64, callback=spoil)
    assert caught.value.step == at
