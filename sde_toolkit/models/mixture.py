"""Score models whose score is exact: Gaussians and mixtures of Gaussians. Everything else is measured against them.

If the data are Σ_k w_k N(m_k, C_k), then x_t is Σ_k w_k N(α m_k, S_k) with S_k = α² C_k + σ² I, and for a
single component, with d = x_t − α m:

    ε̂ = σ S⁻¹ d        x̂_0 = m + α C S⁻¹ d        v = α ε̂ − σ x̂_0

A mixture averages these with the posterior weights of its components. The model's native output is v, which
keeps its accuracy at both ends of time: x̂_0 read from ε is lost where α → 0, ε read from x̂_0 where σ → 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from sde_toolkit.batching import as_floating, expand_to
from sde_toolkit.checks import all_hold, is_differentiated
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.components import Components, components_of
from sde_toolkit.models.exact_posterior import Linear, StdOrCovariance, seen_through
from sde_toolkit.models.prediction import Kind, Prediction
from sde_toolkit.models.row_products import row_products, with_derivatives_of
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.time_inputs import ScaledTime
from sde_toolkit.networks.normalisation import transforms_active
from sde_toolkit.sde import SDE, Time

__all__ = ["GaussianMixture", "MixtureNetwork", "gaussian"]

_Mixture = TypeVar("_Mixture", bound="GaussianMixture")


class MixtureNetwork(nn.Module):
    """v of a Gaussian mixture at (x, t); covariances as axes (if any) and variances along them."""

    log_weights: Tensor
    means: Tensor
    variances: Tensor
    axes: Tensor | None

    def __init__(self, sde: SDE, components: Components) -> None:
        super().__init__()
        self.sde = sde
        self.register_buffer("log_weights", components.log_weights)  # (K,)
        self.register_buffer("means", components.means)  # (K, D)
        self.register_buffer("variances", components.variances)  # (K, D)
        self.register_buffer("axes", components.axes)  # (K, D, D), columns are eigenvectors, or None

    def components(self) -> Components:
        return Components(self.log_weights, self.means, self.variances, self.axes)

    def after(self, components: Components, log_likelihood: Tensor) -> MixtureNetwork:
        """The network of these components, whose weights have been multiplied by the likelihoods (K,)."""
        log_weights = torch.log_softmax(components.log_weights + log_likelihood, dim=0)
        return MixtureNetwork(self.sde, replace(components, log_weights=log_weights))

    def weights_given(self, x: Tensor, condition: Any) -> Tensor:
        """The log-weights (K,), or (B, K) under a condition, for a batch ``x``. Without classes there is none.

        Raises:
            ArgumentError: for a condition.
        """
        if condition is not None:
            remedy = "Leave it out, or build a ClassMixture, whose condition is a class."
            raise ArgumentError("condition", condition, "this mixture has no classes", remedy)
        return self.log_weights

    def forward(self, x: Tensor, time: Tensor, condition: Any = None) -> Tensor:
        return self._v(self._flat(x), time, self.weights_given(x, condition)).reshape(x.shape).to(x.dtype)

    def _v(self, flat: Tensor, time: Tensor, log_weights: Tensor) -> Tensor:
        """v at x (B, D)."""
        alpha, sigma, means, log_density, scaled = self._whiten(flat, time, log_weights)
        slope = alpha * sigma * (1 - self.variances.to(flat))
        v = slope * scaled  # α ε̂ − σ (x̂_0 − m), along the axes
        others = (alpha, sigma, self.means, self.variances, self.log_weights)
        with_derivatives = torch.compiler.is_compiling() or transforms_active() or is_differentiated(flat)
        if with_derivatives and self.axes is None and not any(is_differentiated(c) for c in (time, *others)):
            return self._averaged(flat, alpha, sigma, log_density, v - sigma * means, slope)
        if self.axes is not None:
            v = torch.einsum("kij,bkj->bki", self.axes.to(flat), v)
        v = v - sigma * means
        return (torch.softmax(log_density, dim=1).unsqueeze(-1) * v).sum(1)

    def score(self, x: Tensor, time: Tensor, condition: Any = None) -> Tensor:
        """∇ log p_t(x) = −Σ_k r_k S_k⁻¹ d_k, also where σ = 0 and it cannot be read from v."""
        _, _, _, log_density, scaled = self._whiten(self._flat(x), time, self.weights_given(x, condition))
        if self.axes is not None:
            scaled = torch.einsum("kij,bkj->bki", self.axes.to(scaled), scaled)
        score = -(torch.softmax(log_density, dim=1).unsqueeze(-1) * scaled).sum(1)
        return score.reshape(x.shape).to(x.dtype)

    def _flat(self, x: Tensor) -> Tensor:
        """(B, *event) to (B, D), in float64 where there is any: far from the data log densities are large numbers, and
        the weights of the components are their differences.

        Raises:
            ArgumentError: for another number of elements.
        """
        D = self.means.shape[1]
        if x[:1].numel() != D and x.shape[0] > 0:
            problem = f"an event of shape {tuple(x.shape[1:])} has another number of elements than the mixture's, {D}"
            raise ArgumentError("x", tuple(x.shape), problem, "Pass x of shape (n, *event).")
        flat = x.reshape(x.shape[0], D)
        return flat if x.device.type == "mps" else flat.to(torch.float64)

    def _averaged(
        self, x: Tensor, alpha: Tensor, sigma: Tensor, log_density: Tensor, v: Tensor, slope: Tensor
    ) -> Tensor:
        """Σ_k r_k v_k for components along the coordinate axes, so that a derivative costs products of matrices.

        Values are sums over differences x − α m_k: exact where components are narrow, and the same bits whatever the
        batch. Derivatives are those of the same polynomials multiplied out, log w_k N = −½ (x² − 2 α m_k x)/S_k + ...
        and v_k = slope x/S_k + ..., which need no (B, K, D) intermediate of their own for every direction.
        """
        spread = alpha**2 * self.variances.to(x) + sigma**2  # (B or 1, K, D)
        pull = alpha * self.means.to(x) / spread
        B = x.shape[0]
        pulled, squeezed = (M.mT.expand(B, -1, -1) for M in (pull, 1 / spread))
        quadratic = row_products(x, pulled) - 0.5 * row_products(x * x, squeezed)
        weights = torch.softmax(with_derivatives_of(log_density, quadratic), dim=1)
        slopes = row_products(weights, (slope / spread).expand(B, -1, -1))
        polynomial = row_products(weights, v.detach()) + slopes * (x - x.detach())
        return with_derivatives_of((weights.unsqueeze(-1) * v).sum(1), polynomial)

    def log_prob(self, x: Tensor, time: Tensor, condition: Any = None) -> Tensor:
        log_density = self._whiten(self._flat(x), time, self.weights_given(x, condition))[3]
        return torch.logsumexp(log_density, dim=1).to(x.dtype)

    def _whiten(self, flat: Tensor, time: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """α, σ (B, 1, 1), the means (K, D), log(w_k N(x; k)) (B, K), and S_k⁻¹ d along the axes (B, K, D)."""
        t = time.to(torch.float64)
        if t.stride() == (0,):  # one time for the whole batch
            t = t[:1]
        alpha, sigma = (c.to(flat).reshape(-1, 1, 1) for c in (self.sde.alpha(t), self.sde.sigma(t)))
        means, variances = self.means.to(flat), self.variances.to(flat)
        spread = alpha**2 * variances + sigma**2
        d = flat.unsqueeze(1) - alpha * means
        if self.axes is not None:
            d = torch.einsum("kji,bkj->bki", self.axes.to(flat), d)
        scaled = d / spread
        log_density = -0.5 * (d * scaled + torch.log(2 * math.pi * spread)).sum(-1)
        return alpha, sigma, means, log_weights.to(flat) + log_density, scaled


@dataclass(frozen=True)
class ExactPrediction(Prediction):
    """The prediction of a mixture. Its score is computed without a division by σ."""

    network: MixtureNetwork = field(kw_only=True, repr=False)
    condition: Any = field(default=None, kw_only=True, repr=False)

    def view(self, kind: Kind) -> Tensor:
        """As that of a network, and finite at σ = 0: the score is computed, the velocity is f x − ½ g² score there."""
        if kind not in ("score", "velocity"):
            return super().view(kind)
        score = self.network.score(self.x_t, self.readout.t.expand(self.x_t.shape[0]), self.condition)
        if kind == "score":
            return score
        read, sde, t = super().view("velocity"), self.readout.sde, self.readout.t
        f, half = (expand_to(c.to(self.x_t), self.x_t) for c in (sde.f(t), 0.5 * sde.g(t) ** 2))
        return torch.where(read.isfinite(), read, f * self.x_t - half * score)


class GaussianMixture(ScoreModel):
    """A mixture of K Gaussians under any SDE: exact score, exact ``log_prob`` at every time.

    Args:
        means: (K, *event). The model is on their device.
        sde: the forward process.
        std: standard deviations of the components along the coordinate axes: a number, (K,), or (K, *event).
        covariances: full covariances instead, (K, D, D), D the number of elements of an event.
        weights: (K,), positive; normalised here. Equal by default.

    Raises:
        ArgumentError: shapes that do not fit, weights or variances that are not positive (zero is allowed
            for variances: a point mass), covariances that are not symmetric positive semi-definite.
    """

    network: MixtureNetwork

    has_exact_score: ClassVar[bool] = True

    def __init__(
        self,
        means: Any,
        sde: SDE,
        *,
        std: Any = None,
        covariances: Any = None,
        weights: Any = None,
    ) -> None:
        means = torch.as_tensor(means, dtype=torch.float64)
        components = components_of(means, std, covariances, weights)
        self._set_up(MixtureNetwork(sde, components), tuple(means.shape[1:]))

    def _set_up(self, network: MixtureNetwork, event_shape: tuple[int, ...]) -> None:
        """Make this the score model of an exact network."""
        parts = network.components()
        square = (parts.log_weights.exp().unsqueeze(1) * (parts.means**2 + parts.variances)).sum(0).mean().item()
        size = math.sqrt(square) if square > 0 else 1.0
        super().__init__(
            network, network.sde, "v", time_input=ScaledTime(1.0), event_shape=event_shape, sigma_data=size
        )
        self._has_points = bool((parts.variances == 0).any())

    def forward(self, x_t: Tensor, t: Time, condition: Any = None) -> ExactPrediction:
        """As that of every score model; its score and velocity are finite at σ = 0, too."""
        said = super().forward(x_t, t, condition)
        return ExactPrediction(said.x_t, said.output, said.readout, network=self.network, condition=condition)

    def log_prob(self, x: Tensor, t: Time = 0.0, condition: Any = None) -> Tensor:
        """log p_t(x) in nats per sample, exact. Shapes: x (B, *event) to (B,); t scalar or (B,).

        Raises:
            ArgumentError: for events of another shape, a condition, or a point mass at σ = 0, where it has no density.
        """
        x = as_floating(x)
        if x.ndim == 0 or tuple(x.shape[1:]) != self.event_shape:
            problem = f"the mixture is of events of shape {self.event_shape}"
            raise ArgumentError("x", tuple(x.shape), problem, "Pass x of shape (n, *event), one row a sample.")
        time = torch.as_tensor(t, dtype=torch.float64, device=x.device)
        expand_to(time, x)  # refuses a t that does not fit x
        if self._has_points and all_hold(self.sde.sigma(time) > 0) is False:
            problem = "σ is 0 there, and a component without a spread has no density"
            raise ArgumentError("t", time.flatten()[:4].tolist(), problem, "Pass a later time, or std > 0.")
        return self.network.log_prob(x, time.expand(len(x)), condition)

    def posterior(self: _Mixture, A: Linear, y: Any, noise: StdOrCovariance) -> _Mixture:
        """The law of x given y = A x + noise: a mixture too, in closed form, under the same SDE.

        Args:
            A: a matrix (m, D), or a linear function from (B, *event) to (B, *measured).
            y: the measurement, (*measured).
            noise: standard deviation of the Gaussian noise: a number, or (*measured); or its covariance (m, m). It may
                be 0. What y fixes has then no variance left, and the posterior no density at σ = 0.

        Raises:
            ArgumentError: a map that is not linear, y or noise of another shape, and a noise of 0 where no x gives
                this y, or where a component has no spread along a row of A.
        """
        components, log_likelihood = seen_through(self.network.components(), A, y, noise, self._events)
        made = type(self).__new__(type(self))
        made._set_up(self.network.after(components, log_likelihood).to(self.network.means.device), self._events)
        return made

    def log_evidence(self, A: Linear, y: Any, noise: StdOrCovariance) -> float:
        """log p(y) in nats for y = A x + noise: arguments and errors as in :meth:`posterior`.

        Without noise, a density on the range of A.
        """
        components, log_likelihood = seen_through(self.network.components(), A, y, noise, self._events)
        return torch.logsumexp(components.log_weights + log_likelihood, dim=0).item()

    @property
    def _events(self) -> tuple[int, ...]:
        return self.event_shape or ()

    def draw(self, n: int, *, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """n exact samples of the data distribution, (n, *event)."""
        weights = self.network.log_weights.exp().cpu()
        return self._draw_from(torch.multinomial(weights, n, replacement=True, generator=generator), generator, dtype)

    def _draw_from(self, k: Tensor, generator: torch.Generator | None, dtype: torch.dtype) -> Tensor:
        """A sample of each of the components ``k`` (n,)."""
        parts = self.network.components().to(torch.device("cpu"))
        z = torch.randn((len(k), parts.means.shape[1]), generator=generator, dtype=torch.float64)
        z = z * parts.variances.sqrt()[k]
        if parts.axes is not None:
            z = torch.einsum("bij,bj->bi", parts.axes[k], z)
        return (parts.means[k] + z).reshape(len(k), *self._events).to(dtype)


def gaussian(mean: Any, sde: SDE, *, std: Any = None, covariance: Any = None) -> GaussianMixture:
    """One Gaussian: ``mean`` of shape (*event), ``std`` a number or (*event), or ``covariance`` (D, D)."""
    std = None if std is None else torch.as_tensor(std, dtype=torch.float64).unsqueeze(0)
    covariances = None if covariance is None else torch.as_tensor(covariance, dtype=torch.float64).unsqueeze(0)
    mean = torch.as_tensor(mean, dtype=torch.float64).unsqueeze(0)
    return GaussianMixture(mean, sde, std=std, covariances=covariances)
