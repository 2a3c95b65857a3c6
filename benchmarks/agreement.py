"""The methods are the published ones: our solvers against those of peers on one grid, one start and one noise.

    python benchmarks/agreement.py            # a few seconds

Each entry of :data:`PEERS` runs a peer on the exact ring mixture at given σ/α in float64, with the noise of
:class:`Noise` injected, and returns x/α at the grid's end. ``tolerance`` says how far its arithmetic allows
agreement: schedulers that cast their sample to float32 stop at about 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any
from unittest import mock

import diffusers
import torch
from peers.problems import Problem, load
from peers.ratio_grids import build
from report import Report, parser
from torch import Tensor

from sde_toolkit import (
    ReverseEquation,
    Solver,
    ddim,
    dpm2_ancestral,
    dpm_solver_2,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s,
    dpmpp_2s_ancestral,
    dpmpp_3m,
    dpmpp_3m_sde,
    dpmpp_sde,
    euler_ancestral,
    heun,
    sa_solver,
    unipc,
)
from sde_toolkit.integrators import Corrected, FrozenNoise, Multistep, bh1, bh2
from sde_toolkit.interop import diffusers_solver, k_diffusion_solver

__all__ = ["PEERS", "Case", "Noise", "Peer", "ours"]


class Noise:
    """A list of standard normal draws, handed out in order: draw i is the same whoever asks."""

    def __init__(self, like: Tensor, seed: int = 7) -> None:
        self.like, self.seed, self.count = like, seed, 0

    def draw(self, i: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * self.seed + i)
        return torch.randn(self.like.shape, generator=generator, dtype=self.like.dtype)

    def __call__(self, *_: Any, **__: Any) -> Tensor:
        self.count += 1
        return self.draw(self.count - 1)


@dataclass(frozen=True)
class Case:
    """One problem on one grid. ``grid`` is σ/α, decreasing, perhaps with a last 0; ``problem.y_start`` is its start."""

    problem: Problem
    grid: Tensor

    def noise(self) -> Noise:
        return Noise(self.problem.y_start)


@dataclass(frozen=True)
class Peer:
    """``run(case)`` gives x/α at the end of ``case.grid``. ``draws`` per step; ``note`` for what differs by design."""

    name: str
    run: Callable[[Case], Tensor]
    tolerance: float = 1e-9
    draws: int = 0
    note: str = ""


def kdiffusion(sampler: str, case: Case, noisy: bool = False, **options: Any) -> Tensor:
    """A sampler of k-diffusion; its ``noise_sampler`` is ours."""
    extra = {"noise_sampler": case.noise()} if noisy else {}
    solver = k_diffusion_solver(sampler, **extra, **options)
    return solver.run(case.problem.denoise, case.grid, case.problem.y_start, case.noise())


def scheduler(kind: str, case: Case, noisy: bool = False, **options: Any) -> Tensor:
    """A scheduler of diffusers on the same levels; every draw it makes is replaced by ours."""
    solver = diffusers_solver(kind, last="step", lower_order_final=False, **options)
    own = import_module(getattr(diffusers, f"{kind}Scheduler").__module__)
    with mock.patch.object(own, "randn_tensor", case.noise()) if noisy else nullcontext():
        return solver.run(case.problem.denoise, case.grid, case.problem.y_start, case.noise())


def _peers() -> dict[str, list[Peer]]:
    k, d = partial(partial, kdiffusion), partial(partial, scheduler)
    single = {"tolerance": 3e-6}
    table = {
        "ddim": [Peer("k-diffusion sample_euler", k("euler"))],
        "heun_edm": [Peer("k-diffusion sample_heun", k("heun"), note="Euler in the step to 0")],
        "dpm_2": [Peer("k-diffusion sample_dpm_2", k("dpm_2"), note="Euler in the step to 0")],
        "dpmpp_2s": [Peer("k-diffusion dpmpp_2s_ancestral eta=0", k("dpmpp_2s_ancestral", eta=0.0))],
        "dpmpp_2m": [
            Peer("k-diffusion sample_dpmpp_2m", k("dpmpp_2m")),
            Peer("diffusers DPMSolverMultistep 2 midpoint", d("DPMSolverMultistep", solver_order=2), **single),
        ],
        "dpmpp_2m_heun": [
            Peer(
                "k-diffusion dpmpp_2m_sde heun eta=0",
                k("dpmpp_2m_sde", noisy=True, eta=0.0, solver_type="heun"),
            ),
            Peer("diffusers DPMSolverMultistep 2 heun", d("DPMSolverMultistep", solver_type="heun"), **single),
        ],
        "dpmpp_3m": [
            Peer("diffusers DPMSolverMultistep 3", d("DPMSolverMultistep", solver_order=3), **single),
            Peer(
                "k-diffusion dpmpp_3m_sde eta=0",
                k("dpmpp_3m_sde", noisy=True, eta=0.0),
                note="another second step",
            ),
        ],
        "dpm_solver_2m": [
            Peer(
                "diffusers DPMSolverMultistep 2, dpmsolver",
                d("DPMSolverMultistep", algorithm_type="dpmsolver"),
                **single,
            )
        ],
        "euler_ancestral": [Peer("k-diffusion", k("euler_ancestral", noisy=True), draws=1)],
        "dpm_2_ancestral": [Peer("k-diffusion", k("dpm_2_ancestral", noisy=True), draws=1)],
        "dpmpp_2s_ancestral": [Peer("k-diffusion", k("dpmpp_2s_ancestral", noisy=True), draws=1)],
        "dpmpp_sde": [
            Peer(
                "k-diffusion",
                k("dpmpp_sde", noisy=True),
                draws=2,
                note="two independent draws per step here",
            )
        ],
        "dpmpp_3m_sde": [Peer("k-diffusion", k("dpmpp_3m_sde", noisy=True), draws=1)],
    }
    for kind in ("midpoint", "heun"):
        sde = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "solver_type": kind}
        table[f"dpmpp_2m_sde_{kind}"] = [
            Peer("k-diffusion", k("dpmpp_2m_sde", noisy=True, solver_type=kind), draws=1),
            Peer("diffusers", d("DPMSolverMultistep", noisy=True, **sde), draws=1, **single),
        ]
    for order in (1, 2, 3):
        for kind in ("bh1", "bh2"):
            runner = d("UniPCMultistep", solver_order=order, solver_type=kind)
            table[f"unipc_{order}_{kind}"] = [
                Peer("diffusers", runner, note="the last evaluation corrects; no last corrector")
            ]
    for order in (2, 3):
        note = "polynomials in log(σ/α) times dσ/α: the log-rho variant, exponential Adams-Bashforth of ε"
        table[f"deis_{order}"] = [Peer("diffusers", d("DEISMultistep", solver_order=order), note=note)]
    for tau in TAUS:
        for p in (1, 2, 3):
            own = {"predictor_order": p, "corrector_order": p + 1, "tau_func": lambda t, tau=tau: tau}
            peer = Peer(f"diffusers SASolver P{p}C{p + 1}", d("SASolver", noisy=True, **own), draws=1)
            table[f"sa_solver_{p}_bh1_tau={tau}"] = [peer]
            note = "theirs has bh1 wherever a polynomial goes through two values, the preset is exact there"
            table[f"sa_solver_{p}_tau={tau}"] = [replace(peer, note=note)]
    return table


TAUS = (0.0, 0.6, 1.0)  # of SA-Solver: our η
PEERS: dict[str, list[Peer]] = _peers()


OURS: dict[str, Solver] = {
    "ddim": ddim(),
    "heun_edm": heun(),
    "dpm_2": dpm_solver_2(),
    "dpmpp_2s": dpmpp_2s(),
    "dpmpp_2m": dpmpp_2m(),
    "dpmpp_2m_heun": Solver("", 0.0, Multistep(2)),
    "dpmpp_3m": dpmpp_3m(),
    "dpm_solver_2m": Solver("", 0.0, Multistep(2, FrozenNoise(), two_point=bh2)),
    "euler_ancestral": euler_ancestral(),
    "dpm_2_ancestral": dpm2_ancestral(),
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral(),
    "dpmpp_sde": dpmpp_sde(),
    "dpmpp_3m_sde": dpmpp_3m_sde(),
    "dpmpp_2m_sde_midpoint": dpmpp_2m_sde(),
    "dpmpp_2m_sde_heun": Solver("", 1.0, Multistep(2)),
    **{f"unipc_{p}_{v.__name__}": unipc(p, v) for p in (1, 2, 3) for v in (bh1, bh2)},
    **{f"deis_{p}": Solver("", 0.0, Multistep(p, FrozenNoise())) for p in (2, 3)},
    **{
        f"sa_solver_{p}_bh1_tau={tau}": Solver("", tau, Corrected(Multistep(p, two_point=bh1)))
        for p in (1, 2, 3)
        for tau in TAUS
    },
    **{f"sa_solver_{p}_tau={tau}": sa_solver(tau, p) for p in (1, 2, 3) for tau in TAUS},
}


def ours(name: str) -> Callable[[Case], Tensor]:
    """Our solver of that name, as a function of a case that returns x/α at the end of the grid."""
    solver = OURS[name]

    def run(case: Case) -> Tensor:
        model = case.problem.model
        times = model.sde.inverse_half_log_snr(-torch.log(case.grid.double()))
        x, state, noise = model.sde.alpha(times[0]) * case.problem.y_start, None, case.noise()
        equation = ReverseEquation(model, solver.eta)
        for row in solver.integrator.prepare(equation, times):
            x, state = solver.integrator.step(equation, x, row, state, noise)
        return x / model.sde.alpha(times[-1])

    return run


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--steps", type=int, default=8)
    words.add_argument("--low", type=float, default=0.01)
    given = words.parse_args()
    problem = load("ring", n=64)
    case = Case(problem, build(problem, "karras7", given.steps, given.low, "stop"))
    title = "Solvers step by step against those of peers: largest difference of any coordinate"
    report = Report(given.results, "agreement", title, ["diffusers", "k-diffusion"])
    report.line(
        f"Exact score of the ring, {given.steps} uneven steps, float64, the same draws. "
        "A difference above the tolerance says that the peer implements another method; see also `orders.md`."
    )
    report.table("solver", "peer", "difference", "tolerance", "", "remark")
    for name, peers in PEERS.items():
        mine = ours(name)(case)
        for peer in peers:
            difference = (mine - peer.run(case)).abs().max().item()
            verdict = "agrees" if difference <= peer.tolerance else "differs"
            report.row(f"`{name}`", peer.name, f"{difference:.1e}", f"{peer.tolerance:.0e}", verdict, peer.note)
    report.save()


if __name__ == "__main__":
    main()
