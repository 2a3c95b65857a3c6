"""A calibration never loses: on fresh noise, for any SDE, solver and method; and what it says is what it does."""

import itertools
import json
import math

import pytest
import torch
from quickly import calibrate

import sde_toolkit
from sde_toolkit import (
    VESDE,
    VPSDE,
    FlowMatching,
    GaussianMixture,
    ReverseEquation,
    Solver,
    SubVPSDE,
    ddim,
    gaussian,
    grids,
    integrators,
    probability_flow,
    sample,
)
from sde_toolkit.calibration import load_calibration
from sde_toolkit.calibration.calibration_files import build_solver
from sde_toolkit.calibration.descent import Descent
from sde_toolkit.calibration.distributions import Likeness
from sde_toolkit.calibration.gradient import Descending, differentiable, optimise
from sde_toolkit.calibration.increments import grid_of, increments_of
from sde_toolkit.calibration.judging import Selection
from sde_toolkit.calibration.knots import best_knots, gram_matrix, local_errors
from sde_toolkit.calibration.problem import Problem, balanced
from sde_toolkit.calibration.reference import fine_grid, solve_finely
from sde_toolkit.calibration.starts import Contender
from sde_toolkit.errors import ArgumentError, CheckpointError, GridError
from sde_toolkit.integrators import Corrected, Exponential, FrozenEDM, FrozenNoise, FrozenX0, Heun, Multistep
from sde_toolkit.integrators.tuned import Tuned
from sde_toolkit.noise.streams import Purpose, per_sample_noise

FLOAT = torch.float64
METHODS = ["gradient", "search"]


def mixture(sde):
    means = torch.tensor([[1.2, 0.0], [-0.7, 0.9], [0.0, -1.1]], dtype=FLOAT)
    return GaussianMixture(means, sde, std=0.3)


def flow(integrator, eta=0.0, name="solver"):
    return Solver(name, eta, integrator)


def start_noise(n, seed=5, size=2):
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed), dtype=FLOAT)


def endpoints(model, x):
    """Where the flow takes x: an independent method, in t alone, fine."""
    grid = grids.check_grid(torch.linspace(1.0, 0.0, 501, dtype=FLOAT).square()[:-1])
    return sample(model, ddim_of_order(4), grid, x_start=x, tweedie=True, dtype=FLOAT).x


def ddim_of_order(p):
    return flow(Multistep(p, FrozenX0(), integrators.Angle()))


def error(model, solver, grid, tweedie, x, truth):
    drawn = sample(model, solver, grid, x_start=x, tweedie=tweedie, dtype=FLOAT)
    return (drawn.x - truth).square().mean().sqrt().item(), drawn.nfe


def quick(model, solver, nfe, **options):
    """From one grid, unless another one is given."""
    one = solver[0] if isinstance(solver, list) else solver
    steps = (nfe - 1) // one.integrator.evals_per_step
    options.setdefault("grid", fine_grid(model.sde, steps, end=0.02))
    return calibrate(
        model, solver, nfe, **{"n": 128, "effort": 0.1, "reference_steps": 60, "time_limit": 1e4, **options}
    )


# A calibration wins, on noise that it has not seen


@pytest.mark.parametrize(
    ("sde", "solver", "method"),
    [
        (VPSDE(), flow(Multistep(2, FrozenEDM(1.0))), "gradient"),
        (VESDE(), flow(Corrected(Multistep(2))), "gradient"),
        (FlowMatching(), flow(Multistep(2, FrozenX0())), "search"),
        (SubVPSDE(), ddim(), "search"),
        (VPSDE(), probability_flow(Heun()), "gradient"),
    ],
    ids=["vp-edm", "ve-unipc", "flow-x0", "subvp-ddim", "vp-heun"],
)
def test_it_beats_its_start_on_fresh_noise(sde, solver, method):
    model = mixture(sde)
    steps = 6 // solver.integrator.evals_per_step
    given = fine_grid(sde, steps, end=sde.inverse_half_log_snr(torch.tensor(3.0, dtype=FLOAT)).item(), in_time=0.5)
    nfe = steps * solver.integrator.evals_per_step + 1
    found = quick(model, solver, nfe, strategy=method, grid=given)
    x = start_noise(512) * sde.sigma(1.0)
    truth = endpoints(model, x)
    before, _ = error(model, solver, given, True, x, truth)
    after, spent = error(model, found.solver, found.grid, found.tweedie, x, truth)
    assert spent == found.nfe <= nfe
    assert found.improved
    assert after < 0.9 * before
    assert found.record["method"] == method
    check_what_is_promised(model, solver, given, found)


