"""Solvers: rows of one table, equation × integrator. New solvers are added in this file.

docs/solvers.md has the whole table, generated from these functions: equation, integrator, declared orders, and the
references in their docstrings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

from sde_toolkit.equation import check_eta
from sde_toolkit.errors import ArgumentError
from sde_toolkit.grids import karras, quadratic, uniform, uniform_lambda
from sde_toolkit.integrators import (
    AdamsBashforth,
    AdaptiveSDE,
    Ancestral,
    ChurnedHeun,
    Coordinate,
    Corrected,
    DPMSolver2,
    DPMSolver2S,
    DPMSolver3,
    DPMSolver3S,
    Euler,
    Exponential,
    FrozenNoise,
    Heun,
    Integrator,
    Langevin,
    LearnedVariance,
    Multistep,
    NoiseToSignal,
    PredictorCorrector,
    ReverseDiffusion,
    RungeKutta4,
    Time,
    bh2,
    ddim_noise,
    expected_norms,
)
from sde_toolkit.integrators.exponential import VarianceRule
from sde_toolkit.integrators.interpolation import TwoPoint
from sde_toolkit.sde import SDE

__all__ = [
    "Solver",
    "adaptive_sde",
    "ddim",
    "ddpm",
    "ddpm_learned",
    "deis",
    "dpm2_ancestral",
    "dpm_solver_2",
    "dpm_solver_3",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_2s_ancestral",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_3s",
    "dpmpp_sde",
    "edm_stochastic",
    "euler_ancestral",
    "euler_maruyama",
    "heun",
    "ipndm",
    "pc",
    "probability_flow",
    "reverse_diffusion",
    "rk4",
    "sa_solver",
    "unipc",
]


GridBuilder: TypeAlias = Callable[[SDE, int], Tensor]
"""(sde, steps) to steps + 1 decreasing times: the builders of :mod:`sde_toolkit.grids`. They take ``start=``, too."""


@dataclass(frozen=True)
class Solver:
    """The reverse equation at stochasticity ``eta``, an integrator, and the grid that is usual for the two.

    Any pair is a solver; the functions below give the solvers of the literature. ``usual_grid`` builds the grid of
    ``sample(model, solver, steps=20)``. It does not count in comparisons: two solvers with the same name, eta and
    integrator are equal.

    Raises:
        ArgumentError: if ``eta`` is negative or not finite, ``integrator`` is not an :class:`Integrator`, or
            ``usual_grid`` is not a function.
    """

    name: str
    eta: float
    integrator: Integrator
    usual_grid: GridBuilder = field(default=uniform, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_eta(self.eta)
        if not callable(self.usual_grid):
            problem, remedy = "not a function (sde, steps)", "Pass a builder such as grids.uniform_lambda."
            raise ArgumentError("usual_grid", self.usual_grid, problem, remedy)
        if not isinstance(self.integrator, Integrator):
            problem = "not an Integrator"
            raise ArgumentError("integrator", self.integrator, problem, "Pass an instance, for example Heun().")


def euler_maruyama(eta: float = 1.0) -> Solver:
    """The reverse SDE, stepped by Euler-Maruyama in t (Song et al. 2021, eq. 6 and appendix D).

    The paper takes 1000 equal steps in t. Its usual grid here is ``quadratic``: at a few dozen evaluations equal steps
    leave almost none where the data take shape.
    """
    return Solver("euler_maruyama", eta, Euler(), quadratic)


def probability_flow(integrator: Integrator | None = None) -> Solver:
    """The probability flow ODE (Song et al. 2021, eq. 13); by default stepped by Heun's method in t.

    Its usual grid is ``quadratic``, for the same reason as that of :func:`euler_maruyama`.
    """
    integrator = integrator or Heun(Time())
    return Solver(f"probability_flow[{type(integrator).__name__}]", 0.0, integrator, quadratic)


def ddpm(variance: VarianceRule | None = None) -> Solver:
    """Ancestral sampling (Ho et al. 2020, algorithm 2): the exponential integrator at η = 1.

    By default the noise is the posterior's (β̃, exact). ``variance`` replaces its variance and nothing else:
    ``forward_variance`` is DDPM's larger choice β, and any function (sde, t, s) -> Tensor may be given.
    """
    name = "ddpm" if variance is None else f"ddpm[{getattr(variance, '__name__', 'variance')}]"
    return Solver(name, 1.0, Exponential(variance=variance))


def ddpm_learned() -> Solver:
    """Ancestral sampling with the variance that the network learned (Nichol & Dhariwal 2021, eq. 15); else β̃."""
    return Solver("ddpm_learned", 1.0, LearnedVariance())


def ddim(eta: float = 0.0) -> Solver:
    """DDIM (Song et al. 2021a, eq. 12 and 16): the exponential integrator at η = 0, or with the paper's η."""
    name = "ddim" if eta == 0 else f"ddim[eta={eta}]"
    return Solver(name, eta, Exponential(noise=ddim_noise))


