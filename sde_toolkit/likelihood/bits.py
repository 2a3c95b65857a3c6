"""Bits per dimension of data on levels, by uniform dequantisation.

Integers have no density. With noise u, uniform over a level's bin of width w, they have one, and Jensen's inequality
gives a bound:

    log P(x) = log E_u p(x + u) + D log w  ≥  E_u log p(x + u) + D log w        (Theis et al. 2016, eq. 3)

    bits/dim = −log₂ P(x)/D

p is the density in the caller's data space, the model's transform included: the "+7" and "+8" of other codes are −log₂
of a width in *model* space. With K draws, log (1/K) Σ_k p(x + u_k) bounds more tightly (Burda et al. 2016, eq. 8);
probes' noise inside that logarithm biases it upwards, an exact trace does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.checks import MOST, check_count
from sde_toolkit.errors import ArgumentError
from sde_toolkit.likelihood.flow_density import log_likelihood
from sde_toolkit.likelihood.levels import Levels, check_fits
from sde_toolkit.likelihood.result import LogLikelihood
from sde_toolkit.likelihood.spread import standard_error
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.noise.keyed_draws import KeyedDraws
from sde_toolkit.noise.streams import Purpose, check_stream
from sde_toolkit.ranges import check_range
from sde_toolkit.sampling.arguments import check_model, check_shape, state_dtype

__all__ = ["BitsPerDim", "bits_per_dim", "dequantise"]


@dataclass(frozen=True, eq=False)
class BitsPerDim:
    """Bits per dimension and where their uncertainty comes from. Shapes: (n,) unless said.

    Attributes:
        bits: of every sample, mean over the draws: an upper bound of −log₂ P(x)/D in expectation.
        importance_weighted: the tighter bound from all draws of a sample together; the same for one draw.
        probe_error: standard error of ``bits`` from the divergence's probes; NaN for a single probe. It covers the
            probes alone.
        dequantisation_error: standard error of ``bits`` from the draws of u, each with probes of its own; NaN for a
            single draw. It covers the draws of u and the probes, whose share is in their spread. No error here covers
            the gap of Jensen's inequality, what the prior costs, or the network itself.
        levels: what the data are.
        dimension: D.
        runs: the likelihood of every draw, in model space.
    """

    bits: Tensor
    importance_weighted: Tensor
    probe_error: Tensor
    dequantisation_error: Tensor
    levels: Levels
    dimension: int
    runs: tuple[LogLikelihood, ...]

    @property
    def mean(self) -> float:
        """Mean over the samples."""
        return self.bits.mean().item()

    @property
    def numerical_error(self) -> Tensor | None:
        """Error of the solves, (n,): mean over the draws of :attr:`LogLikelihood.numerical_error`, in bits/dim.

        It covers the path and its quadrature, as there; None without ``richardson=True``.
        """
        errors = [run.numerical_error for run in self.runs]
        found = torch.stack([e for e in errors if e is not None]) if errors[0] is not None else None
        return None if found is None else found.mean(0) / (self.dimension * math.log(2))

    @property
    def importance_weighted_mean(self) -> float:
        """Mean over the samples of the tighter bound."""
        return self.importance_weighted.mean().item()

    @property
    def error_from_probes(self) -> float:
        """Standard error of the mean that more probes would shrink."""
        return _error_of_mean(self.probe_error)

    @property
    def error_from_dequantisation(self) -> float:
        """Standard error of the mean that more draws would shrink; it has the probes' share of their spread in it."""
        return _error_of_mean(self.dequantisation_error)

    @property
    def error_from_data(self) -> float:
        """Standard error of the mean as an estimate for fresh samples: their spread, all else included; NaN for one."""
        return standard_error(self.bits).item()

    @property
    def nfe(self) -> int:
        """Evaluations along the paths, per sample, all draws together."""
        return sum(run.nfe for run in self.runs)

    @property
    def divergence_nfe(self) -> int:
        """Evaluations of the divergence, per sample, all draws together."""
        return sum(run.divergence_nfe for run in self.runs)

    @property
    def seconds(self) -> float:
        """Wall-clock time."""
        return sum(run.seconds for run in self.runs)