def check_what_is_promised(model, solver, given, found):
    """Both errors are those of the fresh noises, which nothing was fitted to."""
    n, own = found.record["n"], found.record["reference"]["own_error"]["value"]
    noise = per_sample_noise(0, n["first_fresh"], (n["fresh"], 2), dtype=FLOAT, purpose=Purpose.CALIBRATION)
    x = noise() * model.sde.sigma(1.0)
    truth = endpoints(model, x)
    for stated, how in (
        (found.before, (solver, given, True)),
        (found.after, (found.solver, found.grid, found.tweedie)),
    ):
        drawn = sample(model, how[0], how[1], x_start=x, tweedie=how[2], dtype=FLOAT).x
        squares = (drawn - truth).square().mean(1)
        value = squares.mean().sqrt().item()
        assert stated.value == pytest.approx(value, abs=2 * own)
        spread = squares.std().item() / math.sqrt(n["fresh"]) / (2 * value)
        assert stated.error == pytest.approx(spread, rel=0.01, abs=2 * own)


@pytest.mark.parametrize("method", METHODS)
def test_where_one_step_is_exact_nothing_is_lost(method):
    """Data N(0, s²): the step that freezes EDM's F at σ_d = s is exact on any grid."""
    model = gaussian(torch.zeros(2), VPSDE(), std=0.5)
    found = quick(model, flow(Multistep(2, FrozenEDM(0.5))), 4, strategy=method)
    x = start_noise(64) * model.sde.sigma(1.0)
    alpha, sigma = model.sde.alpha(1.0), model.sde.sigma(1.0)
    truth = x * 0.5 / (0.25 * alpha**2 + sigma**2).sqrt()
    start = found.record["start"]["times"]
    before, _ = error(model, flow(Multistep(2, FrozenEDM(0.5))), torch.tensor(start), True, x, truth)
    after, _ = error(model, found.solver, found.grid, found.tweedie, x, truth)
    assert after <= before + 1e-9


def test_it_chooses_among_solvers():
    """Of a good and a hopeless one it takes the good one, whichever comes first."""
    model = gaussian(torch.zeros(2), VPSDE(), std=0.3)
    good, bad = flow(Multistep(2, FrozenEDM(0.3)), name="good"), flow(integrators.Euler(), name="bad")
    for order in ([good, bad], [bad, good]):
        found = quick(model, order, 4, n=32, effort=0.02, strategy="search", weights=False)
        assert found.solver.name == "good"


def test_the_seed_repeats_it_and_global_randomness_is_left_alone():
    model = mixture(VPSDE())
    torch.manual_seed(1)
    expected = torch.randn(3)
    torch.manual_seed(1)
    a, b = (quick(model, ddim(), 4, strategy="search") for _ in range(2))
    assert torch.equal(torch.randn(3), expected)
    assert torch.equal(a.grid, b.grid)
    assert a.solver == b.solver


def test_gradients_stay_out_of_the_network():
    torch.manual_seed(0)
    network = sde_toolkit.MLP((2,), width=8)
    model = sde_toolkit.ScoreModel(network, VPSDE(), "v", event_shape=(2,))
    found = calibrate(model, ddim(), 4, strategy="gradient", n=16, effort=0.02, reference_steps=20)
    assert found.grid.dtype == FLOAT
    assert all(p.grad is None for p in model.parameters())


def small_network(dtype):
    torch.manual_seed(0)
    return sde_toolkit.MLP((2,), width=8).to(dtype).eval()


@pytest.mark.parametrize(
    ("dtype", "state"), [(torch.float32, torch.float32), (FLOAT, FLOAT), (torch.bfloat16, torch.float32)], ids=str
)
def test_a_network_is_asked_in_its_own_dtype_as_a_module_and_as_a_function(dtype, state):
    """And both give one calibration."""
    network, asked = small_network(dtype), set()
    network.register_forward_pre_hook(lambda module, inputs: asked.add(inputs[0].dtype))
    found = []
    for given in (network, lambda x, t: network(x, t)):
        model = sde_toolkit.ScoreModel(given, VPSDE(), "v", event_shape=(2,))
        found.append(calibrate(model, ddim(), 3, strategy="search", n=8, effort=0.02, reference_steps=10))
    assert asked == {dtype}
    assert {c.record["dtype"] for c in found} == {str(state)}
    assert found[0].before == found[1].before
    assert torch.equal(found[0].grid, found[1].grid)


