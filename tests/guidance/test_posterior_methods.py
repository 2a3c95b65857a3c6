"""Posterior methods in use: neutral where the noise is large, counted, the same for a sample whatever the batch."""

import posterior_truth
import pytest
import torch
from catalogue import SDES, RandomNetwork, covering, doubles, name
from test_products import Counting
from test_units import InUnits

from sde_toolkit import (
    EDMSDE,
    VPSDE,
    FlowMatching,
    GaussianMixture,
    ScoreModel,
    Wrapper,
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_2m_sde,
    gaussian,
    grids,
    log_likelihood,
    posterior,
    sample,
)
from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance import DDNM, JFPS, MMPS, SDA, TMPD, DiffPIR, Mask, PiGDM, SigmaDPS
from sde_toolkit.likelihood import ExactTrace


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


D, M = 4, 3
ROOT = numbers(D, D, seed=1)
COVARIANCE = ROOT @ ROOT.mT / D + 0.05 * torch.eye(D, dtype=torch.float64)
MEAN = numbers(D, seed=2)
A = numbers(M, D, seed=3)
Y = numbers(M, seed=4)
METHODS = posterior_truth.methods(COVARIANCE)
OF_NOISE = [way for way in METHODS if way != "DDNM"]
every_method = pytest.mark.parametrize("way", METHODS)


def noises(m):
    root = numbers(m, m, seed=5)
    return {
        "number": {"noise_std": 0.3},
        "diagonal": {"noise_std": 0.1 + numbers(m, seed=6).abs()},
        "full": {"noise_covariance": root @ root.mT + 0.1 * torch.eye(m)},
        "zero": {"noise_std": 0.0},
    }


@pytest.mark.on_device
@pytest.mark.parametrize(
    ("sde", "case"), covering(SDES, [(way, kind) for way in ("MMPS", "JFPS") for kind in noises(M)]), ids=name
)
def test_exact_methods_are_the_posterior_of_a_gaussian(sde, case):
    way, kind = case
    model, noise, t = gaussian(MEAN, sde, covariance=COVARIANCE), noises(M)[kind], 0.6
    x_t = 2 * numbers(5, D, seed=7)
    said = posterior(model, A, Y, **noise, method=METHODS[way])(x_t, t).x_0
    exact = model.posterior(A, Y, next(iter(noise.values())))
    torch.testing.assert_close(said, exact(x_t, t).x_0, rtol=1e-9, atol=1e-9)


@pytest.mark.on_device
@pytest.mark.filterwarnings("ignore:MMPS left")
@pytest.mark.parametrize("way", OF_NOISE)
def test_a_measurement_that_says_nothing_changes_nothing(way):
    model = ScoreModel(RandomNetwork(D), VPSDE(), "v")
    x_t, t = numbers(5, D), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    said = posterior(model, A, Y, 1e9, method=METHODS[way])(x_t, t).x_0
    torch.testing.assert_close(said, model(x_t, t).x_0, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(posterior(model, A, Y, 1.0, method=METHODS[way])(x_t, t).x_0, said, atol=1e-3)


@every_method
def test_evaluations_and_products_are_what_the_network_saw(way):
    network = Counting()
    method = JFPS(0.8) if way == "JFPS" else METHODS[way]
    model = posterior(ScoreModel(network, VPSDE(), "v"), numbers(2, 2), numbers(2), 0.5, method=method)
    drawn = sample(model, dpmpp_2m(), steps=4, shape=(3, 2), dtype=torch.float64)
    assert drawn.nfe * 3 == sum(network.rows)
    assert drawn.products * 3 == sum(network.back)
    expected = {"SigmaDPS": 1, "SDA": 1, "PiGDM": 1, "TMPD": 2, "MMPS": None, "JFPS": 0, "DiffPIR": 0, "DDNM": 0}[way]
    if expected is None:
        assert drawn.nfe <= drawn.products <= 2 * drawn.nfe  # two numbers are measured
    else:
        assert drawn.products == expected * drawn.nfe


@pytest.mark.on_device
@pytest.mark.on_card("the mock device compiles nothing")
@pytest.mark.parametrize("way", ["MMPS", "TMPD", "DiffPIR"])  # the others do nothing that these do not
def test_compiled_steps_are_the_same_and_are_counted(way):
    method = MMPS(tolerance=0.1, max_iterations=2) if way == "MMPS" else METHODS[way]
    model = posterior(gaussian(MEAN, VPSDE(), covariance=COVARIANCE), A, Y, 0.5, method=method)
    how = {"steps": 2, "shape": (3, D), "dtype": torch.float64}
    plain, compiled = (sample(model, ddim(), **how, **more) for more in ({}, {"compile": "aot_eager"}))
    torch.testing.assert_close(compiled.x, plain.x, rtol=1e-9, atol=1e-9)
    assert compiled.nfe == plain.nfe
    if way != "MMPS":
        assert compiled.products == plain.products


def test_a_compiled_step_makes_the_products_that_are_counted():
    network = Counting()
    model = posterior(
        ScoreModel(network, VPSDE(), "v"), numbers(2, 2), numbers(2), 0.5, method=MMPS(tolerance=0.9, max_iterations=3)
    )
    with torch.no_grad():
        drawn = sample(model, ddim(), steps=1, shape=(3, 2), dtype=torch.float64, compile="aot_eager", tweedie=False)
    assert drawn.products == 3  # as in a graph, which cannot stop early
    assert sum(network.back) == 9


@pytest.mark.on_device
@pytest.mark.parametrize("solver", [dpmpp_2m(), dpmpp_2m_sde()], ids=name)
@every_method
def test_a_sample_is_the_same_whatever_the_batch(way, solver):
    """Bit for bit, where the network is: elementwise. Each sample has a y of its own, some of them far off."""
    prior = GaussianMixture(numbers(3, D), VPSDE(), std=0.2 + numbers(3, D, seed=9).abs())
    method = {"JFPS": JFPS(0.5 + numbers(D, seed=8).abs()), "MMPS": MMPS(0.05)}.get(way, METHODS[way])
    mask = torch.tensor([1, 1, 0, 1])
    model, y = posterior(prior, Mask(mask), noise_std=0.4, method=method), numbers(7, 3, seed=10) * 3
    how = {"steps": 4, "seed": 3, "dtype": torch.float64}
    whole = sample(model, solver, shape=(7, D), condition=y, **how)
    parts = sample(model, solver, shape=(7, D), condition=y, batch_size=3, **how)
    alone = sample(model, solver, shape=(1, D), condition=y[5:6], first_index=5, **how)
    assert torch.equal(parts.x, whole.x)
    assert torch.equal(alone.x[0], whole.x[5])


@pytest.mark.on_device
@pytest.mark.parametrize(("sde", "way"), covering(SDES, list(METHODS)), ids=name)
def test_every_method_runs_on_every_path_in_single_precision(sde, way):
    model = gaussian(MEAN, sde, covariance=COVARIANCE)
    method = SDA(1.0) if way == "SDA" else METHODS[way]  # so that no equation is stiff
    given = posterior(model, A, Y, 1.0, method=method)
    grid = grids.uniform_lambda(sde, 12, start=0.7)
    single, double = (
        sample(given, dpmpp_2m(), grid, shape=(6, D), dtype=dtype, tweedie=True).x
        for dtype in (torch.float32, torch.float64)
    )
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=2e-3, atol=2e-3)


