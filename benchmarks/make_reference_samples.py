"""The reference samples that the package ships: those of the README's ``sde-toolkit compare``, as 8-bit images.

    python benchmarks/make_reference_samples.py

Run it again when the network, the noise or the command's settings change. Until then the command does not find them and
solves its references, about 200 evaluations per sample. The program prints what the rounding to 8 bits changes in the
distances to real digits.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from sde_toolkit import ScoreModel
from sde_toolkit.data import mnist_test_images
from sde_toolkit.evaluation import Judge, classifier_features, flat_features
from sde_toolkit.evaluation.reference_cache import SHIPPED, image_bytes
from sde_toolkit.transforms import Transform

COMMAND = "compare solver=[ddim,ddpm] budgets=[2] exact_flow.n=1 progress=false output=compared"


def main() -> None:
    for file in SHIPPED.glob("*.npz"):
        file.unlink()
    SHIPPED.mkdir(exist_ok=True)
    transform = ScoreModel.from_pretrained("mnist").transform
    with tempfile.TemporaryDirectory() as folder:
        place = {**os.environ, "SDE_TOOLKIT_CACHE": folder}
        subprocess.run([sys.executable, "-m", "sde_toolkit", *COMMAND.split()], cwd=folder, env=place, check=True)
        solved = {file.name: torch.from_numpy(np.load(file)["x"]) for file in Path(folder, "references").iterdir()}
    for name, x in solved.items():
        (SHIPPED / name).write_bytes(image_bytes(x, transform))
        print(f"{name}: {tuple(x.shape)}, {(SHIPPED / name).stat().st_size / 1000:.0f} kB")
    show_rounding(list(solved.values()), transform)


def show_rounding(solved: list[torch.Tensor], transform: Transform) -> None:
    """Distances to real digits, of the samples and of their 8-bit images."""
    real = mnist_test_images().test
    for features in (classifier_features(), flat_features(transform, real)):
        judge = Judge(real, len(solved[0]), features)
        for x in solved:
            exact = transform.inverse(x)
            found, rounded = judge(exact), judge(exact.clamp(0, 255).round())
            for name in found:
                change = rounded[name].value - found[name].value
                print(f"{features.name[:30]}, {name}: {found[name]}, 8 bits {change:+.1e}")


if __name__ == "__main__":
    main()