@pytest.mark.parametrize("dtype", [torch.float32, FLOAT], ids=str)
@pytest.mark.parametrize("kind", ["module", "function", "lambda", "object"])
def test_a_network_of_any_kind_is_calibrated_in_the_dtype_that_it_takes(kind, dtype):
    """Tensors that a function holds are in no list of parameters. All kinds of one network give one calibration."""
    weights, found = 0.1 * torch.eye(2, dtype=dtype), []

    class Product:
        matrix = weights

        def __call__(self, x, t):
            return x @ self.matrix

    def product(x, t):
        return x @ weights

    layer = torch.nn.Linear(2, 2, bias=False, dtype=dtype)
    layer.weight.data.copy_(weights)
    module = sde_toolkit.ScoreModel(OfTime(layer).eval(), VPSDE(), "v", event_shape=(2,))
    given = {"module": None, "function": product, "lambda": lambda x, t: x @ weights, "object": Product()}[kind]
    other = module if given is None else sde_toolkit.ScoreModel(given, VPSDE(), "v", event_shape=(2,))
    for model in (module, other):
        found.append(calibrate(model, ddim(), 3, strategy="search", n=8, effort=0.02, reference_steps=10))
        assert found[-1].sample(model, shape=(2, 2), x_start=None, dtype=dtype).x.isfinite().all()
    assert [c.record["dtype"] for c in found] == [str(dtype)] * 2
    assert found[0].before.value == pytest.approx(found[1].before.value, rel=1e-4)


class OfTime(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, t):
        return self.layer(x)


def test_a_network_that_fails_in_every_dtype_says_why():
    model = sde_toolkit.ScoreModel(lambda x, t: x @ torch.eye(3), VPSDE(), "v", event_shape=(2,))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        calibrate(model, ddim(), 3, n=8)


def test_a_function_without_parameters_is_asked_as_sample_asks_it():
    weights = torch.eye(2)
    model = sde_toolkit.ScoreModel(lambda x, t: 0.1 * x @ weights, VPSDE(), "v", event_shape=(2,))
    how = {"strategy": "search", "n": 8, "effort": 0.02, "reference_steps": 10}
    assert calibrate(model, ddim(), 3, **how).record["dtype"] == "torch.float32"
    assert calibrate(mixture(VPSDE()), ddim(), 3, **how).record["dtype"] == "torch.float64"


# Falling back is honest


def test_what_cannot_improve_falls_back_and_says_so():
    """A model that answers 0 as noise: the flow is x/α, which every DDIM step solves exactly, on any grid."""
    model = sde_toolkit.ScoreModel(lambda x, t: 0 * x, VPSDE(), "epsilon", event_shape=(2,))
    found = calibrate(model, ddim(), 5, strategy="search", n=16, effort=0.1, reference_steps=20, weights=False)
    assert not found.improved
    assert found.after == found.before
    assert "this is that start" in found.reason
    assert found.grid.tolist() == found.record["start"]["times"]


def test_a_plan_that_overfits_is_caught_on_fresh_noise(monkeypatch):
    """Selection is fooled on purpose: what comes back is the start, with its own error."""
    model = mixture(VPSDE())
    bad = grids.uniform(model.sde, 4, end=0.9)
    monkeypatch.setattr(Selection, "best", lambda self, found, start, select: Contender(start.solver, bad, "bad"))
    found = quick(model, ddim(), 5, strategy="search", weights=False)
    assert not found.improved
    assert "did not beat" in found.reason
    assert not torch.equal(found.grid, bad)
    assert found.after == found.before


# Files


@pytest.mark.parametrize("solver", [flow(Corrected(Multistep(2, FrozenNoise()))), ddim(), probability_flow(Heun())])
def test_a_saved_calibration_draws_the_same_bits(tmp_path, solver):
    model = mixture(VPSDE())
    found = quick(model, solver, 5, strategy="search")
    found.save(tmp_path / "found.json")
    loaded = load_calibration(tmp_path / "found.json")
    assert torch.equal(loaded.grid, found.grid)
    assert loaded.solver == found.solver
    assert (loaded.before, loaded.after, loaded.reason) == (found.before, found.after, found.reason)
    for name in ("typical_before", "typical_after", "own_error"):
        assert getattr(loaded, name) == getattr(found, name)
        assert getattr(found, name).value >= 0
    first, second = (c.sample(model, shape=(9, 2), seed=3).x for c in (found, loaded))
    assert torch.equal(first, second)
    assert torch.equal(first, sample(model, found.solver, found.grid, tweedie=found.tweedie, shape=(9, 2), seed=3).x)