@pytest.mark.on_device
def test_where_a_state_says_nothing_of_the_data_there_is_no_covariance_and_no_nan():
    model = gaussian(MEAN, FlowMatching(), covariance=COVARIANCE)
    grid = grids.uniform(model.sde, 20, start=1.0, end=0.01)
    for method in METHODS.values():
        drawn = sample(posterior(model, A, Y, 1.0, method=method), dpmpp_2m(), grid, shape=(3, D), tweedie=True)
        assert drawn.x.isfinite().all()


@pytest.mark.on_device
@every_method
def test_another_unit_of_the_data_is_the_same_problem(way):
    """With what a method chooses by itself: ΠGDM's prior."""
    unit = 16.0
    method = {"PiGDM": PiGDM(), "JFPS": JFPS(COVARIANCE)}.get(way, METHODS[way])
    scaled = {"PiGDM": PiGDM(), "JFPS": JFPS(unit**2 * COVARIANCE)}.get(way, METHODS[way])
    one = gaussian(MEAN, VPSDE(), covariance=COVARIANCE)
    other = gaussian(unit * MEAN, InUnits(VPSDE(), unit), covariance=unit**2 * COVARIANCE)
    x_t, t = numbers(5, D), 0.6
    said = posterior(one, A, Y, 0.3, method=method)(x_t, t).x_0
    found = posterior(other, A, unit * Y, unit * 0.3, method=scaled)(unit * x_t, t).x_0
    torch.testing.assert_close(found / unit, said, rtol=1e-9, atol=1e-9)


@pytest.mark.on_device
def test_the_likelihood_is_that_of_the_posterior():
    prior = gaussian(MEAN[:2], EDMSDE(), covariance=COVARIANCE[:2, :2])
    given = posterior(prior, A[:1, :2], Y[:1], 0.5)
    x = numbers(3, 2)
    exact = Wrapper(prior.posterior(A[:1, :2], Y[:1], 0.5))
    found, expected = (log_likelihood(model, x, divergence=ExactTrace()).nats for model in (given, exact))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(expected, exact.network.log_prob(x), rtol=0.05, atol=0.05)  # of the usual nodes


# Whose y it is


class Told(torch.nn.Module):
    """A network that moves its answer by a label."""

    def __init__(self):
        super().__init__()
        self.inside = RandomNetwork(D)

    def forward(self, x, t, condition):
        return self.inside(x, t) + 0.1 * condition[:, None]


