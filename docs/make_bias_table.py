"""Writes the table of docs/posterior-sampling.md: how far each method is from the exact posterior of a Gaussian.

Data N(0, C) in two dimensions, y = x + N(0, σ_y² I), of which the direction u = (1, −1)/√2 is looked at: the prior
variance s² = uᵀC u, and y = u. There each method says x̂_0 = a x̄ + b at the noise level τ, in VE coordinates. a and b
are read from the implementation. Mean and variance of its samples, in the limit of small steps, then follow

    dm/dlog τ = (1 + η²) (m − a m − b)        dv/dlog τ = 2 (1 + η²) (1 − a) v − 2 η² τ²

python docs/make_bias_table.py            # rewrites the table
python docs/make_bias_table.py --check    # says what is out of date
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from generated_table import renew, with_table

from sde_toolkit import VESDE, ScoreModel, ddim, gaussian, posterior, sample
from sde_toolkit.guidance import DDNM, JFPS, MMPS, SDA, TMPD, DiffPIR, PiGDM, PosteriorMethod, SigmaDPS

PAGE = Path(__file__).resolve().parent / "posterior-sampling.md"
PATH = VESDE(1e-4, 1e4)
STEPS = 3000
ETAS = (0.0, 1.0)
DIRECTION = torch.tensor([1.0, -1.0], dtype=torch.float64) / math.sqrt(2)


@dataclass(frozen=True)
class Problem:
    """The prior variance s² along (1, −1)/√2, that along (1, 1)/√2, and σ_y²."""

    variance: float
    other: float
    noise: float

    def covariance(self) -> torch.Tensor:
        """C (2, 2)."""
        sum_, difference = self.other + self.variance, self.other - self.variance
        return torch.tensor([[sum_, difference], [difference, sum_]], dtype=torch.float64) / 2

    def title(self) -> str:
        return f"s² = {self.variance:g}{'' if self.other == self.variance else f' beside {self.other:g}'}"


PROBLEMS = (Problem(1.0, 1.0, 1.0), Problem(1.0, 1.0, 0.05), Problem(0.05, 0.05, 0.0025), Problem(0.05, 1.0, 0.05))


def methods(covariance: torch.Tensor) -> dict[str, PosteriorMethod]:
    """Every method as it is by default; ΠGDM with the paper's prior too, JFPS with a right and a wrong covariance."""
    return {
        "`MMPS()`": MMPS(),
        "`JFPS(C)`": JFPS(covariance),
        "`JFPS(2 C)`": JFPS(2 * covariance),
        "`TMPD()`": TMPD(),
        "`PiGDM()`": PiGDM(),
        "`PiGDM(1)`": PiGDM(1.0),
        "`DiffPIR(1)`": DiffPIR(1.0),
        "`SDA(0.01)`": SDA(0.01),
        "`SigmaDPS()`": SigmaDPS(),
        "`DDNM()`": DDNM(),
    }


def given(method: PosteriorMethod, problem: Problem) -> ScoreModel:
    """The prior given y, by a method."""
    model = gaussian([0.0, 0.0], PATH, covariance=problem.covariance())
    return posterior(model, torch.eye(2, dtype=torch.float64), DIRECTION, math.sqrt(problem.noise), method=method)


def biases(cases: Sequence[tuple[PosteriorMethod, Problem, float]]) -> list[tuple[float, float]]:
    """For (method, problem, η): variance over that of the posterior, offset of the mean in its standard deviations."""
    t = torch.linspace(1, 0, 2 * STEPS + 1, dtype=torch.float64)  # with the middle of every step
    tau = PATH.sigma(t).numpy()
    found = []
    for method, problem, _ in cases:
        x = torch.stack([0 * DIRECTION, DIRECTION]).repeat_interleave(len(t), dim=0)
        with torch.no_grad():
            b, one = (given(method, problem)(x, t.repeat(2)).x_0 @ DIRECTION).reshape(2, -1).numpy()
        found.append((one - b, b))
    a, b = (np.stack(part, axis=1) for part in zip(*found, strict=True))
    eta = np.array([eta for _, _, eta in cases])

    def rate(i: int, state: np.ndarray) -> np.ndarray:
        m, v = state
        both = 1 + eta**2
        return np.array([both * (m - a[i] * m - b[i]), 2 * both * (1 - a[i]) * v - 2 * eta**2 * tau[i] ** 2])

    h = math.log(tau[-1] / tau[0]) / STEPS
    state = np.array([np.zeros(len(cases)), np.full(len(cases), tau[0] ** 2)])
    for i in range(0, 2 * STEPS, 2):  # Runge and Kutta's
        k1 = rate(i, state)
        k2 = rate(i + 1, state + h / 2 * k1)
        k3 = rate(i + 1, state + h / 2 * k2)
        k4 = rate(i + 2, state + h * k3)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    s, n = (np.array([getattr(problem, part) for _, problem, _ in cases]) for part in ("variance", "noise"))
    variance, mean = s * n / (s + n), s / (s + n)
    return list(zip(state[1] / variance, (state[0] - mean) / np.sqrt(variance), strict=True))


def products(method: PosteriorMethod) -> int:
    """Products with the Jacobian per evaluation."""
    drawn = sample(given(method, PROBLEMS[0]), ddim(), steps=2, shape=(1, 2), dtype=torch.float64)
    return drawn.products // drawn.nfe


def table() -> str:
    """The table of biases."""
    heads = [f"{p.title()}, σ_y² = {p.noise:g}, η = {eta:g}" for p in PROBLEMS for eta in ETAS]
    rows = [f"| method | {' | '.join(heads)} | products |", "|---" * (len(heads) + 2) + "|"]
    names = list(methods(torch.eye(2)))
    cases = [(methods(p.covariance())[name], p, eta) for name in names for p in PROBLEMS for eta in ETAS]
    found = iter(biases(cases))
    for name in names:
        cells = [next(found) for _ in heads]
        said = " | ".join(f"{_digits(ratio)}; {_digits(offset, '+')}" for ratio, offset in cells)
        needed = "1 or more" if "MMPS" in name else products(methods(torch.eye(2))[name])
        rows.append(f"| {name} | {said} | {needed} |")
    return "\n".join(rows)


def _digits(value: float, sign: str = "") -> str:
    rounded = round(value, 2 if sign else 3) + 0.0  # no −0
    return "0" if sign and rounded == 0 else f"{rounded:{sign}.{2 if sign else 3}f}".replace("-", "−")


def written(page: str) -> str:
    """The page with its generated table renewed."""
    return with_table(page, "bias", table())


if __name__ == "__main__":
    renew(__doc__, PAGE, written)
