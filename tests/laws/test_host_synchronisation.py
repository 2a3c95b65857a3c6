"""The loop does not wait for the device, and gives it no more to do than its formulas ask for.

What it reads on the host does not grow with the steps, but for the flags of finiteness.
"""

from contextlib import nullcontext

import pytest
import torch
from catalogue import FIXED_STEP, FIXED_STEP_WITH_ETA, SOLVERS, RandomNetwork, model_of, name
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sde_toolkit import VPSDE, ReverseEquation, Solver, grids, sample
from sde_toolkit.sampling import monitors

READS = {"item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero", "__repr__"}


class CountReads(TorchFunctionMode):
    """Counts the calls after which the host knows a number of the device's."""

    def __init__(self):
        super().__init__()
        self.reads = 0

    def __torch_function__(self, function, types, arguments=(), named=None):
        self.reads += getattr(function, "__name__", "") in READS
        return function(*arguments, **(named or {}))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("integrator", FIXED_STEP, ids=name)
def test_host_reads_do_not_grow_with_the_steps(integrator, eta):
    if eta > 0 and integrator.weak_order is None:
        eta = 0.0
    if eta == 0 and integrator.order is None:
        eta = 1.0
    model, solver = model_of(RandomNetwork(), VPSDE()), Solver("", eta, integrator)

    def reads(steps, **options):
        generator = torch.Generator().manual_seed(0)
        with CountReads() as counted:
            grid = grids.uniform(VPSDE(), steps)
            sample(model, solver, grid, shape=(4, 2), generator=generator, dtype=torch.float64, **options)
        return counted.reads

    few, many = 32, 320
    reads(few)  # what is looked up once in a process is known afterwards
    assert reads(many, check_finite=False) == reads(few, check_finite=False)
    assert reads(many) - reads(few) == (many - few) / 16


def network(x, time):
    return torch.tanh(x) * (1 + time[:, None])


@pytest.mark.parametrize(("integrator", "eta"), FIXED_STEP_WITH_ETA, ids=name)
def test_no_step_asks_the_device_for_a_number(integrator, eta):
    """On torch's device without numbers every question is an error, also one that is asked in C++."""
    model, grid = model_of(network, VPSDE()), grids.uniform(VPSDE(), 6)
    run = {"shape": (4, 2), "device": "meta", "dtype": torch.float64, "check_finite": False}
    assert sample(model, Solver("", eta, integrator), grid, **run).x.shape == (4, 2)


class Work(TorchDispatchMode):
    """Counts what a device is given to do: kernels, and those of them that write a whole state. Views are nothing."""

    VIEWS = (
        "alias",
        "detach",
        "expand",
        "lift_fresh",
        "permute",
        "select",
        "slice",
        "split",
        "unbind",
        "unsqueeze",
        "view",
    )

    def __init__(self, state):
        super().__init__()
        self.state, self.kernels, self.passes = state, 0, 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        found = function(*arguments, **(named or {}))
        if function.__name__.partition(".")[0] not in self.VIEWS:
            self.kernels += 1
            self.passes += isinstance(found, torch.Tensor) and found.shape == self.state
        return found


FIXED = [solver for solver in SOLVERS if solver.integrator.evals_per_step is not None]


@pytest.mark.parametrize("prediction", ["x0", "v"])
@pytest.mark.parametrize("solver", FIXED, ids=name)
def test_a_step_passes_over_the_state_once_for_each_coefficient_and_draw(solver, prediction):
    """A sum of k products takes k passes: a product, and k − 1 products that are added to it.

    The network of this law makes none. What is left is small: the size of a Langevin step, which depends on norms.
    """
    model, state = model_of(lambda x, time: x, VPSDE(), prediction), (5, 7)
    found = []
    sample(model, solver, grids.uniform(VPSDE(), 4, end=0.1), shape=state)  # what is computed once is known afterwards
    for steps in (4, 12):
        grid, generator = grids.uniform(VPSDE(), steps, end=0.1), torch.Generator().manual_seed(0)
        run = {"shape": state, "generator": generator, "dtype": torch.float64, "check_finite": False}
        with Work(state) as whole:
            sample(model, solver, grid, **run)
        equation = ReverseEquation(model, solver.eta)
        with Work(state) as before:
            table = solver.integrator.prepare(equation, grid)
        draws = drawn(generator, state)
        told = (solver.integrator.evals_per_step or 0) * len(equation.inputs(grid[:1]))
        found.append((whole.kernels - before.kernels, whole.passes - before.passes, draws, steps))
    (kernels, passes, draws, steps), (more_kernels, more_passes, more_draws, more_steps) = found
    each = more_steps - steps
    wanted = (table.layout.width - told) * each + more_draws - draws
    assert more_passes - passes <= wanted
    if not hasattr(solver.integrator, "corrector"):
        assert more_kernels - kernels == more_passes - passes


def drawn(generator, state):
    """How many draws a generator has made."""
    state_now, fresh, count = generator.get_state(), torch.Generator().manual_seed(0), 0
    while not torch.equal(fresh.get_state(), state_now):
        torch.randn(state, generator=fresh, dtype=torch.float64)
        count += 1
    return count


def test_the_check_of_finiteness_is_one_sum_a_step_where_noise_is_drawn_and_one_in_sixteen_elsewhere():
    model, state = model_of(lambda x, time: x, VPSDE()), (5, 7)
    for solver, each in ((FIXED[0], 1 / 16), (next(solver for solver in FIXED if solver.eta > 0), 1)):
        kernels = {}
        sample(model, solver, grids.uniform(VPSDE(), 4), shape=state)
        for steps in (32, 160):
            for check in (False, True):
                grid, generator = grids.uniform(VPSDE(), steps), torch.Generator().manual_seed(0)
                with Work(state) as work:
                    sample(model, solver, grid, shape=state, generator=generator, check_finite=check)
                kernels[steps, check] = work.kernels
        added = [kernels[steps, True] - kernels[steps, False] for steps in (32, 160)]
        assert added[1] - added[0] <= 128 * (each + 2 / 16)  # a sum and a read of it, every sixteenth step


def test_the_networks_time_on_a_device_is_that_of_all_evaluations(monkeypatch):
    """Few of them are measured: events cost the host as much as kernels. Here each evaluation takes 2 ms."""

    class Event:
        made = 0

        def __init__(self, enable_timing):
            Event.made += 1

        def record(self):
            pass

        def elapsed_time(self, end):
            return 2.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(monitors, "refuse_random_numbers", lambda device, network: nullcontext())
    model, x, inputs = model_of(network, VPSDE()), torch.ones(2, 3), (torch.tensor(0.5),)
    for evaluations in (1, 4, 5, 20, 21, 100):
        Event.made, meter = 0, monitors.Meter(model, torch.device("cuda"))
        for _ in range(evaluations):
            meter.evaluate(x, inputs, None)
        assert meter.seconds() == pytest.approx(2e-3 * evaluations)
        assert Event.made <= 2 * (4 + evaluations / 16 + 1)
