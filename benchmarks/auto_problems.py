"""The problems on which ``auto`` is chosen and judged: small trained networks and mixtures, half of them kept out.

Not in here: any measurement.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from train_small_networks import RUNS, finished

from sde_toolkit import (
    EDMSDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    FlowMatching,
    GaussianMixture,
    Integrator,
    ScoreModel,
    Solver,
    grids,
    sample,
)
from sde_toolkit.integrators import Angle, Corrected, FrozenEDM, Multistep
from sde_toolkit.sde import SDE

__all__ = ["NOISES", "Problem", "mixture", "problems"]

# whether it is kept out, dimension, modes, standard deviation of a mode, seed, spread of the modes, SDE
MIXTURES: dict[str, tuple[bool, int, int, float, int, float, SDE]] = {
    "mixture in 2-D, VP": (False, 2, 5, 0.15, 1, 1.0, VPSDE()),
    "mixture in 4-D, VE": (False, 4, 6, 0.1, 22, 1.2, VESDE()),
    "mixture in 16-D, cosine": (False, 16, 20, 0.1, 4, 1.0, CosineVPSDE()),
    "mixture in 64-D, EDM": (False, 64, 10, 0.2, 5, 1.0, EDMSDE()),
    "mixture in 2-D, EDM": (True, 2, 10, 0.05, 2, 1.5, EDMSDE()),
    "mixture in 3-D, VP": (True, 3, 3, 0.3, 21, 1.0, VPSDE()),
    "mixture in 8-D, FM": (True, 8, 10, 0.2, 3, 1.0, FlowMatching()),
    "mixture in 32-D, VE": (True, 32, 8, 0.15, 23, 1.0, VESDE(0.005, 100.0)),
}
# noises for images, for small images and signals, and for vectors: a few samples at the border between two modes make
# most of a mean square, and among more of them it depends less on chance
NOISES = (64, 256, 2048)
STEPS = (160, 320)  # of the fine solves; the error of the second is an eighth of their difference, at order 3


def mixture(
    dimension: int, modes: int, std: float, seed: int, spread: float, sde: SDE | None = None
) -> GaussianMixture:
    """Modes ~ N(0, spread² I)."""
    generator = torch.Generator().manual_seed(seed)
    return GaussianMixture(spread * torch.randn(modes, dimension, generator=generator), sde or VPSDE(), std=std)


@dataclass(eq=False)
class Problem:
    """A model, n noises, and where its flow takes them; errors are kept in ``folder``."""

    name: str
    model: ScoreModel
    n: int
    folder: Path

    @property
    def few(self) -> int:
        """Noises that are enough to see which of many configurations are good."""
        return min(self.n // 2, 64)

    @property
    def file(self) -> Path:
        """Without an ending."""
        plain = "".join(c if c.isalnum() else "-" for c in self.name.replace("ε", "eps"))
        return self.folder / f"{plain}-of-{self.n}"

    def start(self) -> Tensor:
        """(n, *event), float64."""
        shape, generator = self.model.event_shape or (), torch.Generator().manual_seed(7)
        noise = torch.randn(self.n, *shape, generator=generator, dtype=torch.float64)
        return self.model.sde.sigma(1.0) * noise

    def solve(self, integrator: Integrator, grid: Tensor, *, tweedie: bool, first: int | None = None) -> Tensor:
        """The end of the flow from :meth:`start`, or from the first so many noises."""
        solver, x = Solver("", 0.0, integrator), self.start()[:first]
        return sample(self.model, solver, grid, x_start=x, tweedie=tweedie, dtype=torch.float64).x

    def flow(self) -> dict[str, Tensor]:
        """``x``: the end of a fine solve to the last time at which the model is known. ``error``: its own, relative."""
        file = self.file.with_suffix(".safetensors")
        if not file.exists():
            model, sde, size = self.model, self.model.sde, self.model.sigma_data
            last = sde.likelihood_end if model.has_exact_score else sde.sampling_end
            method = Corrected(Multistep(3, FrozenEDM(size), Angle(size)))
            coarse, fine = (
                self.solve(
                    method,
                    grids.sech(sde, steps, center=0.5, width=3.0, sigma_data=size, end=max(last, 1e-6)),
                    tweedie=True,
                )
                for steps in STEPS
            )
            own = (coarse - fine).square().mean().sqrt() / 8 / fine.square().mean().sqrt()
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({"x": fine, "error": own.reshape(1)}, file)
        return load_file(file)

    def error(
        self, key: str, integrator: Integrator, grid: Tensor, *, tweedie: bool, first: int | None = None
    ) -> tuple[float, float]:
        """Root mean square and median, over the noises, of the distance to the end of the flow; kept under ``key``.

        Both are relative to the root mean square of that end. ``first``: of the first so many noises alone.
        """
        key = key if first is None else f"{key}, first {first}"
        file = self.file.with_suffix(".json")
        kept: dict[str, tuple[float, float]] = json.loads(file.read_text()) if file.exists() else {}
        if key not in kept:
            exact = self.flow()["x"][:first]
            difference = self.solve(integrator, grid, tweedie=tweedie, first=first) - exact
            each = difference.square().flatten(1).mean(1) / exact.square().mean()
            kept[key] = (each.mean().sqrt().item(), each.median().sqrt().item())
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(kept, indent=1))
        return tuple(kept[key])


def problems(networks: Path, n: Sequence[int], *, kept_out: bool) -> list[Problem]:
    """Those of one half: every finished network of the folder, one that the package ships, and four mixtures.

    ``n``: how many noises for samples of at least 100 numbers, for those of fewer, and for vectors.
    """
    found: dict[str, ScoreModel] = {}
    for name, run in RUNS.items():
        model = finished(networks, name)
        if model is not None and run.kept_out == kept_out:
            found[name] = model
    if kept_out:
        found["embedded digits, VP, EDM"] = ScoreModel.from_pretrained("digits")
    for name, (out, *numbers) in MIXTURES.items():
        if out == kept_out:
            found[name] = mixture(*numbers)  # type: ignore[arg-type]

    def noises(shape: tuple[int, ...]) -> int:
        return n[2] if len(shape) == 1 else n[1] if math.prod(shape) < 100 else n[0]

    return [Problem(name, model, noises(model.event_shape or ()), networks / "errors") for name, model in found.items()]