@pytest.fixture(scope="module")
def small():
    return quick(mixture(VPSDE()), ddim(), 4, strategy="search", n=32, effort=0.02, reference_steps=30)


def test_another_sde_is_refused_and_other_weights_are_told(small):
    with pytest.raises(ArgumentError, match="its SDE is not the one"):
        small.sample(mixture(SubVPSDE()), shape=(2, 2))
    with pytest.warns(UserWarning, match="other weights"):
        small.sample(gaussian(torch.zeros(2), VPSDE(), std=1.0), shape=(2, 2))


@pytest.mark.parametrize("name", ["os.system", "Solver", "Integrator", "__builtins__", "Path", "table", None])
def test_a_file_cannot_name_code(small, tmp_path, name):
    small.save(tmp_path / "c.json")
    content = json.loads((tmp_path / "c.json").read_text())
    for part in ({"class": name}, {"class": "Exponential", "noise": {"function": name}}):
        content["solver"]["integrator"] = part
        (tmp_path / "bad.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError):
            load_calibration(tmp_path / "bad.json")


def test_damaged_files_are_refused(small, tmp_path):
    small.save(tmp_path / "c.json")
    text = (tmp_path / "c.json").read_text()
    content = json.loads(text)
    broken = [
        text[:100],
        "[]",
        json.dumps({**content, "format": "x"}),
        json.dumps({**content, "grid": ["zz", "0x0p0"]}),
    ]
    broken += [json.dumps({k: v for k, v in content.items() if k != gone}) for gone in ("grid", "solver", "after")]
    for bad in broken:
        (tmp_path / "bad.json").write_text(bad)
        with pytest.raises(CheckpointError):
            load_calibration(tmp_path / "bad.json")
    with pytest.raises(CheckpointError, match="no such file"):
        load_calibration(tmp_path / "nowhere.json")


def test_files_without_typical_errors_are_read(small, tmp_path):
    """As they were written before errors were stated in two senses."""
    small.save(tmp_path / "c.json")
    content = json.loads((tmp_path / "c.json").read_text())
    for name in ("typical_before", "typical_after", "own_error"):
        assert set(content.pop(name)) == {"value", "error"}
    (tmp_path / "old.json").write_text(json.dumps(content))
    old = load_calibration(tmp_path / "old.json")
    assert (old.before, old.after) == (small.before, small.after)
    assert old.typical_before is old.typical_after is old.own_error is None
    assert str(small.after) in str(old)
    assert str(small.typical_after) in str(small)


def test_the_record_tells_how_to_repeat_it(small):
    assert {"sde", "model", "seed", "n", "reference", "method", "seconds", "versions", "start"} <= set(small.record)
    json.dumps(small.record)


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"nfe": 1}, ArgumentError, "nfe=1"),
        ({"nfe": 2, "solver": probability_flow(Heun())}, ArgumentError, "needs 3 evaluations"),
        ({"solver": flow(integrators.TorchDiffEq())}, ArgumentError, "chooses its own steps"),
        ({"solver": [ddim(), sde_toolkit.ddpm()]}, ArgumentError, "different η"),
        ({"solver": []}, ArgumentError, "there is none"),
        ({"solver": flow(Heun(), eta=1.0)}, ArgumentError, "integrates ODEs"),
        ({"solver": "ddim"}, ArgumentError, "not a Solver"),
        ({"n": 2}, ArgumentError, "n=2"),
        ({"strategy": "magic"}, ArgumentError, "strategy='magic'"),
        ({"time_limit": 0}, ArgumentError, "time_limit=0"),
        ({"event_shape": (3,)}, ArgumentError, "was made for"),
        ({"grid": torch.tensor([1.0, 0.5, 0.1])}, GridError, "2 steps"),
        ({"grid": torch.tensor([0.1, 0.5])}, GridError, "not decreasing"),
    ],
)
def test_mistakes_are_named_before_any_evaluation(arguments, error, said):
    def network(x, t):
        raise AssertionError("evaluated")

    model = sde_toolkit.ScoreModel(network, VPSDE(), "v", event_shape=(2,))
    with pytest.raises(error, match=said):
        calibrate(model, **{"nfe": 5, **arguments})


