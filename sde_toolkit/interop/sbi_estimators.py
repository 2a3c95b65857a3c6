"""Posteriors of the package sbi as score models: ``from_sbi(posterior, x)``.

    sbi                                        path                                    its network says
    NPSE with "vp", "subvp", "ve"              VPSDE, SubVPSDE, VESDE                  the score at time t
    FMPE                                       α = 1 − t, σ = t + noise_scale          the velocity ε − θ at time t

Time 0 is data in sbi, too. Networks are asked with the observation as their condition. Parameters θ are standardised by
the estimator itself, or, with ``compose_standardization``, by the transform of the score model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sde_toolkit.checks import nested_tuples
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.prediction import Kind
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sde import SDE, VESDE, VPSDE, SubVPSDE, Time
from sde_toolkit.transforms import Affine

__all__ = ["NoisyFlowMatching", "from_sbi", "sbi_density"]


@dataclass(frozen=True)
class NoisyFlowMatching(SDE):
    """α = 1 − t, σ = t + σ_min: the path of sbi's FMPE, which keeps a little noise at t = 0.

    Raises:
        ArgumentError: unless ``noise_scale`` is positive; without noise it is ``FlowMatching``.
    """

    noise_scale: float = 1e-3

    def alpha(self, t: Time) -> Tensor:
        return 1 - t

    def sigma(self, t: Time) -> Tensor:
        return t + self.noise_scale

    def d_alpha(self, t: Time) -> Tensor:
        return -torch.ones_like(t)

    def d_sigma(self, t: Time) -> Tensor:
        return torch.ones_like(t)

    def solve_half_log_snr(self, lambda_t: Tensor) -> Tensor:
        ratio = torch.exp(-lambda_t)  # (t + s)/(1 − t)
        return (ratio - self.noise_scale) / (1 + ratio)


_PATHS: dict[str, tuple[Kind, Callable[[Any], SDE]]] = {
    "VPScoreEstimator": ("score", lambda found: VPSDE(float(found.beta_min), float(found.beta_max))),
    "SubVPScoreEstimator": ("score", lambda found: SubVPSDE(float(found.beta_min), float(found.beta_max))),
    "VEScoreEstimator": ("score", lambda found: VESDE(float(found.sigma_min), float(found.sigma_max))),
    "FlowMatchingEstimator": ("velocity", lambda found: NoisyFlowMatching(float(found.noise_scale))),
}


class _Network(nn.Module):
    """An estimator of sbi, asked as a score model asks its network."""

    def __init__(self, estimator: Any, observation: Tensor | None) -> None:
        super().__init__()
        self.estimator = estimator
        self.condition_shape = tuple(map(int, estimator.condition_shape))
        self.observation: Tensor | None
        self.register_buffer("observation", observation)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        given = self.observation if condition is None else condition
        if given is None:
            remedy = "Pass condition=x with one row per sample, or give from_sbi the observation."
            raise ArgumentError("condition", None, "an estimator of sbi needs an observation", remedy)
        if tuple(given.shape[1:]) != self.condition_shape:
            problem = f"the estimator was trained on observations of shape {self.condition_shape}"
            remedy = "Pass one observation for each sample, (B, *shape)."
            raise ArgumentError("condition", tuple(given.shape), problem, remedy)
        answer: Tensor = self.estimator(x, given.to(x.dtype), time)
        return answer


def from_sbi(posterior: Any, x: Tensor | None = None) -> ScoreModel:
    """The score model of a posterior that sbi has trained with NPSE or FMPE.

    Args:
        posterior: what ``build_posterior`` returns, or the trained estimator.
        x: the observation, of the shape of one simulation; the posterior's ``default_x`` if None. A condition given to
            ``sample`` or ``log_likelihood``, (B, ...) with one observation per sample, goes before it.

    Returns:
        A model with θ as samples, in evaluation mode. It shares the estimator's weights. It knows nothing of the prior:
        sbi rejects samples outside of the prior's support afterwards, and gives them no density.

    Raises:
        ArgumentError: for what is neither; for an estimator whose times do not end at 1; for a wrong observation.
    """
    estimator = _estimator_of(posterior)
    prediction, path = _path_of(estimator)
    x = getattr(posterior, "default_x", None) if x is None else x
    network = _Network(estimator, None if x is None else _observation(estimator, x))
    shape = tuple(map(int, estimator.input_shape))
    model = ScoreModel(
        network, path, prediction, transform=_standardised(estimator), event_shape=shape, sigma_data=_size_of(estimator)
    )
    return model.eval()


def sbi_density(posterior: Any) -> dict[str, Any]:
    """Arguments with which ``log_likelihood(model, theta, ...)`` has the density of ``posterior.log_prob``.

    sbi integrates from its own smallest time to its last one, where it takes the data for a Gaussian of their mean and
    variance. With these the two agree to the solvers' errors where the prior has support.
    """
    estimator = _estimator_of(posterior)
    mean, std = (part.detach().double() for part in (estimator.mean_base, estimator.std_base))

    def log_prior(y: Tensor, t: float) -> Tensor:
        normal = torch.distributions.Normal(mean.to(y.device), std.to(y.device))
        return normal.log_prob(y.double()).flatten(1).sum(1)

    return {"prior": log_prior, "end": float(estimator.t_min)}


def _estimator_of(posterior: Any) -> Any:
    found = getattr(posterior, "vector_field_estimator", posterior)
    if _family(found) is None:
        problem = "neither a posterior nor an estimator of NPSE or FMPE"
        remedy = "Pass inference.build_posterior(), or what inference.train() returned."
        raise ArgumentError("posterior", type(posterior).__name__, problem, remedy)
    return found


def _family(estimator: Any) -> str | None:
    return next((cls.__name__ for cls in type(estimator).__mro__ if cls.__name__ in _PATHS), None)


def _standardised(estimator: Any) -> Affine | None:
    """The map from θ to what the estimator was trained on, if that is another."""
    if not getattr(estimator, "compose_enabled", False):
        return None
    shift, scale = (part.reshape(estimator.input_shape) for part in (estimator._theta_shift, estimator._theta_scale))
    return Affine(nested_tuples(shift), nested_tuples(1 / scale))


def _size_of(estimator: Any) -> float:
    """√E[θ²] from the moments that the estimator keeps, in its own space."""
    squares = (estimator.mean_0.double() ** 2 + estimator.std_0.double() ** 2).mean()
    return float(squares.sqrt())


def _path_of(estimator: Any) -> tuple[Kind, SDE]:
    if float(estimator.t_max) != 1.0:
        problem = "the paths of this package end at t = 1"
        raise ArgumentError("t_max", estimator.t_max, problem, "Train the estimator with t_max=1.")
    prediction, build = _PATHS[str(_family(estimator))]
    return prediction, build(estimator)


def _observation(estimator: Any, x: Tensor) -> Tensor:
    shape = tuple(estimator.condition_shape)
    one = torch.as_tensor(x, dtype=estimator.mean_base.dtype, device=estimator.mean_base.device)
    if one.shape == (1, *shape):
        one = one[0]
    if tuple(one.shape) != shape:
        problem = f"one observation has shape {shape}"
        raise ArgumentError("x", tuple(one.shape), problem, "Pass one of them, or many as condition= of sample.")
    return one[None]
