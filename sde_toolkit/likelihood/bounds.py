"""Lower bounds on log p(x) of the model that samples by the reverse SDE: in continuous time, and on a DDPM's grid.

With λ = log(α/σ), s the next time after t on a grid, and e the last time with noise, where a decoder takes over:

    log p(x) ≥ −KL(q(x_1|x) ‖ N(0, σ_1² I)) − diffusion + E log p(x | x_e)
    prior       ½ e^(2λ_1) |x|²                                                            0 where α_1 = 0
    continuous  ∫ E|ε − ε̂|² dλ = ∫ e^(2λ) E|x − x̂_0|² dλ,  λ_1 to λ_e                  Kingma et al. 2021, eq. 11-18
    discrete    Σ E KL(q(x_s|x_t, x) ‖ N(μ(x_t, x̂_0), v² I))                               Ho et al. 2020, eq. 5, 8-10
                = Σ ½ D (κ²/v² − 1 − log κ²/v²) + ½ α_s² (1 − r²)²/v² · E|x − x̂_0|²
    where       r² = e^(2λ_t − 2λ_s),  κ² = σ_s² (1 − r²): for v = κ the step costs ½ (e^(2λ_s) − e^(2λ_t)) E|x − x̂_0|²

These hold for any network and any α, σ (the SDE's f and g do not enter), for the stochastic sampler; the probability
flow has a density of its own. For the exact score of the data's density the continuous diffusion term is, sample by
sample, KL(q(x_e|x) ‖ p_e) − KL(q(x_1|x) ‖ p_1).

Where α_1 = 0 (flow matching, cosine) λ_1 = −∞: the prior term is 0, and the integral converges like that of e^(2λ). The
default proposal reaches −∞ with finite weights; nothing is cut off.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sde_toolkit.checks import is_number
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.grids import check_grid
from sde_toolkit.likelihood.bound_requests import BoundRequest, check_draws
from sde_toolkit.likelihood.decoders import Decoder, GaussianDensity, IntegratedBins, NormalisedLevels
from sde_toolkit.likelihood.denoising import Denoising, mean_of_repeats, stratified_mean, stratified_uniforms
from sde_toolkit.likelihood.levels import Levels
from sde_toolkit.likelihood.prior import GaussianPrior
from sde_toolkit.likelihood.proposals import Proposal, Sigmoid
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sampling.arguments import check_model, state_dtype
from sde_toolkit.sde import SDE

__all__ = ["Bound", "discrete_bound", "variational_bound"]

StepVariance = Callable[[SDE, Tensor, Tensor], Tensor]
"""(sde, t, s) to the variance v² of the model's step, in the scale of x_s."""


@dataclass(frozen=True, eq=False)
class Bound:
    """Lower bounds on log p(x) in nats per sample, their standard errors, and how they were computed.

    ``nats`` = ``prior`` + ``diffusion`` + ``reconstruction`` + ``log_abs_det``: (n,) float64 on the CPU, signed as
    they add up; log P of the integers where ``levels`` were given, a log density in ``space`` otherwise.
    ``standard_error``: of ``nats``, from the draws of this sample alone; NaN where there was one only. It covers
    the draws of times and noise and nothing else: not how far the bound lies below the log-likelihood, nor the
    network's rounding. Its square is without bias. Of a mean over many samples, two standard errors √Σ se²/n cover
    95 in 100; of a single sample at 8 draws only about 80, since the largest terms are rare. ``log_abs_det``: of
    the transform.
    ``nfe``: evaluations that each sample went through. ``grid``: None for the continuous bound. ``variance``: what was
    passed, None for DDPM's posterior variance. ``draws`` None: every step of the grid, ``repeats`` times.
    ``moments``: the prior that was passed, None for N(0, σ² I).
    """

    nats: Tensor
    standard_error: Tensor
    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor
    log_abs_det: float
    dimension: int
    nfe: int
    seconds: float
    start: float
    end: float
    draws: int | None
    repeats: int
    proposal: Proposal | None
    decoder: Decoder
    levels: Levels | None
    space: str
    seed: int
    grid: Tensor | None = None
    variance: StepVariance | None = None
    moments: GaussianPrior | None = None

    @property
    def bits_per_dim(self) -> Tensor:
        """−nats/(D log 2), (n,): an upper bound of the bits per dimension that the model needs."""
        return -self.nats / (self.dimension * math.log(2))