# The parts


def test_tuned_with_ones_is_the_method_inside():
    model = mixture(VPSDE())
    grid = grids.uniform_lambda(model.sde, 5)
    for inside in (Multistep(3, FrozenEDM(0.7)), Corrected(Multistep(2)), Exponential()):
        for eta in (0.0, 1.0):
            one = Tuned(inside, ((1.0,) * width_of(inside),) * 5)
            a, b = (sample(model, flow(i, eta), grid, shape=(5, 2), dtype=FLOAT, tweedie=True).x for i in (inside, one))
            assert torch.equal(a, b)


def width_of(integrator):
    """Coefficients of a step, counted in its formula."""
    if isinstance(integrator, Corrected):
        return 3 + integrator.predictor.order + integrator.predictor.order + 1  # A, B, carry, both polynomials
    return 2 + (integrator.order - 1)


def test_factors_multiply_what_they_should():
    """Exponential: x_s = f_A A x + f_B B y. A network of zeros sees f_A alone; the noise is not touched."""
    model = sde_toolkit.ScoreModel(lambda x, t: 0 * x, VPSDE(), "v", event_shape=(2,))
    grid = torch.tensor([1.0, 0.6, 0.3], dtype=FLOAT)
    x = start_noise(3)
    plain, tuned = (
        sample(model, flow(i), grid, x_start=x, dtype=FLOAT).x
        for i in (Exponential(), Tuned(Exponential(), ((2.0, 9.0), (0.5, 9.0))))
    )
    assert torch.allclose(plain, tuned, rtol=1e-14)
    silent = Tuned(Exponential(), ((0.0, 0.0), (0.0, 0.0)))
    alone = sample(model, flow(silent, 1.0), grid, x_start=x, dtype=FLOAT, seed=1).x
    whole = sample(model, flow(Exponential(), 1.0), grid, x_start=x, dtype=FLOAT, seed=1, trajectory=True)
    still = sample(model, flow(Exponential(), 1.0), grid[1:], x_start=0 * x, dtype=FLOAT, seed=1, trajectory=True).x
    moved = sample(model, flow(Exponential(), 1.0), grid[1:], x_start=whole.trajectory[1], dtype=FLOAT, seed=1).x
    assert torch.allclose(alone, whole.x - (moved - still), rtol=1e-10)


@pytest.mark.parametrize("factors", [(), ((1.0,),), ((1.0, math.nan),), (("1", 1.0),)])
def test_bad_factors_are_refused(factors):
    with pytest.raises(ArgumentError):
        Tuned(Exponential(), factors)


def test_factors_belong_to_their_number_of_steps():
    model = mixture(VPSDE())
    with pytest.raises(GridError, match="tuned for 2"):
        sample(model, flow(Tuned(Exponential(), ((1.0, 1.0),) * 2)), grids.uniform(model.sde, 3), shape=(1, 2))
    with pytest.raises(ArgumentError, match="tunable"):
        Tuned(Heun(), ((1.0,),))


def test_increments_are_the_grid():
    for end, times in itertools.product((0.0, 1e-3), ([1.0, 0.5, 0.2, 1.5e-3], [0.9, 1.1e-3])):
        grid = torch.tensor(times, dtype=FLOAT)
        assert torch.allclose(grid_of(increments_of(grid, end), times[0], end, len(times) - 1), grid, rtol=1e-12)
    whole = torch.tensor([1.0, 0.4, 0.0], dtype=FLOAT)
    assert torch.allclose(grid_of(increments_of(whole, 0.0), 1.0, 0.0, 2), whole, rtol=1e-12)
    wild = grid_of(torch.tensor([5.0, -30.0, 2.0, -40.0], dtype=FLOAT), 1.0, 0.0, 3)
    assert bool((wild.diff() < 0).all())