def heun() -> Solver:
    """The flow by Heun's method in (x/α, σ/α), EDM's deterministic sampler (Karras et al. 2022, algorithm 1)."""
    return Solver("heun", 0.0, Heun(NoiseToSignal()), karras)


def edm_stochastic(
    S_churn: float = 40.0, S_tmin: float | None = None, S_tmax: float | None = None, S_noise: float = 1.0
) -> Solver:
    """EDM's stochastic sampler: Heun with churn (Karras et al. 2022, algorithm 2; the interval of table 5).

    ``S_tmin``, ``S_tmax`` are noise levels σ/α; None is 0.1 and 100 times the model's ``sigma_data``: the paper uses
    0.05 and 50 for data of size 0.5. The paper's S_noise is 1.003 to 1.007 for networks that denoise too much;
    1 keeps the marginals.
    """
    return Solver("edm_stochastic", 0.0, ChurnedHeun(S_churn, S_tmin, S_tmax, S_noise), karras)


def rk4(coordinate: Coordinate | None = None) -> Solver:
    """The flow by the classical Runge-Kutta method, four evaluations per step (Kutta 1901)."""
    return Solver("rk4", 0.0, RungeKutta4(coordinate or NoiseToSignal()), karras)


def dpm_solver_2(r: float = 0.5) -> Solver:
    """DPM-Solver-2, single step, noise prediction; k-diffusion's DPM2 (Lu et al. 2022a, algorithm 1)."""
    return Solver("dpm_solver_2", 0.0, DPMSolver2(r), uniform_lambda)


def dpm_solver_3() -> Solver:
    """DPM-Solver-3, single step, noise prediction (Lu et al. 2022a, algorithm 2)."""
    return Solver("dpm_solver_3", 0.0, DPMSolver3(), uniform_lambda)


def dpmpp_2s() -> Solver:
    """DPM-Solver++(2S), single step, data prediction (Lu et al. 2022b, algorithm 1)."""
    return Solver("dpmpp_2s", 0.0, DPMSolver2S(), uniform_lambda)


def dpmpp_3s() -> Solver:
    """DPM-Solver++(3S), single step, data prediction (Lu et al. 2022b, appendix B)."""
    return Solver("dpmpp_3s", 0.0, DPMSolver3S(), uniform_lambda)


def dpmpp_sde(eta: float = 1.0) -> Solver:
    """SDE-DPM-Solver++, single step of two evaluations; k-diffusion's dpmpp_sde (Lu et al. 2022b, appendix A)."""
    return Solver(_named("dpmpp_sde", eta, 1.0), eta, DPMSolver2S(), karras)


def dpmpp_2m() -> Solver:
    """DPM-Solver++(2M): data prediction, two values, the midpoint rule (Lu et al. 2022b, algorithm 2)."""
    return Solver("dpmpp_2m", 0.0, Multistep(2, two_point=bh2), uniform_lambda)


def dpmpp_3m() -> Solver:
    """DPM-Solver++(3M): three values, the polynomial integrated exactly (Lu et al. 2022b, section 4.2).

    Third order. diffusers and k-diffusion halve the second difference's term and are of second order.
    """
    return Solver("dpmpp_3m", 0.0, Multistep(3), uniform_lambda)


def dpmpp_2m_sde(eta: float = 1.0) -> Solver:
    """SDE-DPM-Solver++(2M), k-diffusion's "midpoint" (Lu et al. 2022b, appendix A)."""
    return Solver(_named("dpmpp_2m_sde", eta, 1.0), eta, Multistep(2, two_point=bh2), karras)