@torch.no_grad()
def variational_bound(
    model: ScoreModel,
    x: Tensor,
    *,
    draws: int = 32,
    start: float = 1.0,
    end: float | None = None,
    proposal: Proposal | None = None,
    decoder: Decoder | None = None,
    levels: Levels | None = None,
    prior: GaussianPrior | None = None,
    space: Literal["data", "model"] = "data",
    condition: Any = None,
    batch_size: int | None = None,
    seed: int = 0,
    first_index: int = 0,
    progress: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Bound:
    """The continuous-time bound (Kingma et al. 2021, eq. 11-18; Song, Durkan et al. 2021, theorem 3).

    Args:
        model: any score model, in evaluation mode.
        x: (n, *event), in the caller's data space, or in model space with ``space="model"``.
        draws: evaluations per sample, each at a time of its own; stratified, two to a stratum.
        start, end: times, from N(0, σ² I) at ``start`` to the decoder at ``end``; the SDE's ``likelihood_end`` if None.
        proposal: how times are drawn: ``UniformLambda()``, ``UniformTime()``, or ``Sigmoid()``, by default with its
            center moved to the size of the data, by −log σ_d.
        decoder: ``GaussianDensity()`` by default, ``NormalisedLevels()`` (VDM, eq. 12) with ``levels``.
        levels: what the values of discrete data are; the bound is then one on the log-probability of the integers.
        prior: where the model's sampler starts, N(0, σ² I) by default; another one is another model.
        seed, first_index: sample i draws from its own streams (seed, first_index + i), whatever the batch. A decoder
            other than the Gaussian density around x_e/α_e is averaged over as many draws (and evaluations, if it
            denoises).

    The other arguments are those of :func:`~sde_toolkit.sampling.sample`.

    Raises:
        ArgumentError, DataError, GridError: before any evaluation, for whatever does not fit together.
        NonFiniteError: where the network's answer is not finite.
    """
    began = time.perf_counter()
    check_model(model)
    end = model.sde.likelihood_end if end is None else end
    if not (is_number(start) and is_number(end) and 0 <= end < start <= 1):
        raise GridError("start, end", (start, end), "times must satisfy 0 <= end < start <= 1", "Correct them.")
    decoder = decoder or (GaussianDensity() if levels is None else NormalisedLevels())
    proposal = proposal or _usual_proposal(model)
    check_draws("draws", draws)
    request = BoundRequest(
        model=model, x=x, start=start, end=end, decoder=decoder, levels=levels, prior=prior, space=space,
        proposal=proposal, condition=condition, batch_size=batch_size, seed=seed, first_index=first_index,
        progress=progress, dtype=state_dtype(dtype, x if isinstance(x, Tensor) else None), device=device,
    )  # fmt: skip
    denoising = Denoising.prepare(request)
    sde, u = model.sde, stratified_uniforms(seed, first_index, len(x), draws)
    times, weights = proposal.draw(sde, start, end, u)
    errors = denoising.squared_errors(times)
    diffusion, spread = stratified_mean(-weights * torch.exp(2 * sde.half_log_snr(times)) * errors)
    return _bound(denoising, (diffusion, spread), draws, began, draws=draws, repeats=1, proposal=proposal)


@torch.no_grad()
def discrete_bound(
    model: ScoreModel,
    x: Tensor,
    grid: Tensor,
    *,
    variance: StepVariance | None = None,
    draws: int | None = None,
    repeats: int = 1,
    proposal: Proposal | None = None,
    decoder: Decoder | None = None,
    levels: Levels | None = None,
    prior: GaussianPrior | None = None,
    space: Literal["data", "model"] = "data",
    condition: Any = None,
    batch_size: int | None = None,
    seed: int = 0,
    first_index: int = 0,
    progress: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Bound:
    """−(L_T + Σ L_{t−1} + L_0) of the ancestral sampler on ``grid`` (Ho et al. 2020, eq. 5, 8-10, 13).

    Args:
        grid: decreasing times, ``grids.discrete(1000)`` for DDPM's own. The decoder starts from the last time with
            σ > 0: from the last but one where the grid ends at data, its last step being L_0.
        variance: v², a function (sde, t, s): None is the posterior's own, ``forward_variance`` is DDPM's β.
        draws: so many steps, drawn at random for each sample, stand for all: half in proportion to what a step costs
            on data N(0, σ_d² I), half to the mass that ``proposal`` gives it. None: every step, one evaluation each.
        repeats: how often every step is taken; two and more give a standard error.
        decoder: ``GaussianDensity(denoise=True)`` by default, ``IntegratedBins()`` with ``levels`` (eq. 13). Pass
            ``std`` for a σ_1 of your own; the default is σ/α at that time.

    The other arguments are those of :func:`variational_bound`, as are the errors raised.
    """
    began = time.perf_counter()
    check_model(model)
    grid, sde = check_grid(grid), model.sde
    noisy = grid[:-1] if sde.sigma(grid[-1]).item() == 0 else grid
    decoder = decoder or (GaussianDensity(denoise=True) if levels is None else IntegratedBins())
    check_draws("repeats", repeats)
    if draws is not None:
        check_draws("draws", draws)
        if repeats != 1:
            problem = "it counts passes over every step, and draws chooses steps at random"
            raise ArgumentError("repeats", repeats, problem, "Pass one of draws and repeats.")
    elif proposal is not None:
        problem = "every step is taken, and none is drawn"
        raise ArgumentError("proposal", proposal, problem, "Pass draws=100 too, or leave it out.")
    start, end = noisy[0].item(), noisy[-1].item()
    chosen = None if draws is None else proposal or _usual_proposal(model)
    request = BoundRequest(
        model=model, x=x, start=start, end=end, decoder=decoder, levels=levels, prior=prior, space=space,
        proposal=chosen if len(noisy) > 1 else None, condition=condition, batch_size=batch_size, seed=seed,
        first_index=first_index, progress=progress, dtype=state_dtype(dtype, x if isinstance(x, Tensor) else None),
        device=device,
    )  # fmt: skip
    denoising = Denoising.prepare(request)
    mismatch, of_error = _step_costs(sde, noisy, variance)
    n, steps = len(x), len(of_error)
    if steps == 0:
        diffusion, spread = (torch.zeros(n, dtype=torch.float64) for _ in range(2))
    elif chosen is None:
        errors = denoising.squared_errors(noisy[:-1].repeat(repeats).expand(n, -1))
        diffusion, spread = mean_of_repeats(-(of_error * errors.reshape(n, repeats, steps)).sum(2))
    else:
        expected = of_error / (1 + model.sigma_data**2 * torch.exp(2 * sde.half_log_snr(noisy[:-1])))
        p = 0.5 * expected / expected.sum() + 0.5 * chosen.masses(sde, noisy)
        u = stratified_uniforms(seed, first_index, n, draws or 1)
        i = torch.searchsorted(p.cumsum(0), u).clamp(max=steps - 1)
        diffusion, spread = stratified_mean(-(of_error / p)[i] * denoising.squared_errors(noisy[i]))
    diffusion = diffusion - mismatch.sum() * math.prod(x.shape[1:])
    used = {"draws": draws, "repeats": repeats, "proposal": chosen, "grid": grid, "variance": variance}
    return _bound(denoising, (diffusion, spread), draws or repeats, began, **used)


def _usual_proposal(model: ScoreModel) -> Sigmoid:
    """``Sigmoid()``, which is for data of size 1, for data of this model's size."""
    return Sigmoid(center=Sigmoid.center - math.log(model.sigma_data))


def _step_costs(sde: SDE, times: Tensor, variance: StepVariance | None) -> tuple[Tensor, Tensor]:
    """Of each step: nats per dimension for v ≠ κ, and nats per |x − x̂_0|²."""
    t, s = times[:-1], times[1:]
    rest = -torch.expm1(2 * (sde.half_log_snr(t) - sde.half_log_snr(s)))  # 1 − r²
    signal = torch.exp(2 * sde.half_log_snr(s))
    if variance is None:
        return torch.zeros_like(t), 0.5 * signal * rest
    if not callable(variance):
        raise ArgumentError("variance", variance, "not a function (sde, t, s)", "Pass forward_variance, or None.")
    v_squared, posterior = variance(sde, t, s), sde.sigma(s) ** 2 * rest
    if not bool(((v_squared > 0) & v_squared.isfinite()).all()):
        raise ArgumentError("variance", v_squared.tolist(), "not positive", "A step needs some noise to have a KL.")
    excess = (posterior - v_squared) / v_squared
    return 0.5 * (excess - torch.log1p(excess)), 0.5 * (sde.alpha(s) * rest) ** 2 / v_squared


def _bound(denoising: Denoising, diffusion: tuple[Tensor, Tensor], decoded: int, began: float, **used: Any) -> Bound:
    """The terms at both ends beside ``diffusion`` and its standard error; x is decoded so many times."""
    request, y, nfe = denoising.request, denoising.y, denoising.meter.nfe
    term, spread = diffusion
    if request.prior is None:
        start = torch.tensor(request.start, dtype=torch.float64)
        squares = y.cpu().square().reshape(len(y), -1).sum(1)
        forgotten = -0.5 * torch.exp(2 * request.model.sde.half_log_snr(start)) * squares
    else:
        forgotten = -request.prior.kl(y.cpu(), request.start)
    denoising.meter.restart()
    reconstruction, error = denoising.log_reconstruction(decoded)
    return Bound(
        nats=forgotten + term + reconstruction + denoising.log_abs_det,
        standard_error=torch.sqrt(spread**2 + error**2),
        prior=forgotten,
        diffusion=term,
        reconstruction=reconstruction,
        log_abs_det=denoising.log_abs_det,
        dimension=math.prod(y.shape[1:]),
        nfe=nfe + (decoded if request.decoder.denoise else 0),
        seconds=time.perf_counter() - began,
        start=request.start,
        end=request.end,
        decoder=request.decoder,
        levels=request.levels,
        space=request.space,
        moments=request.prior,
        seed=request.seed,
        **used,
    )
