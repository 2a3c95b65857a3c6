"""Restorations: what their numbers mean, whatever method drew the samples."""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch

from sde_toolkit import MLP, VPSDE, Affine, GaussianMixture, ScoreModel, Solver, dpmpp_2m_sde, gaussian, grids, sample
from sde_toolkit.errors import ArgumentError, DataError
from sde_toolkit.evaluation.restoration import (
    Deblur,
    Inpaint,
    InpaintRandom,
    Restoration,
    RestorationRequest,
    Steps,
    SuperResolve,
    daps_steps,
    ddrm_steps,
    dps_steps,
    repaint_steps,
    restore,
    restore_in_team,
)
from sde_toolkit.evaluation.restoration.restoration_scores import ExactSamples, scores_of
from sde_toolkit.guidance import DDNM, MMPS, Measurement, PiGDM, PosteriorMethod, StepOperator, daps, ddrm, dps, repaint


def ring():
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    return GaussianMixture(torch.stack([angles.cos(), angles.sin()], 1) * math.sqrt(2), VPSDE(), std=0.1)


def steps(nfe=40, solver=None):
    return Steps("solver", solver or dpmpp_2m_sde(), "karras", grids.karras, nfe)


@dataclass(frozen=True)
class Exact(PosteriorMethod):
    """x̂_0 given y of a mixture, from the posterior in closed form."""

    model: GaussianMixture

    def estimate(self, x_t, inside, measurement, y, condition):
        law = self.model.posterior(measurement.A, measurement.y, measurement.noise_std)
        return law(x_t, inside.t).view("x0")


@dataclass(frozen=True)
class Fails(PosteriorMethod):
    def estimate(self, x_t, inside, measurement, y, condition):
        return inside(x_t, condition) * math.nan


def request(model=None, methods=None, k=3, seed=0, **options):
    model = model or ring()
    truth = model.draw(k, generator=torch.Generator().manual_seed(seed)) if "truth" not in options else None
    settings = {
        "truth": truth,
        "task": Inpaint(),
        "noise_std": 0.05,
        "methods": methods or {"pigdm": PiGDM()},
        "steps": steps(4),
        "n": 4,
    }
    return RestorationRequest(model, **(settings | options))


def test_an_exact_method_is_at_the_floor_and_no_other():
    model = ring()
    result = restore(request(model, {"exact": Exact(model), "ddnm": DDNM()}, k=1, n=300, steps=steps(40)))
    assert result.at_floor("exact")
    assert not result.at_floor("ddnm")
    said = restoration_sentences(result)
    assert "exact cannot be told from the exact posterior" in said
    scores = result.scores
    assert scores["exact"].misfit.value == pytest.approx(scores["exact posterior"].misfit.value, rel=0.25)
    assert scores["exact"].spread.value == pytest.approx(scores["exact posterior"].spread.value, rel=0.25)


def restoration_sentences(result):
    from sde_toolkit.evaluation.restoration.restoration_findings import restoration_findings

    return " ".join(restoration_findings(result))


