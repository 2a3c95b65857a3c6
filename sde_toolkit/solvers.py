"""Solvers: rows of one table, equation × integrator. This is the file a new solver is added to.

| solver               | equation | integrator                                    |
|----------------------|----------|-----------------------------------------------|
| ``euler_maruyama``   | η = 1    | Euler in t                                    |
| ``probability_flow`` | η = 0    | Heun, Euler in t; TorchDiffEq, Scipy in λ     |
| ``ddpm``             | η = 1    | exponential                                   |
| ``ddim``             | η = 0    | exponential                                   |
"""

from __future__ import annotations

from dataclasses import dataclass

from sde_toolkit.equation import check_eta
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import Euler, Exponential, Heun, Integrator, ddim_noise
from sde_toolkit.integrators.exponential import Variance

__all__ = ["Solver", "ddim", "ddpm", "euler_maruyama", "probability_flow"]


@dataclass(frozen=True)
class Solver:
    """A sampler: the reverse equation at stochasticity ``eta``, times an integrator.

    Any pair is a solver; the functions below name the ones that the field has names for.
    """

    name: str
    eta: float
    integrator: Integrator

    def __post_init__(self) -> None:
        check_eta(self.eta)
        if not isinstance(self.integrator, Integrator):
            problem = "not an Integrator"
            raise ArgumentError("integrator", self.integrator, problem, "Pass an instance, for example Heun().")

    def steps_within(self, nfe: int) -> int | None:
        """The largest number of steps that ``nfe`` evaluations allow; None for adaptive integrators."""
        per_step = self.integrator.evals_per_step
        return None if per_step is None else nfe // per_step


def euler_maruyama(eta: float = 1.0) -> Solver:
    """The reverse SDE, stepped by Euler-Maruyama in t (Song et al. 2021, eq. 6 and appendix D)."""
    return Solver("euler_maruyama", eta, Euler())


def probability_flow(integrator: Integrator | None = None) -> Solver:
    """The probability flow ODE (Song et al. 2021, eq. 13); by default stepped by Heun's method in t."""
    integrator = integrator or Heun()
    return Solver(f"probability_flow[{type(integrator).__name__}]", 0.0, integrator)


def ddpm(variance: Variance | None = None) -> Solver:
    """Ancestral sampling (Ho et al. 2020, algorithm 2): the exponential integrator at η = 1.

    By default the noise is the posterior's (β̃, exact). ``variance`` replaces its variance and nothing else:
    ``forward_variance`` is DDPM's larger choice β, and any function (sde, t, s) -> Tensor may be given.
    """
    name = "ddpm" if variance is None else f"ddpm[{getattr(variance, '__name__', 'variance')}]"
    return Solver(name, 1.0, Exponential(variance=variance))


def ddim(eta: float = 0.0) -> Solver:
    """DDIM (Song et al. 2021a, eq. 12 and 16): the exponential integrator at η = 0, or with the paper's η."""
    name = "ddim" if eta == 0 else f"ddim[eta={eta}]"
    return Solver(name, eta, Exponential(noise=ddim_noise))
