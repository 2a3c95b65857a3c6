"""The result of :func:`log_likelihood`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sde_toolkit.checks import is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import Statistics
from sde_toolkit.likelihood.divergence import Divergence
from sde_toolkit.likelihood.quadrature import Rule
from sde_toolkit.solvers import Solver

__all__ = ["LogLikelihood"]


@dataclass(frozen=True, eq=False)
class LogLikelihood:
    """Log-likelihoods in nats per sample, their errors, and how they were computed. Shapes: (n,) unless said.

    Attributes:
        nats: log p(x), in the space named by ``space``: ``prior + integral + log_abs_det``.
        density_of: in words, whose density p is: that of the probability flow of the model as it was passed, with what
            wraps it. A guided model's flow does not draw from the law that guidance aims at, such as
            p(x | c)^γ p(x)^(1 − γ): docs/guidance.md.
        standard_error: of ``nats``, from the spread of the probes; 0 for an exact trace, NaN for a single probe. It
            covers the probes and nothing else: 0 does not mean that the answer is exact.
        prior: log density of the latent.
        integral: what the flow's divergence adds.
        log_abs_det: of the model's transform; 0 in model space.
        replicates: (P, n), ``nats`` from every probe by itself.
        latent: (n, *event), the state at ``grid[0]``, in model space.
        quadrature_error: estimate of what the nodes miss, given the path: not smaller than that for 95 in 100 samples
            of a network that is smooth in time. Jumps between two nodes are not seen. NaN for ``Joint()``, which has
            the solver's tolerances.
        solver_error: twice the difference to a second solve on every second time and with other nodes; None unless
            ``richardson`` was asked for. See :attr:`numerical_error`.
        truncation: estimate of log p_end(x) − log p_0(x), what stopping at ``end`` adds, to first order in the noise
            that is left: right to 1 in 100 where the density is smooth at that scale. No bound.
        finest: estimate of the scale, in model space, on which the density changes at the data end.
        prior_cost: estimate of |log p_T(x_T) − log N(x_T; 0, σ_T² I)|, what the prior N(0, σ_T² I) costs this sample,
            with a margin: not smaller for 95 in 100 samples. Its mean over the data is above the Kullback-Leibler
            divergence of p_T from the prior. 0 where α_T = 0.
        nfe: evaluations of the network along the path, per sample; those of the coarse path included.
        divergence_nfe: evaluations of the divergence, per sample, each with ``products`` Jacobian products; the most
            that any sample took.
        divergences: those of every sample.
        statistics: accepted and rejected steps of an adaptive solver.
        mode, mode_seconds: how products are taken, and what each way took where it was measured.
        seconds: wall-clock time.
    """

    nats: Tensor
    standard_error: Tensor
    prior: Tensor
    integral: Tensor
    log_abs_det: float
    replicates: Tensor
    latent: Tensor
    quadrature_error: Tensor
    solver_error: Tensor | None
    truncation: Tensor
    finest: float
    prior_cost: Tensor
    nfe: int
    divergence_nfe: int
    divergences: Tensor
    products: int
    statistics: Statistics | None
    solver: Solver
    grid: Tensor
    quadrature: Rule
    divergence: Divergence
    mode: str
    mode_seconds: dict[str, float]
    space: str
    seconds: float
    density_of: str

    @property
    def end(self) -> float:
        """The time at which the path ends, in place of 0."""
        return self.grid[-1].item()

    @property
    def numerical_error(self) -> Tensor | None:
        """``solver_error + quadrature_error``, (n,): the estimated error of the solve; None without ``richardson``.

        Not smaller than the error for 95 in 100 samples of a network that is smooth in time, far outside the data, too;
        on average for 85 in 100 of a network that is not (one told rounded times, or made of straight pieces). It does
        not cover the probes, the truncation, the prior, or the network itself.
        """
        return None if self.solver_error is None else self.solver_error + self.quadrature_error

    @property
    def rejected(self) -> Tensor | None:
        """Rejected steps per sample, None for a solver without error control."""
        return None if self.statistics is None else self.statistics.rejected

    @property
    def tolerances(self) -> tuple[float, float | None] | None:
        """(rtol, atol) of an adaptive solver; an atol of None is rtol · σ_d."""
        integrator = self.solver.integrator
        rtol, atol = (getattr(integrator, name, None) for name in ("rtol", "atol"))
        return None if rtol is None else (rtol, atol)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Lower and upper end of Student's t interval for what infinitely many probes would give; P >= 2.

        It covers the probes' error alone, not the solver's, the quadrature's or the network's. For an exact trace it
        has no width. Student's t needs estimates that are nearly normal: in a few dimensions take Gaussian probes, or
        the exact trace, since in 2 dimensions four Rademacher probes agree one time in eight.
        """
        from scipy.stats import t as student

        if not (is_number(level) and 0 < level < 1):
            raise ArgumentError("level", level, "a probability lies between 0 and 1", "0.95 is the default.")
        degrees = max(len(self.replicates) - 1, 1)
        half = student.ppf(0.5 + level / 2, degrees) * self.standard_error
        return self.nats - half, self.nats + half
