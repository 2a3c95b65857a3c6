"""A truth: a model whose probability flow is known from fixed noises to a stated error, and whose data can be drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sde_toolkit.checks import check_count, takes_arguments
from sde_toolkit.errors import ArgumentError
from sde_toolkit.jobs.fingerprints import digest, model_fingerprint
from sde_toolkit.jobs.sharing import cut
from sde_toolkit.metrics.jackknife import Resampled
from sde_toolkit.metrics.metric import Estimate
from sde_toolkit.metrics.sliced import SlicedReference
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.noise.streams import Once, generator_for, per_sample_noise
from sde_toolkit.suite.exact_flow import CHUNK, METHOD, ExactFlow, solve_flow
from sde_toolkit.suite.kept_flows import keep_flow, kept_flow

__all__ = ["FlowErrors", "Truth"]

Draw = Callable[[int, torch.Generator], Tensor]
"""(n, generator) to n real samples (n, *event), in model space."""

_BLOCKS = 10  # of either set, left out for the error of a distance
_REAL = 8  # real samples for each sample that is compared with them


@dataclass(frozen=True, eq=False)
class FlowErrors:
    """Errors against the exact flow, as parts of the data's size.

    ``each``: root mean square over the elements of every sample, (n,). ``rmse``: their root mean square, with its
    standard error; ``median``: their median, which a few samples that end in another mode do not change.
    """

    each: Tensor

    @classmethod
    def of(cls, each: Sequence[float]) -> FlowErrors:
        """From plain numbers."""
        return cls(torch.tensor(tuple(each), dtype=torch.float64))

    @property
    def rmse(self) -> float:
        return self.each.square().mean().sqrt().item()

    @property
    def standard_error(self) -> float:
        """Of ``rmse``, by the delta method over samples."""
        if len(self.each) < 2 or self.rmse == 0:
            return math.nan if len(self.each) < 2 else 0.0
        return self.each.square().std().item() / math.sqrt(len(self.each)) / (2 * self.rmse)

    @property
    def median(self) -> float:
        return self.each.median().item()


@dataclass(frozen=True, eq=False)
class Truth:
    """A problem for solvers, with its answer.

    Attributes:
        name: of the rows; for the truths of the package the name of the file.
        model: in evaluation mode, with an ``event_shape``. An exact score (``has_exact_score``) is solved in float64.
        description: which data, which path.
        reason: why the suite has it.
        draw: real samples in model space, as ``draw(n, generator)``; None: those of a mixture.
        n: noises, and samples of every row.
        seed: noise i is the first draw of the stream (seed, i), as in ``sample(model, solver, seed=seed)``.
        resolution: standard deviation, as a part of the data's size, below which directions do not count in
            :meth:`distance`. None: 0.001 for exact scores, 0.05 for networks.

    Raises:
        ArgumentError: for a model without ``event_shape``, or without real samples.
    """

    name: str
    model: ScoreModel
    description: str = ""
    reason: str = ""
    draw: Draw | None = None
    n: int = 256
    seed: int = 0
    resolution: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, ScoreModel):
            raise ArgumentError("model", type(self.model).__name__, "not a ScoreModel", "Pass a GaussianMixture.")
        if self.model.event_shape is None:
            raise ArgumentError("model", type(self.model).__name__, "it has no event_shape", "Build it with one.")
        if self.draw is None and not hasattr(self.model, "draw"):
            problem = "the model cannot draw real samples"
            raise ArgumentError("draw", None, problem, "Pass draw=lambda n, generator: ..., in model space.")
        if self.draw is not None and not (callable(self.draw) and takes_arguments(self.draw, 2)):
            problem = "not a function of a number and a generator"
            raise ArgumentError("draw", self.draw, problem, "Pass draw=lambda n, generator: ..., in model space.")
        check_count("n", self.n, "256 is the default.", least=16)
        check_count("seed", self.seed, "Pass seed=0, for example.", least=0)

    def check(self) -> None:
        """Draw a few real samples, and refuse them if they are not finite samples of the model's shape.

        Raises:
            ArgumentError: naming what ``draw`` returned.
            Exception: from ``draw`` itself, unchanged.
        """
        found, remedy = self._draws(2), f"Return (n, {', '.join(map(str, self.event_shape))}), in model space."
        if not isinstance(found, Tensor) or tuple(found.shape) != (2, *self.event_shape):
            what = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ArgumentError("draw", self.draw, f"asked for 2 samples it returned {what}", remedy)
        if not found.is_floating_point() or not bool(found.isfinite().all()):
            raise ArgumentError("draw", self.draw, "its samples are not finite floating-point numbers", remedy)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.model.event_shape or ())

    @property
    def size(self) -> float:
        """√E[x_0²] of the data in model space, the unit of all errors."""
        return self.model.sigma_data

    @property
    def is_exact(self) -> bool:
        """Whether the score is exact; else it is that of a network, and the flow is the network's."""
        return self.model.has_exact_score

    @property
    def cost(self) -> float:
        """Work of an evaluation of one sample, about; only ratios between truths count."""
        return float(sum(p.numel() for p in (*self.model.parameters(), *self.model.buffers())))

    def noise(self) -> Tensor:
        """The noises (n, *event), standard normal, float32."""
        return per_sample_noise(self.seed, 0, (self.n, *self.event_shape))()

    def start(self, t: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        """The states at time t from which solvers start, σ(t) times the noises."""
        return self.model.sde.sigma(torch.tensor(t, dtype=torch.float64)).to(dtype) * self.noise().to(dtype)

    def flow(self) -> ExactFlow:
        """Where the flow really takes the noises. It is computed once and kept in a folder of the user's cache."""
        found = self.kept_flow()
        if found is None:
            found = ExactFlow.joined([self.solve(first, last) for first, last in self.chunks()])
            keep_flow(self.digest, found)
        return found

    def kept_flow(self) -> ExactFlow | None:
        """The flow, if it has been computed before."""
        return kept_flow(self.digest, (self.n, *self.event_shape))

    def chunks(self) -> list[tuple[int, int]]:
        """The parts (first, last) in which the flow is solved."""
        return cut(self.n, CHUNK)

    def solve(self, first: int, last: int) -> ExactFlow:
        """The flow of the noises ``first`` to ``last`` − 1, solved now."""
        return solve_flow(self.model, self.noise()[first:last])

    def error(self, x: Tensor) -> FlowErrors:
        """Errors of x (n, *event), in model space, where the flow's endpoints should be. x may be its first samples.

        Raises:
            ArgumentError: for another shape.
        """
        if x.ndim != len(self.event_shape) + 1 or tuple(x.shape[1:]) != self.event_shape or not 0 < len(x) <= self.n:
            problem = f"not samples of this truth, ({self.n}, {', '.join(map(str, self.event_shape))})"
            raise ArgumentError("x", tuple(x.shape), problem, "Pass result.x, in model space.")
        apart = x.detach().cpu().double() - self.flow().x[: len(x)]
        return FlowErrors(apart.square().flatten(1).mean(1).sqrt() / self.size)

    def distance(self, x: Tensor) -> Estimate:
        """Sliced Wasserstein distance of x to real samples, in standard deviations of the real ones.

        Both sets are whitened by the covariance of the real samples, so that narrow directions count as much as wide
        ones. Compare it with :meth:`floor`.
        """
        return self.resampled_distance(x).estimate

    def resampled_distance(self, x: Tensor) -> Resampled:
        """:meth:`distance` with the parts of its variance, so that differences can be taken.

        Two sets that started from the same noises and meet the same real samples have much of their error in common.
        """
        return self._others.resample(self._whiten(x).numpy(), _BLOCKS)

    @cached_property
    def floor(self) -> Estimate:
        """The distance of as many other real samples."""
        return self.distance(self._whitening[2])

    @cached_property
    def _others(self) -> SlicedReference:
        """Real samples, whitened."""
        mean, inverse, _, others = self._whitening
        return SlicedReference(((others - mean) @ inverse).numpy())

    @cached_property
    def _whitening(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        drawn = self._draws((1 + _REAL) * self.n)
        held, others = drawn[: self.n], drawn[self.n :].flatten(1).double()
        mean = others.mean(0)
        ridge = (self.resolution or (1e-3 if self.is_exact else 0.05)) * self.size
        values, vectors = torch.linalg.eigh(torch.atleast_2d(torch.cov(others.mT)))
        return mean, vectors / (values.clamp(min=0) + ridge**2).sqrt(), held, others

    def _whiten(self, x: Tensor) -> Tensor:
        mean, inverse, _, _ = self._whitening
        return (x.detach().cpu().double().flatten(1) - mean) @ inverse

    def _draws(self, n: int) -> Tensor:
        generator = generator_for(self.seed, Once.EXACT_SAMPLES)
        draw = self.draw or (lambda n, generator: self.model.draw(n, generator=generator))  # type: ignore[operator]
        return draw(n, generator)

    @cached_property
    def digest(self) -> str:
        """A hash of what the reference depends on: model, noises, and the method of the solve."""
        first = [round(value, 2) for value in self.noise()[:2].flatten()[:8].tolist()]  # whatever the machine rounds
        about = {"model": model_fingerprint(self.model), "n": self.n, "seed": self.seed, "noise": first}
        return digest({**about, "method": METHOD})
