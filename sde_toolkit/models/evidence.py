"""When another manner of asking and reading a network fits its answers better than the declared one.

Errors of both are paired: same samples, same noises. A gain is the log of the ratio of their root mean squares at a
level, and has a standard error. Errors above the trivial ones, those of the best a x_t + b μ, count as these where
skill is meant: noise is no skill, and a network that was trained for a short time may be worse than trivial.

Another manner fits better if all of this holds:

    overall       it has more skill, on average over the levels, by more than chance allows
    somewhere     it is better by 5 % or more at some level, by more than chance allows, and no worse than trivial there
    elsewhere     what it loses in skill at other levels is less than a fifth of what it gains; where it has none, it is
                  not much worse than declared, nor both beside no answer, the mean of what the network is taken for
    knowledge     if the network was asked another question, its answers know no less of x_0, however they are read:
                  otherwise it is only shrunk more, which suits a network that has learned little

These hold for the right declaration beside a wrong one, and for no declaration beside the right one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_toolkit.models.perturbed_trial import Outcome, Trial

__all__ = ["Evidence", "behind_linear", "best_of", "gain", "worse_than_no_answer"]

BETTER = 0.05  # of the error, at some level
FAR_BETTER = 0.7  # of the log of the error, at some level: a factor of two
SURE = 3.0  # standard errors
_LEAST = 5e-4  # of the mean gain in skill
_LOSSES = 0.2  # of the gains
_SOME_SKILL = 0.025
_SHIFTED = 0.03  # of the error, at two levels, when told the time of another level
_NOTHING = 0.10  # of the mean log error, above that of no answer
_MUCH_WORSE = 0.2  # of the log of the error
_FAR_WORSE = 2.5  # times the error of no answer


def best_of(trial: Trial, declared: Outcome, others: list[Outcome]) -> tuple[Outcome, float, float]:
    """That of the most gain in skill on average over the levels, the gain, and its standard error."""
    errors = torch.stack([other.errors for other in others])
    overall, error = _mean(*gain(_skilled(trial, declared.errors), _skilled(trial, errors)))
    k = int(overall.argmax())
    return others[k], overall[k].item(), error[k].item()


class Evidence:
    """For another outcome than the declared one.

    Attributes:
        gains, errors: of the log errors in skill, and their standard errors (levels,); 0 where one is not known.
        overall, error: their mean over the levels, and its standard error.
    """

    def __init__(self, trial: Trial, declared: Outcome, other: Outcome) -> None:
        self.trial, self.declared, self.other = trial, declared, other
        gains, errors = gain(_skilled(trial, declared.errors), _skilled(trial, other.errors))
        self.gains, self.errors = torch.nan_to_num(gains, nan=0.0), torch.nan_to_num(errors, nan=0.0)
        self.overall, self.error = (found.item() for found in _mean(gains, errors))

    def is_better(self, sureness: float = SURE) -> bool:
        """Whether the other manner fits better; ``sureness`` in standard errors."""
        skill, _ = _mean(*gain(self.trial.trivial, _skilled(self.trial, self.other.errors)))
        if skill < _SOME_SKILL or self.overall < _LEAST:
            return False
        if (-self.gains).clamp(min=0.0).sum() > _LOSSES * self.gains.clamp(min=0.0).sum():
            return False
        if self._falls_behind():
            return False
        gains, errors = gain(self.declared.errors, self.other.errors)
        sensible = self.other.errors.mean(1) < 1.1**2 * self.trial.trivial.mean(1)
        least = torch.where(sensible, gains - sureness * errors, -math.inf).nan_to_num(nan=-math.inf).max().item()
        if least < BETTER or (self.overall < sureness * self.error and least < FAR_BETTER):
            return False
        return self._knows_no_less() or least > FAR_BETTER

    def is_better_later(self) -> bool:
        """Whether the network denoises better at two levels when it is told the time of another level."""
        return self.is_better() and int((self.gains - SURE * self.errors > _SHIFTED).sum()) >= 2

    def _falls_behind(self) -> bool:
        """Whether it is much worse than declared somewhere, where neither may have any skill."""
        unskilled = ~(self.other.errors.mean(1) < self.trial.trivial.mean(1))
        behind = -gain(self.declared.errors, self.other.errors)[0]
        own, other = (_to_no_answer(self.trial, outcome) for outcome in (self.declared, self.other))
        return bool((unskilled & (behind.minimum(torch.log(other / own)) > _MUCH_WORSE)).any())

    def _knows_no_less(self) -> bool:
        if self.declared.fitted is None or self.other.fitted is None:
            return True
        overall, error = _mean(*gain(self.declared.fitted, self.other.fitted))
        return bool(overall >= -error)


def gain(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """log of the ratio of the root mean squares of errors (..., levels, n), and its standard error (..., levels)."""
    a, b = before.mean(-1), after.mean(-1)
    spread = before / a.unsqueeze(-1) - after / b.unsqueeze(-1)
    error = 0.5 * spread.std(-1) / math.sqrt(before.shape[-1])
    gains = 0.5 * torch.log(a / b)
    return gains, torch.where(gains.isinf(), 0.0, error)


def worse_than_no_answer(trial: Trial, declared: Outcome) -> Tensor | None:
    """The ratio (levels,) of the errors to those of a network that always answers the mean of its target.

    None if this does not tell: a network that was trained for a short time is worse at levels that it has seldom seen.
    It tells if the ratio is above 1 on average, or far above at several levels.
    """
    ratio = _to_no_answer(trial, declared)
    far = int((ratio > _FAR_WORSE).sum()) >= len(ratio) / 8
    return ratio if far or not ratio.log().mean().item() < _NOTHING else None


def _to_no_answer(trial: Trial, outcome: Outcome) -> Tensor:
    return (outcome.errors.mean(1) / trial.of_no_answer(outcome.manner)).sqrt()


def behind_linear(trial: Trial, declared: Outcome) -> Tensor:
    """The levels at which a linear denoiser is better by 10 % or more, by more than chance allows."""
    gains, errors = gain(declared.errors, trial.linear)
    return torch.nonzero(gains - SURE * errors > 0.1).flatten()


def _skilled(trial: Trial, errors: Tensor) -> Tensor:
    """Errors (..., levels, n); those of the trivial answer where they are above these on average."""
    worse = ~(errors.mean(-1) < trial.trivial.mean(-1)) & ~errors.isnan().any(-1)
    return torch.where(worse.unsqueeze(-1), trial.trivial, errors)


def _mean(gains: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    """Over the levels; a level that one of two SDEs does not reach counts as no gain."""
    known = ~(gains.isnan() | gains.isinf())
    overall = torch.where(known, gains, 0.0).mean(-1)
    return overall, torch.where(known, errors, 0.0).square().sum(-1).sqrt() / gains.shape[-1]
