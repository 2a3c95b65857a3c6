"""Draws docs/images/latents.png: digits between two noises, and between two real digits.

    python docs/make_latents_picture.py [--out docs/images/latents.png] [--columns 9] [--rows 4] [--steps 40]

The setting of figure 6 of Song et al. 2021a (DDIM), on the embedded network: second-order multistep steps of the
probability flow, from slerp(z_0, z_1, w), the w equally spaced. Above, z_0 and z_1 are drawn; below they are the codes
of two test images, which the network has not been trained on, and the ends of a row are the images encoded and decoded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sde_toolkit import ScoreModel, encode, grids, probability_flow, sample, slerp
from sde_toolkit.data import mnist_test_images
from sde_toolkit.integrators import Multistep
from sde_toolkit.noise.streams import per_sample_noise

MARGIN, GAP, SCALE = 2, 14, 2


def rows_between(model: ScoreModel, grid: Tensor, z_0: Tensor, z_1: Tensor, columns: int) -> Tensor:
    """Images (rows, columns, 28, 28) between z_0 and z_1, in [0, 255]."""
    weights = torch.linspace(0, 1, columns, dtype=torch.float64)[:, None]
    between = slerp(z_0, z_1, weights)  # (columns, rows, 1, 28, 28)
    found = sample(model, probability_flow(Multistep()), grid, x_start=between.flatten(0, 1), tweedie=True)
    images = model.transform.inverse(found.x).clamp(0, 255)
    return images.unflatten(0, (columns, len(z_0))).transpose(0, 1).squeeze(2)


def sheet(images: Tensor) -> np.ndarray:
    """(rows, columns, H, W) as one picture, dark on light, a margin around each."""
    rows, columns, height, width = images.shape
    page = np.zeros((rows * (height + MARGIN), columns * (width + MARGIN)), np.uint8)
    for i in range(rows):
        for j in range(columns):
            top, left = i * (height + MARGIN), j * (width + MARGIN)
            page[top : top + height, left : left + width] = images[i, j].round().to(torch.uint8).numpy()
    return 255 - page


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", default=str(Path(__file__).parent / "images" / "latents.png"))
    options.add_argument("--columns", type=int, default=11)
    options.add_argument("--rows", type=int, default=4)
    options.add_argument("--steps", type=int, default=40)
    given = options.parse_args()
    model = ScoreModel.from_pretrained("mnist")
    grid = grids.quadratic(model.sde, given.steps)
    noise = per_sample_noise(7, 0, (2 * given.rows, 1, 28, 28))() * model.sde.sigma(grid[0]).float()
    drawn = rows_between(model, grid, noise[: given.rows], noise[given.rows :], given.columns)
    digits = mnist_test_images().test[: 2 * given.rows]
    x = model.sde.perturb(model.transform.forward(digits), grid[-1], torch.randn(digits.shape, generator=_seeded()))
    code = encode(model, probability_flow(Multistep()), grid, x, space="model")
    real = rows_between(model, grid, code.x[: given.rows], code.x[given.rows :], given.columns)
    pages = [sheet(drawn), sheet(real)]
    gap = np.full((GAP, pages[0].shape[1]), 255, np.uint8)
    page = Image.fromarray(np.concatenate([pages[0], gap, pages[1]]))
    page.resize((page.width * SCALE, page.height * SCALE), Image.Resampling.NEAREST).save(given.out, optimize=True)
    errors = (real[:, [0, -1]] - torch.stack([digits[: given.rows], digits[given.rows :]], 1).squeeze(2)).square()
    print(f"{given.out}: images encoded and decoded differ by {errors.mean().sqrt().item():.2f} grey levels RMS")
    print(f"standard deviation of the codes: {code.x.std().item():.3f}, of noise: {noise.std().item():.3f}")


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


if __name__ == "__main__":
    main()
