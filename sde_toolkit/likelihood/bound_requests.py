"""What a variational bound is asked, and what it refuses before its first evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.checks import MOST, check_count
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.likelihood.decoders import Decoder
from sde_toolkit.likelihood.levels import Levels, check_levels
from sde_toolkit.likelihood.prior import GaussianPrior
from sde_toolkit.likelihood.proposals import Proposal
from sde_toolkit.models.conditions import check_condition
from sde_toolkit.models.evaluation_mode import check_evaluation_mode
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.noise.streams import check_stream
from sde_toolkit.sampling.arguments import check_batches, check_shape, device_of

__all__ = ["BoundRequest", "check_draws"]


@dataclass(frozen=True, eq=False)
class BoundRequest:
    """One call of a bound; the docstring of :func:`variational_bound` says what the fields mean.

    ``start``, ``end``: the times between which the model's steps lie. ``proposal``: None where no time is drawn.
    """

    model: ScoreModel
    x: Tensor
    start: float
    end: float
    decoder: Decoder
    levels: Levels | None
    prior: GaussianPrior | None
    space: str
    proposal: Proposal | None
    condition: Any
    batch_size: int | None
    seed: int
    first_index: int
    progress: bool
    dtype: torch.dtype
    device: torch.device | str | None

    def check(self) -> None:
        """Refuse whatever does not fit together, without an evaluation.

        Raises:
            ArgumentError, GridError: naming the argument.
        """
        self._check_data()
        self._check_parts()
        check_evaluation_mode(self.model)
        check_batches(self.batch_size, self.dtype)
        check_condition(self.condition, len(self.x))
        check_stream(self.seed, self.first_index)
        self._check_times()

    def _check_data(self) -> None:
        x: Any = self.x
        levels = self.levels
        if not isinstance(x, Tensor):
            raise ArgumentError("x", x, "not a tensor", "Pass a tensor (n, *event).")
        check_levels(levels)
        if levels is None and not x.is_floating_point():
            problem = "integers have no density"
            raise ArgumentError("x", x.dtype, problem, "Say what their levels are: levels=Levels().")
        check_shape(self.model, "x", tuple(x.shape), x)
        if self.space not in ("data", "model") or (levels is not None and self.space != "data"):
            problem = "unknown" if levels is None else "levels describe the data as they are stored"
            remedy = 'Use "data" or "model".' if levels is None else 'Use "data".'
            raise ArgumentError("space", self.space, problem, remedy)

    def _check_parts(self) -> None:
        decoder: Any = self.decoder
        prior: Any = self.prior
        if not isinstance(decoder, Decoder) or decoder.of_levels != (self.levels is not None):
            given = "there are no levels" if self.levels is None else "the data have levels"
            remedy = "Use GaussianDensity() without levels, NormalisedLevels() or IntegratedBins() with them."
            raise ArgumentError("decoder", decoder, f"it does not fit, since {given}", remedy)
        if prior is not None:
            if not isinstance(prior, GaussianPrior):
                problem = "a bound needs the divergence from it in closed form"
                remedy = "Pass GaussianPrior.of_data(model, data), or leave it out."
                raise ArgumentError("prior", prior, problem, remedy)
            prior.check(tuple(self.x.shape[1:]))

    def _check_times(self) -> None:
        sde, start, end, decoder = self.model.sde, self.start, self.end, self.decoder
        proposal: Any = self.proposal
        finite, noisy = math.isfinite(sde.sigma(start).item()), sde.sigma(end) > 0
        for name, t, fits in (("start", start, finite), ("end", end, noisy)):
            if not fits:
                raise GridError(name, t, f"σ is {sde.sigma(t).item()} there", "Stay inside; 1e-5 is a usual end.")
        if (decoder.std is None or not decoder.denoise) and not sde.alpha(end) > 0:
            raise GridError("end", end, "α is 0 there, and a decoder has nothing to go by", "Take more steps.")
        if proposal is not None:
            if not isinstance(proposal, Proposal):
                raise ArgumentError("proposal", proposal, "not a proposal", "Pass Sigmoid(), for example.")
            proposal.draw(sde, start, end, torch.full((1,), 0.5, dtype=torch.float64))

    def place(self) -> torch.device:
        """The device to compute on."""
        return device_of(self.model, self.x) if self.device is None else torch.device(self.device)


def check_draws(name: str, value: Any) -> None:
    """A number of draws, of repeats, ..., at least 1."""
    check_count(name, value, "Pass 32, for example.", most=MOST)
