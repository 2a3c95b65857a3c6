"""What a variational bound refuses before its first evaluation, and the data as the bound wants them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.checks import MOST, check_count
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.likelihood.decoders import Decoder, LevelMap
from sde_toolkit.likelihood.defaults import into_model_space
from sde_toolkit.likelihood.denoising import Denoising
from sde_toolkit.likelihood.levels import check_levels
from sde_toolkit.likelihood.prior import GaussianPrior
from sde_toolkit.likelihood.proposals import Proposal
from sde_toolkit.models.conditions import check_condition
from sde_toolkit.models.evaluation_mode import check_evaluation_mode
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.noise.streams import check_stream
from sde_toolkit.sampling.arguments import check_batches, check_shape, device_of
from sde_toolkit.sampling.monitors import Meter

__all__ = ["check_draws", "prepare_bound"]


def prepare_bound(
    model: ScoreModel, x: Any, start: float, end: float, decoder: Any, levels: Any, prior: Any, space: Any,
    proposal: Any, condition: Any, batch_size: Any, seed: int, first_index: int, progress: bool, dtype: Any,
    device: Any,
) -> tuple[Denoising, Tensor | None, float]:  # fmt: skip
    """Everything that can be refused without an evaluation; the places of discrete data; what the transform adds."""
    if not isinstance(x, Tensor):
        raise ArgumentError("x", x, "not a tensor", "Pass a tensor (n, *event).")
    check_levels(levels)
    if levels is None and not x.is_floating_point():
        raise ArgumentError("x", x.dtype, "integers have no density", "Say what their levels are: levels=Levels().")
    check_shape(model, "x", tuple(x.shape), x)
    if space not in ("data", "model") or (levels is not None and space != "data"):
        problem = "unknown" if levels is None else "levels describe the data as they are stored"
        raise ArgumentError("space", space, problem, 'Use "data" or "model".' if levels is None else 'Use "data".')
    if not isinstance(decoder, Decoder) or decoder.of_levels != (levels is not None):
        given = "there are no levels" if levels is None else "the data have levels"
        remedy = "Use GaussianDensity() without levels, NormalisedLevels() or IntegratedBins() with them."
        raise ArgumentError("decoder", decoder, f"it does not fit, since {given}", remedy)
    if prior is not None:
        if not isinstance(prior, GaussianPrior):
            problem = "a bound needs the divergence from it in closed form"
            raise ArgumentError("prior", prior, problem, "Pass GaussianPrior.of_data(model, data), or leave it out.")
        prior.check(tuple(x.shape[1:]))
    check_evaluation_mode(model)
    check_batches(batch_size, dtype)
    check_condition(condition, len(x))
    check_stream(seed, first_index)
    sde = model.sde
    for name, t, fits in (("start", start, math.isfinite(sde.sigma(start).item())), ("end", end, sde.sigma(end) > 0)):
        if not fits:
            raise GridError(name, t, f"σ is {sde.sigma(t).item()} there", "Stay inside; 1e-5 is a usual end.")
    if (decoder.std is None and not sde.alpha(end) > 0) or (not decoder.denoise and not sde.alpha(end) > 0):
        raise GridError("end", end, "α is 0 there, and a decoder has nothing to go by", "Take more steps.")
    if proposal is not None:
        if not isinstance(proposal, Proposal):
            raise ArgumentError("proposal", proposal, "not a proposal", "Pass Sigmoid(), for example.")
        proposal.draw(sde, start, end, torch.full((1,), 0.5, dtype=torch.float64))
    device = torch.device(device) if device is not None else device_of(model, x)
    index, x = None, x.cpu() if x.device.type == "mps" else x  # which has no float64
    if levels is not None:
        levels.check(x)
        index = levels.index(x)
        x = levels.at(index)
        LevelMap(levels, model.transform).spacing(x[:1])
    y, log_abs_det = into_model_space(model, x, space, torch.float64)
    meter = Meter(model, device)
    run = Denoising(model, y, condition, batch_size, seed, first_index, dtype, device, progress, meter)
    return run, index, 0.0 if levels is not None else log_abs_det


def check_draws(name: str, value: Any) -> None:
    """A number of draws, of repeats, ..., at least 1."""
    check_count(name, value, "Pass 32, for example.", most=MOST)