@pytest.mark.parametrize("task", [Inpaint(), InpaintRandom(), Deblur(), SuperResolve()], ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("scale", [1 / 127.5, -0.01])
def test_the_truth_has_misfit_one_in_both_spaces(task, scale):
    """For one shift and scale, y stands for the data themselves, measured with noise of σ_y/|scale|."""
    torch.manual_seed(0)
    shape = (1, 8, 8)
    network = MLP(shape, width=8, depth=1)
    model = ScoreModel(network, VPSDE(), "v", event_shape=shape, transform=Affine(127.5, scale)).eval()
    truth = torch.randint(0, 256, (40, *shape), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    asked = request(model, truth=truth, task=task, noise_std=0.05)
    found = Restoration(asked, (), 0.0).misfit_of_truth
    assert abs(found.value - 1) < 4 * found.error
    assert found.error < 0.06
    A = asked.operator
    y = torch.stack([m.y for m in asked.measurements]).double()
    in_data_space = y / scale + A(torch.full((1, *shape), 127.5, dtype=torch.float64))
    residual = (in_data_space - A(truth.double())).square().mean().sqrt().item()
    assert residual == pytest.approx(0.05 / abs(scale) * found.value, rel=1e-4)


def test_errors_over_spread_are_one_where_truth_and_samples_are_exchangeable():
    k, n, D = 600, 5, 10
    draw = torch.Generator().manual_seed(0)
    middle = 3 * torch.randn(k, 1, D, generator=draw)
    own = 0.2 + torch.rand(k, 1, D, generator=draw)
    everything = middle + own * torch.randn(k, n + 1, D, generator=draw)
    truth, x = everything[:, 0], everything[:, 1:]
    measurement = Measurement(torch.eye(D), torch.zeros(D), 1.0)
    for factor, wanted in ((1.0, 1.0), (0.5, None), (2.0, None)):
        mean = x.mean(1, keepdim=True)
        narrowed = mean + factor * (x - mean)
        found = scores_of(narrowed, narrowed, truth, [measurement] * k, None).over_confidence
        assert abs(found.value * factor - 1) < 4 * found.error * factor
        assert found.error < 0.05 / factor
        assert wanted is None or abs(found.value - wanted) < 4 * found.error


@pytest.mark.parametrize("direction", [0, 1])
def test_a_thin_direction_counts_as_much_as_a_wide_one(direction):
    """Samples that are c standard deviations off, in whatever direction, are c/√2 away."""
    std = torch.tensor([10.0, 0.01])
    x = std * torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    shift = torch.zeros(2)
    shift[direction] = 3 * std[direction]
    assert ExactSamples.of(x).distance_alone(x + shift) == pytest.approx(3 / math.sqrt(2), rel=0.12)
    assert ExactSamples.of(x).distance_alone(x) < 1e-6


def test_a_cost_counts_evaluations_and_products():
    result = restore(request(methods={"pigdm": PiGDM(), "ddnm": DDNM(), "mmps": MMPS()}, cost=30))
    found = {done.name: done for done in result.restored}
    assert found["ddnm"].products == 0
    assert found["pigdm"].products == found["pigdm"].nfe
    assert 28 <= found["ddnm"].cost <= 30
    assert 28 <= found["pigdm"].cost <= 30
    assert found["mmps"].cost <= 36  # its products depend on the samples
    with pytest.raises(ArgumentError, match=r"cost=2.*pigdm"):
        restore(request(methods={"pigdm": PiGDM()}, cost=2))


def test_a_step_operator_is_made_for_each_measurement():
    """It brings η and grid of its own, and takes as many evaluations as all others."""
    seen = []

    @dataclass(frozen=True, eq=False)
    class Replaces(StepOperator):
        measurement: Measurement | None = None

        def move(self, step):
            seen.append(step.eta)
            x_0 = step.estimate()
            return step.exponential(x_0 + self.measurement.A.pseudo_inverse(self.measurement.residual(x_0)))

    def replaces(model, measurement):
        return Solver("replaces", 1.0, Replaces(measurement=measurement))

    result = restore(request(methods={"replaces": replaces, "ddnm": DDNM()}, k=2))
    replaced, ddnm = result.restored
    assert replaced.nfe == ddnm.nfe
    assert set(seen) == {1.0}


def test_work_that_is_there_is_not_done_again_and_other_work_is_refused(tmp_path):
    asked, said = request(methods={"pigdm": PiGDM(), "ddnm": DDNM()}), []
    whole = restore(asked)
    restore_in_team(asked, store_in=tmp_path)
    (tmp_path / "parts" / "00003.npz").unlink()
    again = restore_in_team(asked, store_in=tmp_path, say=said.append)
    assert said == ["5 of 6 parts are there already, 1 to compute"]
    for one, other in zip(whole.restored, again.restored, strict=True):
        assert torch.equal(one.x, other.x)
    with pytest.raises(ArgumentError, match="noise_std"):
        restore_in_team(request(methods={"pigdm": PiGDM(), "ddnm": DDNM()}, noise_std=0.1), store_in=tmp_path)


def test_the_noise_of_a_sample_does_not_depend_on_the_other_methods_or_measurements():
    truth = ring().draw(3, generator=torch.Generator().manual_seed(0))
    alone = restore(request(truth=truth[:1]))
    beside = restore(request(methods={"ddnm": DDNM(), "pigdm": PiGDM()}, truth=truth))
    assert torch.equal(alone.restored[0].x[0], beside.restored[1].x[0])


def test_step_operators_are_those_of_the_library():
    """Each gives the samples of its function with the same measurement, on the grid that is usual for it."""
    truth = ring().draw(1, generator=torch.Generator().manual_seed(0))
    methods = {"dps": dps_steps, "ddrm": ddrm_steps, "daps": daps_steps, "repaint": partial(repaint_steps, repeats=2)}
    asked = request(truth=truth, methods=methods, steps=steps(8), noise_std=0.1)
    found = {done.name: done for done in restore(asked).restored}
    model, measurement = asked.model, asked.measurements[0]
    A, y = measurement.A, measurement.y
    expected = {
        "dps": dps(A, y, space="model"),
        "ddrm": ddrm(model, A, y, 0.1, space="model"),
        "daps": daps(model, A, y, 0.1, space="model"),
        "repaint": repaint(torch.stack([torch.zeros(()), y[0]]), torch.tensor([0, 1]), 2, space="model"),
    }
    for name, solver in expected.items():
        direct = sample(model, solver, nfe=8, shape=(4, 2))
        assert torch.equal(found[name].x[0], direct.x), name
        assert (found[name].nfe, found[name].products) == (direct.nfe, direct.products)


def test_repaint_is_for_measurements_of_single_elements():
    for task in (Deblur(), SuperResolve()):
        with pytest.raises(ArgumentError, match="single elements"):
            request(methods={"repaint": repaint_steps}, task=task)


def test_a_method_that_fails_is_named_and_the_others_are_reported():
    result = restore(request(methods={"fails": Fails(), "ddnm": DDNM()}))
    assert result.restored[0].failure
    assert "Failed: fails." in restoration_sentences(result)
    assert [record["method"] for record in result.cases()].count("ddnm") == 3
    assert set(result.scores) == {"ddnm", "exact posterior"}


def test_the_nearest_mean_is_named_only_where_it_can_be_told():
    truth = torch.zeros(6, 2)
    asked = request(gaussian(torch.zeros(2), VPSDE(), std=1.0), truth=truth)
    from sde_toolkit.evaluation.restoration import Restored

    def off_by(name, size, seed):
        noise = torch.randn(6, 1, 2, generator=torch.Generator().manual_seed(seed))
        return Restored(name, (size * (1 + 0.1 * noise)).expand(6, 4, 2), 1, 0, 0.0, 0.0)

    far = Restoration(asked, (off_by("near", 0.1, 0), off_by("far", 1.0, 1)), 0.0)
    assert far.nearer("near", "far")
    assert not far.nearer("far", "near")
    alike = Restoration(asked, (off_by("one", 1.0, 0), off_by("other", 1.0, 1)), 0.0)
    assert not alike.nearer("one", "other")


@pytest.mark.parametrize("shape", [(2,), (3,), (30,), (2, 9), (1, 5, 8), (3, 16, 16)], ids=str)
@pytest.mark.parametrize("fraction", [1e-3, 0.3, 0.999])
def test_inpainting_hides_the_part_that_was_asked_for(shape, fraction):
    places = math.prod(shape[-2:] if len(shape) > 2 else shape[-1:])
    for task, slack in ((Inpaint(fraction), 0.15), (InpaintRandom(fraction), 0.5 / places)):
        kept = math.prod(task.operator(shape).measured_shape)
        hidden = 1 - kept / math.prod(shape)
        assert 1 / places - 1e-9 <= hidden <= 1 - 1 / places + 1e-9
        if 1 / places < fraction < 1 - 1 / places:
            assert abs(hidden - fraction) <= slack + 1 / places
        assert "hidden" in task.describe(shape)


def test_superresolution_averages_four_of_large_images_and_two_of_small_ones():
    assert SuperResolve().operator((1, 28, 28)).measured_shape == (1, 7, 7)
    assert SuperResolve().operator((1, 8, 8)).measured_shape == (1, 4, 4)
    assert SuperResolve().operator((2,)).measured_shape == (1,)
    assert SuperResolve(4).operator((1, 8, 8)).measured_shape == (1, 2, 2)


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"truth": torch.zeros(3, 4)}, ArgumentError, r"truth=\(3, 4\)"),
        ({"truth": torch.zeros(0, 2)}, ArgumentError, "one or more"),
        ({"noise_std": -1.0}, ArgumentError, "noise=-1"),
        ({"n": 1}, ArgumentError, "n=1"),
        ({"cost": 1}, ArgumentError, "cost=1"),
        ({"methods": {"none": 3}}, ArgumentError, "none"),
        ({"methods": {"wrong": lambda model, measurement: 3}}, ArgumentError, "nor a solver"),
        ({"steps": steps(1)}, ArgumentError, "nfe=1"),
    ],
)
def test_requests_that_make_no_sense_are_refused(change, kind, said):
    with pytest.raises(kind, match=said):
        request(**change)


def test_data_of_another_range_are_refused():
    model = ScoreModel(
        MLP((4,), width=8, depth=1), VPSDE(), "v", event_shape=(4,), transform=Affine(127.5, 1 / 127.5, 0, 255)
    ).eval()
    with pytest.raises(DataError, match="255"):
        request(model, truth=torch.full((2, 4), 900.0))


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1.5, math.nan, "half", None])
def test_a_fraction_lies_between_zero_and_one(fraction):
    for task in (Inpaint, InpaintRandom):
        with pytest.raises(ArgumentError, match="fraction"):
            task(fraction)


def test_a_single_number_has_no_neighbours():
    with pytest.raises(ArgumentError, match="no neighbours"):
        Inpaint().operator((1,))


def test_arrays_hold_what_the_numbers_are_made_of():
    result = restore(request())
    arrays = result.arrays()
    assert set(arrays) == {"truth", "y", "samples_pigdm", "samples_exact"}
    assert np.array_equal(arrays["truth"], result.request.truth.numpy())
    assert arrays["samples_pigdm"].shape == (3, 4, 2)
