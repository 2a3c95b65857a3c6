"""ε-, x_0-, v-, score-, velocity- and EDM-losses are one loss under different weights: gradients, papers' forms."""

import math

import pytest
import torch
from loss_tools import KINDS, SDES, batch, gradient, kinds_of, model_with, name, signal_at_the_end

from sde_toolkit import VPSDE, DenoisingScoreMatching, FlowMatching, ScoreModel, gaussian
from sde_toolkit.batching import expand_to
from sde_toolkit.losses import (
    P2,
    Anchored,
    Converted,
    EDMWeighting,
    MinSNR,
    SigmoidWeighting,
    constant,
    error_ratio,
    g_squared,
    sigma_squared,
)
from sde_toolkit.models.time_inputs import ScaledTime

WEIGHTINGS = [constant, sigma_squared, g_squared, EDMWeighting(), MinSNR(), P2(), P2(2.0, 0.5), SigmoidWeighting(-1.0)]
every_sde = pytest.mark.parametrize("sde", SDES, ids=name)
T = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)


def by_hand(model, target, weights, x_0, t, noise):
    """Σ w |ŷ − y|²: the output converted by the prediction's own view, the target from α, σ and their derivatives."""
    sde = model.sde
    x_t = expand_to(sde.alpha(t), x_0) * x_0 + expand_to(sde.sigma(t), x_0) * noise
    a, b = {
        "x0": (torch.ones_like(t), torch.zeros_like(t)),
        "epsilon": (torch.zeros_like(t), torch.ones_like(t)),
        "score": (torch.zeros_like(t), -1 / sde.sigma(t)),
        "v": (-sde.sigma(t), sde.alpha(t)),
        "velocity": (sde.d_alpha(t), sde.d_sigma(t)),
    }[target]
    error = model(x_t, t).view(target) - (expand_to(a, x_0) * x_0 + expand_to(b, x_0) * noise)
    return (weights * error.square().flatten(1).mean(1)).sum()


@every_sde
def test_a_loss_is_the_weighted_error_of_its_target_whatever_the_network_predicts(sde):
    x_0, t, noise = batch()
    for kind in kinds_of(sde):
        model = model_with(sde, kind)
        for target in ("x0", "epsilon", "score", "v", "velocity"):
            found = DenoisingScoreMatching(target, g_squared)(model, x_0, t, noise).sum()
            wanted = by_hand(model, target, sde.g(t) ** 2, x_0, t, noise)
            torch.testing.assert_close(found, wanted, rtol=1e-7, atol=0)
            torch.testing.assert_close(gradient(found, model), gradient(wanted, model), rtol=1e-6, atol=1e-9)


@every_sde
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=lambda w: getattr(w, "__name__", str(w)))
def test_every_pair_of_targets_has_the_same_gradient_under_the_converted_weight(sde, weighting):
    x_0, t, noise = batch(n=6)
    model = model_with(sde)
    for of in KINDS:
        if getattr(weighting, "multiplies", of) != of:
            continue
        one = DenoisingScoreMatching(of, weighting)(model, x_0, t, noise)
        wanted = gradient(one.sum(), model)
        for target in KINDS:
            converted = Converted(weighting, of, target, model.sigma_data)
            assert converted.multiplies == target
            if target in ("x0", "epsilon", "score", "v", "velocity"):
                other = by_hand(model, target, converted(sde, t), x_0, t, noise)
                torch.testing.assert_close(gradient(other, model), wanted, rtol=1e-6, atol=1e-9 * wanted.abs().max())
            same = DenoisingScoreMatching(weighting=converted)(model, x_0, t, noise)
            torch.testing.assert_close(gradient(same.sum(), model), wanted, rtol=1e-6, atol=1e-9 * wanted.abs().max())


@every_sde
def test_a_published_weighting_does_not_depend_on_the_target_it_is_told(sde):
    x_0, t, noise = batch()
    model = model_with(sde)
    for weighting in (MinSNR(), P2(), SigmoidWeighting(), EDMWeighting(), Anchored(g_squared, "score")):
        losses = [DenoisingScoreMatching(target, weighting)(model, x_0, t, noise) for target in KINDS]
        for other in losses[1:]:
            torch.testing.assert_close(other, losses[0], rtol=1e-12, atol=0)
    plain = DenoisingScoreMatching("score", g_squared)(model, x_0, t, noise)
    torch.testing.assert_close(losses[0], plain, rtol=1e-12, atol=0)


