r"""How the weights of ``auto`` with η = 1 at 10, 14 and 20 evaluations were found: Adam through the sampler.

    python benchmarks/fit_few_steps.py --nfe 10 --noisy 110000011 --minutes 24 --seed 5 --out ten.json
    python benchmarks/fit_few_steps.py --start ten.json --rate 1e-3 --times 3 --minutes 8 --seed 7 --out ten.json
    for step in "--start ten.json --seed 32 --minutes 14" \
                "--start plane.json --noisy 100000011 --seed 33 --minutes 11" \
                "--start plane.json --rate 2e-3 --seed 41 --minutes 12"
    do python benchmarks/fit_few_steps.py --sobol --dimensions 2 2 2 2 2 2 --out plane.json $step; done
    python benchmarks/fit_few_steps.py --start ten.json --sobol --dimensions 4 8 8 16 64 --times 2 --rate 1.5e-3 \
        --minutes 13 --seed 51 --out ten.json
    python benchmarks/fit_few_steps.py --nfe 14 --noisy 1110000001111 --minutes 17 --seed 2 --out fourteen.json
    python benchmarks/fit_few_steps.py --start fourteen.json --sobol --rate 2e-3 \
        --minutes 15 --seed 61 --out fourteen.json
    python benchmarks/fit_few_steps.py --nfe 20 --noisy 1111110000000011111 --minutes 28 --out twenty.json

plane.json is the row for at most three dimensions, ten.json the one for more.

Every iteration draws new mixtures, by default in 2, 2, 8, 16 and 64 dimensions, and lowers the sliced Wasserstein
distance to their exact quantiles and the logarithm of the variance within their modes. Half of the mixtures have ten
modes with means from N(0, I) and standard deviation 0.2, the others 4 to 30 modes of 0.08 to 0.35, some on rings. The
problems on which solvers are compared (peers/problems.py) are not among them. The result is a row of
sde_toolkit/few_steps.json.

In y = x/α and r = σ/α a scheme is y_{i+1} = Σ_{j≤i} b_ij D(y_j, r_j) + r_{i+1} e_{i+1}, with e renewed in noisy steps
(``sde_toolkit.integrators.nonstationary``): no SDE is in it but through r at t = 1.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor, nn

from sde_toolkit import VPSDE, grids

DIMENSIONS = (2, 2, 8, 16, 64)
SAMPLES = {2: 32768, 4: 16384, 8: 12288, 16: 6144, 64: 2048}
# The sliced distance between two exact sets of a million numbers, about: what an error is measured by.
FLOOR = {2: 0.0155, 4: 0.015, 8: 0.0145, 16: 0.0155, 64: 0.022}
HIGHEST = VPSDE().half_log_snr(1.0).item()
LINES = 12


class Mixture:
    """Equal weights, one standard deviation, float32 for speed."""

    def __init__(self, means: Tensor, std: float) -> None:
        self.means, self.std = means.float(), std
        self.dimension = means.shape[1]

    def denoise(self, y: Tensor, r: Tensor) -> Tensor:
        """D(y, r) = E[x_0 | y]."""
        variance = self.std**2 + r**2
        share = torch.softmax((y @ self.means.T - 0.5 * self.means.square().sum(1)) / variance, 1)
        return (self.std**2 / variance) * y + (r**2 / variance) * (share @ self.means)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        which = torch.randint(len(self.means), (n,), generator=generator)
        return self.means[which] + self.std * torch.randn(n, self.dimension, generator=generator)

    def quantiles(self, lines: Tensor, n: int) -> Tensor:
        """Of the projections on the columns of ``lines``, at (i + ½)/n, (n, lines)."""
        levels = (np.arange(n) + 0.5) / n
        columns = []
        for centers in (self.means @ lines).double().T.numpy():
            at = np.linspace(centers.min() - 6 * self.std, centers.max() + 6 * self.std, 6000)
            columns.append(np.interp(levels, ndtr((at[:, None] - centers) / self.std).mean(1), at))
        return torch.from_numpy(np.stack(columns, 1)).float()

    def within(self, x: Tensor) -> Tensor:
        """Mean squared distance to the nearest mean."""
        distances = torch.cdist(x, self.means, compute_mode="donot_use_mm_for_euclid_dist")
        return distances.square().amin(1).mean()


def fresh(dimension: int, rng: random.Random, generator: torch.Generator) -> Mixture:
    """A mixture that was not seen before."""
    modes, std = 10, 0.2
    if rng.random() < 0.5:
        modes, std = rng.choice([4, 5, 6, 8, 10, 14, 20, 30]), math.exp(rng.uniform(math.log(0.08), math.log(0.35)))
    if dimension == 2 and rng.random() < 0.15:
        angle = 2 * math.pi * (torch.arange(modes) + rng.random()) / modes
        return Mixture(math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1), min(std, 0.15))
    return Mixture(torch.randn(modes, dimension, generator=generator), std)


class Scheme(nn.Module):
    """The increments of λ (as logarithms), and the weights of every step but the newest, which makes the sum one."""

    def __init__(self, half_log_snr: list[float], weights: list[list[float]], noisy: list[bool]) -> None:
        super().__init__()
        self.increments = nn.Parameter(torch.tensor(half_log_snr).diff().log())
        self.older = nn.ParameterList(torch.tensor(row[:-1]) for row in weights)
        self.noisy = noisy

    def half_log_snr(self) -> Tensor:
        return HIGHEST + torch.cat([torch.zeros(1), self.increments.exp().cumsum(0)])

    def weights(self) -> list[Tensor]:
        return [torch.cat([row, 1 - row.sum(0, keepdim=True)]) for row in self.older]

    def forward(self, mixture: Mixture, draws: Iterator[Tensor]) -> Tensor:
        """As many samples as every draw has: a mean of denoised estimates."""
        r = torch.exp(-self.half_log_snr())
        e = next(draws)
        y, found, renewed = r[0] * e, [], 0
        for i, row in enumerate(self.weights()):
            found.append(mixture.denoise(y, r[i]))
            if i == 0:
                e = e - found[0] / r[0]
            if i == len(r) - 1:
                break
            if self.noisy[i]:
                rho = r[i + 1] / r[renewed]
                e = rho * e + torch.sqrt(1 - rho**2) * next(draws)
                renewed = i + 1
            y = sum((b * x_0 for b, x_0 in zip(row, found, strict=True)), r[i + 1] * e)
        return sum((b * x_0 for b, x_0 in zip(row, found, strict=True)), torch.zeros(()))

    def row(self) -> dict[str, object]:
        """As ``few_steps.json`` has it, without λ at t = 1 and t = 0; six decimals."""
        rows = [[round(b, 6) for b in row.tolist()] for row in self.weights()]
        for row in rows:
            row[-1] = round(1 - sum(row[:-1]), 6)
        knots = [round(value, 4) for value in self.half_log_snr().tolist()[1:]]
        return {"half_log_snr": knots, "noisy": self.noisy, "weights": rows}


def beginning(nfe: int, noisy: list[bool]) -> Scheme:
    """Multistep of order two on a grid dense where data take shape."""
    grid = grids.sech(VPSDE(), nfe - 1, center=0.0, width=3.0, end=VPSDE().inverse_half_log_snr(3.5).item())
    knots = VPSDE().half_log_snr(grid)
    r, h = torch.exp(-knots), knots.diff()
    rows, renewed = [torch.ones(1)], 0
    for i in range(nfe - 1):
        rho = r[i + 1] / r[i] * (r[i + 1] / r[renewed] if noisy[i] else 1)
        renewed = i + 1 if noisy[i] else renewed
        ahead = 0.5 * h[i] / h[i - 1] if i else torch.zeros(())
        row = rho * torch.cat([rows[-1], torch.zeros(1 if i else 0)])
        row[i] += (1 - rho) * (1 + ahead)
        row[i - 1] -= (1 - rho) * ahead
        rows.append(row)
    rows.append(torch.eye(nfe)[-1])
    return Scheme(knots.tolist(), [row.tolist() for row in rows[1:]], noisy)


@dataclass(frozen=True)
class How:
    """What to fit on: one mixture for each of the ``dimensions``, ``times`` as many samples as usual of each.

    ``sobol``: draws that fill space evenly, with which half as many samples tell a smaller error from chance.
    """

    dimensions: tuple[int, ...] = DIMENSIONS
    times: int = 1
    sobol: bool = False

    def samples(self, dimension: int) -> int:
        return self.times * SAMPLES[dimension] // (2 if self.sobol else 1)

    def draws(self, n: int, dimension: int, count: int, generator: torch.Generator) -> Iterator[Tensor]:
        """``count`` draws of n normal vectors."""
        if not self.sobol:
            return (torch.randn(n, dimension, generator=generator) for _ in range(count))
        seed = int(torch.randint(2**31, (), generator=generator))
        points = torch.quasirandom.SobolEngine(count * dimension, scramble=True, seed=seed).draw(n, dtype=torch.float64)
        return iter(torch.special.ndtri(points.clamp(1e-9, 1 - 1e-9)).float().split(dimension, 1))


def losses(
    scheme: Scheme, rng: random.Random, generator: torch.Generator, how: How
) -> Iterator[tuple[int, Tensor, float]]:
    """Dimension, what is minimised, and the squared distance above that of exact samples, in squared floors."""
    for dimension in how.dimensions:
        mixture, n = fresh(dimension, rng, generator), how.samples(dimension)
        lines = nn.functional.normalize(torch.randn(dimension, LINES, generator=generator), dim=0)
        wanted = mixture.quantiles(lines, n)

        def squared(x: Tensor, lines: Tensor = lines, wanted: Tensor = wanted) -> Tensor:
            return ((x @ lines).T.contiguous().sort(1).values.T - wanted).square().mean()

        with torch.no_grad():
            exact = mixture.draw(n, generator)
            floor, spread = squared(exact), mixture.within(exact)
        x = scheme(mixture, how.draws(n, dimension, 1 + sum(scheme.noisy), generator))
        distance, scale = squared(x), FLOOR[dimension] ** 2
        variance = torch.log(mixture.within(x) / spread) / 0.1
        loss = torch.log(distance / scale + (0.5 if how.sobol else 3)) + 0.2 * torch.log1p(variance**2)
        yield dimension, loss, (distance.item() - floor.item()) / scale


def fit(scheme: Scheme, how: How, minutes: float, rate: float, seed: int) -> Scheme:
    """The running average of Adam's iterates, the rate falling as a cosine over the minutes."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(scheme.parameters(), lr=rate, betas=(0.9, 0.995))
    average = torch.optim.swa_utils.AveragedModel(scheme, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.98))
    began, iteration, seen = time.monotonic(), 0, dict.fromkeys(how.dimensions, math.nan)
    while (share := (time.monotonic() - began) / (60 * minutes)) < 1:
        for group in adam.param_groups:
            group["lr"] = rate * min(1, (iteration + 1) / 20) * (0.51 + 0.49 * math.cos(math.pi * share))
        adam.zero_grad()
        for dimension, loss, excess in losses(scheme, rng, generator, how):
            loss.backward()
            before = seen[dimension]
            seen[dimension] = excess if math.isnan(before) else 0.97 * before + 0.03 * excess
        nn.utils.clip_grad_norm_(scheme.parameters(), 3.0)
        adam.step()
        average.update_parameters(scheme)
        iteration += 1
        if iteration % 50 == 1:
            print(iteration, f"{share:.0%}", {k: round(v, 2) for k, v in seen.items()}, flush=True)
    return average.module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nfe", type=int, default=10)
    parser.add_argument("--noisy", default=None, help="one digit for each step but the last, such as 110000111")
    parser.add_argument("--start", type=Path, default=None, help="a result to go on from; --noisy changes its noise")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--times", type=int, default=1, help="as many samples of every mixture")
    parser.add_argument("--dimensions", type=int, nargs="+", default=DIMENSIONS, help=f"of {list(SAMPLES)}, repeatedly")
    parser.add_argument("--sobol", action="store_true", help="draws that fill space evenly")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    noisy = None if arguments.noisy is None else [*(digit == "1" for digit in arguments.noisy), False]
    if arguments.start is not None:
        row = json.loads(arguments.start.read_text())
        scheme = Scheme([HIGHEST, *row["half_log_snr"]], row["weights"], noisy or row["noisy"])
    elif noisy is not None:
        scheme = beginning(arguments.nfe, noisy)
    else:
        parser.error("one of --noisy and --start is needed")
    how = How(tuple(arguments.dimensions), arguments.times, arguments.sobol)
    found = fit(scheme, how, arguments.minutes, arguments.rate, arguments.seed)
    arguments.out.write_text(json.dumps(found.row()))


if __name__ == "__main__":
    main()