def test_dynamic_programming_finds_what_enumeration_finds():
    generator = torch.Generator().manual_seed(0)
    K = 7
    for steps in (1, 2, 3, 4):
        first, last = (torch.rand(K + 1, generator=generator, dtype=FLOAT) for _ in range(2))
        step = torch.rand(K + 1, K + 1, K + 1, generator=generator, dtype=FLOAT)
        ordered = torch.arange(K + 1)
        i, k, j = torch.meshgrid(ordered, ordered, ordered, indexing="ij")
        step[~((i < k) & (k < j))] = torch.inf
        first[0] = torch.inf

        def cost(chain, first=first, step=step, last=last):
            middle = sum(step[a, b, c].item() for a, b, c in zip(chain, chain[1:], chain[2:], strict=False))
            return first[chain[1]].item() + middle + last[chain[-1]].item()

        chains = [(0, *rest) for rest in itertools.combinations(range(1, K + 1), steps)]
        assert tuple(best_knots(first, step, last, steps)) == min(chains, key=cost)


def test_local_errors_are_those_of_the_steps_themselves():
    """Quadratic forms of a Gram matrix against steps that are really taken from the fine trajectory's states."""
    model = mixture(VPSDE())
    descent, outputs = Descent(model), []
    descent.listen = outputs.append
    times = fine_grid(model.sde, 12, end=1e-3)
    path = solve_finely(descent, start_noise(4), times, keep=True)
    descent.listen = None
    method = Multistep(2, FrozenEDM(0.6))
    equation = ReverseEquation(model, 0.0)
    found = local_errors(equation, method.frozen, times, gram_matrix(path.states, torch.stack(outputs), path.end))
    for i, k, j in [(0, 1, 2), (0, 3, 7), (2, 5, 12), (6, 7, 8)]:
        rows = method.prepare(equation, times[[i, k, j]])
        state = None
        for row, x in zip(rows, (path.states[i], path.states[k]), strict=True):
            x_s, state = method.step(equation, x, row, state, None)
        assert found.step[i, k, j].item() == pytest.approx((x_s - path.states[j]).square().mean().item(), rel=1e-6)
    x_s, _ = method.step(equation, path.states[0], method.prepare(equation, times[[0, 4]])[0], None, None)
    assert found.first[4].item() == pytest.approx((x_s - path.states[4]).square().mean().item(), rel=1e-6)
    denoised = model(path.states[9], times[9]).x_0
    assert found.last[9].item() == pytest.approx((denoised - path.end).square().mean().item(), rel=1e-6)


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE(), FlowMatching()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("inside", [Multistep(3, FrozenEDM(0.8)), Corrected(Multistep(2)), Heun()], ids=str)
def test_the_endpoint_has_the_gradient_that_differences_measure(sde, inside):
    model = mixture(sde)
    descent = Descent(model)
    grid = fine_grid(sde, 5, end=sde.inverse_half_log_snr(torch.tensor(2.5, dtype=FLOAT)).item())
    x = start_noise(3) * sde.sigma(1.0)

    def total(times):
        return descent.run(inside, times, x, None, tweedie=True)[0].sum()

    times = grid.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(total(times), times)
    for i in range(1, len(grid)):
        h = 1e-6 * grid[i].item()
        up, down = grid.clone(), grid.clone()
        up[i] += h
        down[i] -= h
        measured = ((total(up) - total(down)) / (2 * h)).item()
        assert gradient[i].item() == pytest.approx(measured, rel=1e-4, abs=1e-4 * gradient[1:].abs().max().item())


def test_a_wrong_gradient_is_noticed():
    """A network whose derivative is of the wrong sign: searched without gradients, and told so."""
    exact = mixture(VPSDE())

    def turned(x, t):
        y = exact.network(x, t)
        return 2 * y.detach() - y

    model = sde_toolkit.ScoreModel(turned, VPSDE(), "v", event_shape=(2,))
    plan = Contender(ddim(), grids.uniform(model.sde, 4, end=0.05), "")
    for seed in range(4):
        for given, right in ((model, False), (exact, True)):
            problem = Problem(given, 0.0, seed, (2,), FLOAT, torch.device("cpu"), fine_steps=60)
            assert differentiable(problem, problem.noise_set(32), plan) == right
    assert (
        "searched without them"
        in calibrate(model, ddim(), 4, strategy="gradient", n=32, effort=0.02, reference_steps=30).reason
    )