@every_sde
def test_error_ratios_are_those_of_two_predictions_that_agree_on_x_t(sde):
    """Measured on the views of two different outputs at the same x_t."""
    x_t = torch.randn(len(T), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kind = "v"
    for of in KINDS:
        for to in KINDS:
            pairs = []
            for k in (of, to):
                a, b = (
                    ScoreModel(lambda x, time, c=c: c * torch.ones_like(x), sde, kind, sigma_data=0.7) for c in (1, 3)
                )
                pairs.append((a(x_t, T).view(k) - b(x_t, T).view(k)).square().mean(1))
            torch.testing.assert_close(error_ratio(sde, T, of, to, 0.7), pairs[0] / pairs[1], rtol=1e-6, atol=0)
            assert of != to or bool((error_ratio(sde, T, of, to) == 1).all())


def snr(sde):
    return (sde.alpha(T) / sde.sigma(T)) ** 2


def converted(weighting, to, sde):
    return Converted(weighting, weighting.multiplies, to)(sde, T)


ONES = torch.ones_like(T)
VARIANCE_PRESERVING = [
    sde for sde in SDES if torch.allclose(sde.alpha(T) ** 2 + sde.sigma(T) ** 2, ONES, rtol=1e-12, atol=0)
]


@pytest.mark.parametrize("sde", VARIANCE_PRESERVING, ids=name)
@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_in_the_papers_three_forms(sde, gamma):
    """Hang et al. 2023: min(SNR, γ) for x_0, min(SNR, γ)/SNR for ε, min(SNR, γ)/(SNR + 1) for v."""
    s = snr(sde)
    least = torch.minimum(s, torch.tensor(gamma))
    for target, wanted in (("x0", least), ("epsilon", least / s), ("v", least / (s + 1))):
        torch.testing.assert_close(converted(MinSNR(gamma), target, sde), wanted, rtol=1e-9, atol=0)


@every_sde
def test_edm_weighting_is_edms_own_loss(sde):
    """λ(σ) of table 1 on x_0 under α = 1, and in general the unweighted error of F."""
    for sigma_data in (0.5, 1.3):
        tau = sde.sigma(T) / sde.alpha(T)
        table_1 = (tau**2 + sigma_data**2) / (tau * sigma_data) ** 2
        torch.testing.assert_close(EDMWeighting(sigma_data)(sde, T), table_1, rtol=1e-9, atol=0)
        of_F = Converted(EDMWeighting(sigma_data), "x0", "edm", sigma_data)(sde, T)
        torch.testing.assert_close(of_F, torch.ones_like(T), rtol=1e-9, atol=0)


@every_sde
def test_simple_is_song_sigma_squared_and_snr_on_x0(sde):
    torch.testing.assert_close(Converted(sigma_squared, "score", "epsilon")(sde, T), torch.ones_like(T))
    torch.testing.assert_close(Converted(constant, "epsilon", "x0")(sde, T), snr(sde), rtol=1e-9, atol=0)


@pytest.mark.parametrize("sde", VARIANCE_PRESERVING, ids=name)
def test_v_is_snr_plus_one_on_x0(sde):
    """Salimans & Ho 2022, section 4."""
    torch.testing.assert_close(Converted(constant, "v", "x0")(sde, T), snr(sde) + 1, rtol=1e-9, atol=0)


def test_p2_reduces_to_simple_and_flow_matching_to_its_weight_of_x0():
    torch.testing.assert_close(P2(gamma=0.0)(VPSDE(), T), torch.ones_like(T))
    torch.testing.assert_close(P2(k=1.0)(VPSDE(), T), VPSDE().sigma(T) ** 2)  # 1/(1 + SNR), variance preserving
    flow = FlowMatching()  # x_t − x_0 = t (ε − x_0): the velocity's error is the denoiser's over t
    torch.testing.assert_close(Converted(constant, "velocity", "x0")(flow, T), 1 / T**2)


@pytest.mark.parametrize("sde", [s for s in SDES if not hasattr(s, "betas")], ids=name)
def test_sigmoid_weighting_is_an_integral_over_log_snr(sde):
    """∫ w dt = ½ ∫ sigmoid(b − ℓ) dℓ between the log SNR of two times: what one pays per log SNR is schedule-free."""
    b, ends = 1.0, torch.tensor([0.9, 0.1], dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 20_001, dtype=torch.float64)
    found = torch.trapezoid(SigmoidWeighting(b)(sde, t), t)
    low, high = (2 * sde.half_log_snr(ends)).tolist()
    antiderivative = [-math.log1p(math.exp(b - ell)) for ell in (low, high)]
    assert found.item() == pytest.approx(0.5 * (antiderivative[1] - antiderivative[0]), rel=1e-6)


@pytest.mark.parametrize(("sde", "dtype"), [*((sde, torch.float32) for sde in SDES), (SDES[0], torch.float64)], ids=str)
def test_everything_is_finite_at_both_ends_of_time(sde, dtype):
    """t at the SDE's likelihood_end, just before 1 and at 1, where α may be 0 and g infinite."""
    t = torch.tensor([1e-5, 1e-4, 1 - 1e-6, 1.0], dtype=torch.float64)
    x_0, _, noise = batch(n=4, dtype=dtype)
    for kind in kinds_of(sde):
        if kind == "velocity" and not bool(torch.isfinite(sde.d_alpha(t)).all()):
            continue  # from_betas with zero terminal SNR: the network's own target is infinite
        model = model_with(sde, kind, time_input=ScaledTime()).to(dtype)  # NoiseLevel is refused where α = 0
        for weighting in WEIGHTINGS:
            for target in ("epsilon", "score", "x0", "v", "edm", "velocity"):
                if weighting is sigma_squared and target != "score":
                    continue
                losses = DenoisingScoreMatching(target, weighting)(model, x_0, t, noise)
                assert bool(losses.isfinite().all()), (kind, target, weighting, losses)
                assert bool(gradient(losses.sum(), model).isfinite().all())


@every_sde
def test_weights_near_the_ends_are_their_own_and_at_the_ends_their_limits(sde):
    """A hundred-millionth inside, a weight is that of its time. At the very end the loss is that of a billionth inside,
    which is all that a limit of 0 · ∞ can mean: no end of time is left out, and none has a weight of another time.
    """
    weightings = [constant, EDMWeighting(), MinSNR(), P2(), SigmoidWeighting(-1.0), g_squared]
    x_0, _, noise = batch(n=2)
    inside = torch.tensor([1e-8, 1 - 1e-8], dtype=torch.float64)
    for weighting in weightings:
        loss = DenoisingScoreMatching("v", Anchored(constant, "v") if weighting is constant else weighting)
        model = model_with(sde, "v", time_input=ScaledTime())
        weight = weighting(sde, inside) * error_ratio(sde, inside, loss.multiplies, "v", model.sigma_data)
        plain = DenoisingScoreMatching("v")(model, x_0, inside, noise)
        torch.testing.assert_close(loss(model, x_0, inside, noise), weight * plain, rtol=1e-12, atol=0)
        for end, near in ((0.0, 1e-9), (1.0, 1 - 1e-9)):
            at_end, beside = (loss(model, x_0, torch.full((2,), t).double(), noise) for t in (end, near))
            torch.testing.assert_close(at_end, beside, rtol=1e-3, atol=1e-12)


def test_the_error_keeps_its_digits_in_float32_where_the_target_is_not_the_output():
    """x_0-network, ε-loss, small t: converting x̂_0 to ε̂ first would divide the rounding of x_t by σ."""
    sde = VPSDE()
    x_0, _, noise = batch(n=64, seed=3)
    t = torch.full((64,), 1e-5, dtype=torch.float64)
    exact = DenoisingScoreMatching("epsilon")(model_with(sde, "x0"), x_0, t, noise)
    single = DenoisingScoreMatching("epsilon")(model_with(sde, "x0").float(), x_0.float(), t, noise.float())
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=0)
    perfect = gaussian([0.0, 0.0], sde, std=1e-4)  # x̂_0 near 0: what is left is of the size of rounding
    assert bool(DenoisingScoreMatching("v")(perfect, 1e-4 * x_0.float(), t, noise.float()).isfinite().all())


def test_zero_signal_at_the_end_is_in_the_catalogue():
    assert any(not signal_at_the_end(sde) for sde in SDES)