def dpmpp_3m_sde(eta: float = 1.0) -> Solver:
    """SDE-DPM-Solver++(3M): three values, the polynomial integrated exactly (Lu et al. 2022b, appendix A)."""
    return Solver(_named("dpmpp_3m_sde", eta, 1.0), eta, Multistep(3), karras)


def deis(order: int = 3) -> Solver:
    """tAB-DEIS: noise prediction, the polynomial in t (Zhang & Chen 2023, eq. 14 and 15)."""
    return Solver(f"deis[{order}]", 0.0, Multistep(order, FrozenNoise(), Time()), quadratic)


def ipndm(order: int = 4) -> Solver:
    """iPNDM: noise prediction, constant Adams-Bashforth weights of ``order`` values (Zhang & Chen 2023, appendix)."""
    return Solver(f"ipndm[{order}]", 0.0, AdamsBashforth(order), karras)


def unipc(order: int = 2, variant: TwoPoint = bh2) -> Solver:
    """UniPC-p, data prediction, of order p + 1; ``variant``: bh1 or bh2 (Zhao et al. 2023, algorithms 1 and 2)."""
    name = f"unipc[{order}, {getattr(variant, '__name__', 'variant')}]"
    return Solver(name, 0.0, Corrected(Multistep(order, two_point=variant)), uniform_lambda)


def sa_solver(eta: float = 1.0, order: int = 2, variant: TwoPoint | None = None) -> Solver:
    """SA-Solver: stochastic Adams predictor and corrector, η its τ (Xue et al. 2023, eq. 14 and 17).

    ``variant=bh1`` replaces the exact integral of a straight line as diffusers' SASolverScheduler does.
    """
    return Solver(
        _named(f"sa_solver[{order}]", eta, 1.0), eta, Corrected(Multistep(order, two_point=variant)), uniform_lambda
    )


def euler_ancestral(eta: float = 1.0) -> Solver:
    """k-diffusion's ancestral Euler: the same as DDIM with the paper's η (Song et al. 2021a, eq. 12 and 16)."""
    return Solver(_named("euler_ancestral", eta, 1.0), eta, Ancestral(), karras)


def dpm2_ancestral(eta: float = 1.0) -> Solver:
    """k-diffusion's ancestral DPM2: DPM-Solver-2 past the target, then noise (Lu et al. 2022a, algorithm 1)."""
    return Solver(_named("dpm2_ancestral", eta, 1.0), eta, Ancestral(DPMSolver2()), karras)


def dpmpp_2s_ancestral(eta: float = 1.0) -> Solver:
    """k-diffusion's ancestral DPM-Solver++(2S) (Lu et al. 2022b, algorithm 1)."""
    return Solver(_named("dpmpp_2s_ancestral", eta, 1.0), eta, Ancestral(DPMSolver2S()), karras)


def reverse_diffusion() -> Solver:
    """score_sde's reverse-diffusion predictor on its own (Song et al. 2021, eq. 46)."""
    return Solver("reverse_diffusion", 1.0, ReverseDiffusion())


def pc(predictor: Integrator | None = None, corrector: Langevin | None = None) -> Solver:
    """Predictor-corrector: any predictor, Langevin between its steps (Song et al. 2021, algorithms 1, 4 and 5).

    By default the corrector's step depends on t alone. ``Langevin()`` uses the paper's norms, per sample, which
    bias samples of few dimensions. ``Langevin(norms=mean_norms)`` uses score_sde's means over the batch.
    """
    how = corrector or Langevin(norms=expected_norms)
    return Solver("pc", 1.0, PredictorCorrector(predictor or ReverseDiffusion(), how))


def adaptive_sde(rtol: float = 0.01, atol: float | None = None) -> Solver:
    """The reverse SDE with a step size for each sample (Jolicoeur-Martineau et al. 2021, algorithm 1).

    ``atol`` is in the units of x; None is 2/256 of the model's ``sigma_data``.
    """
    return Solver("adaptive_sde", 1.0, AdaptiveSDE(rtol=rtol, atol=atol))


def _named(name: str, eta: float, usual: float) -> str:
    return name if eta == usual else f"{name}[eta={eta:g}]"