def bits_per_dim(
    model: ScoreModel,
    x: Tensor,
    levels: Levels,
    *,
    draws: int = 1,
    generator: torch.Generator | None = None,
    seed: int = 0,
    first_index: int = 0,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> BitsPerDim:
    """Bits per dimension of data on levels, through the exact likelihood of the dequantised data.

    Args:
        model: any score model; its transform takes the data from their own space.
        x: (n, *event) in data space, any dtype, every value one of ``levels``.
        levels: what the values can be; ``Levels()`` are the grey levels 0 to 255.
        draws: of the dequantisation noise, for every sample.
        generator: draws the noise; otherwise that of x[i] comes from the stream (seed, first_index + i).
        options: those of :func:`log_likelihood` (``nfe``, ``divergence``, ``solver``, ``grid``, ``batch_size``, ...);
            ``detail`` is the noise's own standard deviation by default.

    Raises:
        ArgumentError, DataError: before the solve, for values that are no levels, and whatever log_likelihood refuses.
    """
    check_model(model)
    dtype = state_dtype(dtype, x if isinstance(x, Tensor) else None)  # not that of the noise, which is float64
    if not isinstance(levels, Levels):
        raise ArgumentError("levels", levels, "not Levels", "Pass Levels(count, low, high), Levels() for 8 bits.")
    levels.check(x)
    check_shape(model, "x", tuple(x.shape), None)
    check_fits(levels, model.transform)
    check_range(model.transform, x, remedy="Pass the data as the model was trained on, and their levels.")
    for name in ("space", "differentiable"):
        if name in options:
            problem = "bits are counted in data space, from integers"
            raise ArgumentError(name, options[name], problem, "Use log_likelihood on data that you dequantised.")
    event = tuple(x.shape[1:])
    log_abs_det = model.transform.log_abs_det(event)
    D = math.prod(event)
    scale = getattr(model.transform, "finest_scale", math.exp(log_abs_det / D))
    options.setdefault("detail", levels.width * scale / math.sqrt(12))
    runs = []
    for k, noisy in enumerate(dequantise(x, levels, draws, generator=generator, seed=seed, first_index=first_index)):
        y = model.transform.forward(noisy)
        own = _seed_of_draw(seed, k)  # probes of its own
        runs.append(log_likelihood(model, y, space="model", seed=own, first_index=first_index, dtype=dtype, **options))
    shift, unit = log_abs_det + D * math.log(levels.width), D * math.log(2)
    nats = torch.stack([run.nats for run in runs]) + shift  # (K, n): log P, in expectation from below
    return BitsPerDim(
        bits=-nats.mean(0) / unit,
        importance_weighted=-(nats.logsumexp(0) - math.log(draws)) / unit,
        probe_error=torch.stack([run.standard_error for run in runs]).square().mean(0).sqrt() / math.sqrt(draws) / unit,
        dequantisation_error=standard_error(nats) / unit,
        levels=levels,
        dimension=D,
        runs=tuple(runs),
    )


def dequantise(
    x: Tensor,
    levels: Levels,
    draws: int = 1,
    *,
    generator: torch.Generator | None = None,
    seed: int = 0,
    first_index: int = 0,
) -> Sequence[Tensor]:
    """``draws`` versions of x, float64, every value uniform over the bin of its level."""
    levels.check(x)
    check_stream(seed, first_index)
    check_count("draws", draws, "Pass draws=1.", most=MOST)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ArgumentError("generator", generator, "not a torch.Generator", "Leave it out, and pass a seed.")
    values = levels.at(levels.index(x))
    if generator is not None:
        uniform = torch.rand((draws, *x.shape), generator=generator, dtype=torch.float64, device=generator.device)
    else:
        keyed = KeyedDraws(seed, Purpose.DEQUANTISATION, values.device)
        uniform = torch.stack([keyed.uniform(k, first_index, tuple(x.shape)) for k in range(draws)])
    return (values + (uniform.to(values.device) - 0.5) * levels.width).unbind()


def _seed_of_draw(seed: int, k: int) -> int:
    return seed if k == 0 else int(np.random.SeedSequence((seed, k)).generate_state(1)[0])


def _error_of_mean(errors: Tensor) -> float:
    return errors.square().sum().sqrt().item() / len(errors)