def test_noises_that_are_lost_do_not_drown_the_others():
    """In many dimensions some end in another mode, as far off as data are from each other: the others still improve."""
    means = torch.randn(10, 32, generator=torch.Generator().manual_seed(1), dtype=FLOAT)
    problem = Problem(GaussianMixture(means, VPSDE(), std=0.2), 0.0, 0, (32,), FLOAT, torch.device("cpu"))
    fit, fresh = problem.noise_set(512), problem.noise_set(512)
    plan = Contender(flow(Multistep(2, FrozenX0())), grids.uniform_lambda(VPSDE(), 7, end=0.02), "start")
    how = Descending(iterations=60, batch=256)
    found = optimise(problem, fit, plan, how, weights=False, deadline=math.inf)[-1]
    before, after = (problem.squares(p, fresh).sqrt() for p in (plan, found))
    assert before.max() > 1
    assert after.median() < 0.5 * before.median()


def test_the_objective_has_no_unit_and_lies_between_its_two_senses():
    squares = torch.logspace(-8, 2, 50, dtype=FLOAT).requires_grad_()
    of_mean, of_each = balanced(squares, 1.0), balanced(squares, 0.0)
    assert of_mean.exp().item() == pytest.approx(squares.mean().item())
    assert of_each.exp().item() == pytest.approx(1e-3, rel=1e-3)  # the geometric mean
    assert balanced(squares).item() == pytest.approx((of_mean + of_each).item() / 2)
    assert (balanced(7 * squares) - balanced(squares)).exp().item() == pytest.approx(7.0, rel=1e-4)
    slopes = torch.autograd.grad(of_each, squares)[0] * squares  # every noise counts as one
    torch.testing.assert_close(slopes[10:], torch.full((40,), 0.02, dtype=FLOAT), rtol=1e-4, atol=0)


# Stochastic solvers


@pytest.mark.parametrize("method", METHODS)
def test_a_stochastic_calibration_mends_the_variance(method):
    """N(0, s²) has one number to get right. Ancestral steps on a poor grid miss it; calibrated ones do not."""
    std = 0.3
    model = gaussian(torch.zeros(1), VPSDE(), std=std)
    given = grids.uniform(model.sde, 5, end=0.2)
    found = calibrate(
        model, flow(Exponential(), 1.0), 6, strategy=method, grid=given, n=1024, effort=0.15, reference_steps=60
    )

    def ratio(solver, grid):
        drawn = sample(model, solver, grid, shape=(20_000, 1), seed=77, tweedie=True, dtype=FLOAT)
        return drawn.x.var().item() / std**2

    before, after = abs(ratio(flow(Exponential(), 1.0), given) - 1), abs(ratio(found.solver, found.grid) - 1)
    assert before > 0.15
    assert after < 0.5 * before


def test_details_are_seen_beside_the_noise_of_the_whole():
    """A fifth more spread within the modes tells; another set of the same distribution, with other counts, does not."""
    means = torch.tensor([[1.2, 0.0], [-0.7, 0.9], [0.0, -1.1]], dtype=FLOAT)
    model = GaussianMixture(means, VPSDE(), std=0.1)
    equation, earliest = ReverseEquation(model, 1.0), 1e-4
    directions = torch.eye(2, dtype=FLOAT)
    n = 4096
    target, other = (model.draw(n, generator=torch.Generator().manual_seed(k), dtype=FLOAT) for k in (1, 2))
    nearest = means[torch.cdist(other, means).argmin(1)]
    likeness = Likeness.of(equation, target, earliest)
    same, wider = (
        likeness.blocks(equation, x, directions, earliest).mean().item()
        for x in (other, nearest + 1.2 * (other - nearest))
    )
    assert wider > 5 * abs(same)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"class": "Heun"}, Heun(integrators.Time())),
        ({"class": "EDMHeun", "S_churn": 3.0, "S_tmin": 0.1}, integrators.ChurnedHeun(3.0, 0.1)),
        ({"class": "RungeKutta4", "coordinates": {"class": "InTime"}}, integrators.RungeKutta4(integrators.Time())),
        (
            {"class": "RungeKutta4", "coordinates": {"class": "Straight"}},
            integrators.RungeKutta4(integrators.NoiseToSignal()),
        ),
        *(
            ({"class": "Multistep", "order": 3, "coordinate": {"function": name}}, Multistep(3, coordinate=coordinate))
            for name, coordinate in (
                ("in_lambda", integrators.HalfLogSNR()),
                ("in_tau", integrators.NoiseToSignal()),
                ("in_phi", integrators.Angle()),
                ("in_time", integrators.Time()),
            )
        ),
    ],
    ids=str,
)
def test_files_with_the_former_names_of_coordinates_mean_what_they_meant(written, meant):
    assert build_solver("old.json", {"name": "old", "eta": 0.0, "integrator": written}).integrator == meant