@pytest.mark.filterwarnings("ignore:MMPS left")
def test_each_sample_may_have_its_own_y_beside_a_condition():
    model, labels, ys = ScoreModel(Told(), VPSDE(), "v"), doubles(0.0, 1.0, -3.0), numbers(3, M, seed=11)
    how = {"steps": 3, "dtype": torch.float64}
    own = posterior(model, A, noise_std=0.3)
    whole = sample(own, ddpm(), shape=(3, D), condition={"y": ys, "condition": labels}, **how)
    for i in range(3):
        shared = posterior(model, A, ys[i], 0.3)
        alone = sample(shared, ddpm(), shape=(1, D), condition=labels[i : i + 1], first_index=i, **how)
        torch.testing.assert_close(whole.x[i], alone.x[0], rtol=1e-10, atol=1e-10)


@pytest.mark.on_device
def test_a_y_that_is_missing_or_of_another_shape_is_refused_before_any_evaluation():
    network = Counting()
    own = posterior(ScoreModel(network, VPSDE(), "v"), numbers(3, 2), noise_std=0.3)
    for condition, words in (
        (None, "each sample needs its own"),
        ({"label": numbers(4)}, "each sample needs its own"),
        ({"y": None}, "each sample needs its own"),
        (numbers(4, 2), r"y=\(4, 2\): A\(x\) has shape"),
        ({"y": numbers(4, 3, 1)}, r"y=\(4, 3, 1\): A\(x\) has shape"),
        (numbers(5, 3), "5 rows for 4 samples"),
        ({"y": numbers(3, 3)}, r"condition.y=\(3, 3\): it has 3 rows for 4 samples"),
        ({"y": [numbers(4, 3)]}, "y=.*not a tensor|A\\(x\\) has shape"),
    ):
        with pytest.raises(ArgumentError, match=words):
            sample(own, ddim(), steps=2, shape=(4, 2), condition=condition, dtype=torch.float64)
    assert not network.rows


@pytest.mark.on_device
def test_what_a_method_cannot_do_is_refused_by_name_when_the_model_is_made():
    model = gaussian(MEAN, VPSDE(), covariance=COVARIANCE)
    for method in (SigmaDPS(), TMPD()):
        for zero in (0.0, doubles(0.1, 0.0, 0.2)):
            with pytest.raises(ArgumentError, match=f"{type(method).__name__} divides by it"):
                posterior(model, A, Y, zero, method=method)
    for method in (SDA(), PiGDM(), MMPS(), JFPS(COVARIANCE), DiffPIR(), DDNM()):
        assert posterior(model, A, Y, 0.0, method=method)(numbers(2, D), 0.5).x_0.isfinite().all()
    for wrong, words in (
        ({"y": numbers(2)}, r"y=\(2,\): A\(x\) has shape \(3,\)"),
        ({"noise_std": -1.0}, "noise_std=-1.0"),
        ({"noise_std": None}, "noise_std=None"),
        ({"method": MMPS}, "method=.*not a posterior method"),
        ({"method": "mmps"}, "method='mmps': not a posterior method"),
        ({"A": numbers(3, 5)}, "event_shape=.*needs 5"),
        ({"A": lambda x: x.clamp(-1, 1)}, "not linear"),
        ({"model": Told()}, "model=.*not a ScoreModel"),
        ({"space": "latent"}, "space='latent'"),
        ({"method": JFPS(torch.ones(5))}, "covariance=.*events of shape"),
        ({"method": JFPS(-torch.eye(4))}, "smallest eigenvalue"),
        ({"method": JFPS(A[:, :3])}, "covariance="),
    ):
        with pytest.raises(ArgumentError, match=words):
            posterior(**{"model": model, "A": A, "y": Y, "noise_std": 0.1} | wrong)
    for make, words in (
        (lambda: MMPS(tolerance=1.0), "tolerance=1.0"),
        (lambda: MMPS(max_iterations=0), "max_iterations=0"),
        (lambda: SDA(0.0), "gamma=0.0"),
        (lambda: DiffPIR(-1.0), "weight=-1.0"),
        (lambda: PiGDM(0.0), "prior_std=0.0"),
        (lambda: JFPS(-1.0), "covariance=-1.0"),
    ):
        with pytest.raises(ArgumentError, match=words):
            make()


@pytest.mark.on_device
def test_large_operators_without_a_decomposition_are_refused_where_it_is_needed():
    n = 5000
    model = gaussian(torch.zeros(n), VPSDE(), std=1.0)
    with pytest.raises(ArgumentError, match="4096"):
        posterior(model, lambda x: x[:, :-1] - 0.5 * x[:, 1:], numbers(n - 1), 0.1, method=DDNM())


# Records


@pytest.mark.on_device
def test_settings_are_on_record_and_short():
    prior = gaussian(torch.zeros(300), VPSDE(), std=1.0)
    records = []
    for method in (*METHODS.values(), JFPS(torch.eye(300)), JFPS.of(numbers(20, 300))):
        if method is METHODS["JFPS"]:
            continue
        for y in (numbers(300), numbers(300, seed=1)):
            model = posterior(prior, Mask(torch.ones(300)), y, 0.1, method=method)
            assert model.settings()["method"] == type(method).__name__
            assert len(repr(model)) < 800
            assert len(repr(method)) < 80
            assert len(str(model.settings())) < 400
            records.append(str(model.description()))
    assert len(set(records)) == len(records)
    assert posterior(prior, Mask(torch.ones(300)), noise_std=0.1).settings()["y"] == "of each sample"
