"""How good is the embedded MNIST network? The share of samples that a classifier finds clear.

    python benchmarks/judge_embedded.py           # 1,000 samples, about two minutes on two idle cores

The classifier (99.56 % on the MNIST test set, `benchmarks/train_classifier.py`) gives a class probability of 0.9 or
more to so many samples of 50-step DDIM, beside what it gives to the real test images in the package.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from sde_toolkit import ScoreModel, ddim, grids, sample
from sde_toolkit.data import mnist_test_images
from sde_toolkit.metrics.judge import Judge, classifier_features

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--picture", type=Path, default=None, help="write the first 100 samples there")
    arguments = parser.parse_args()
    model = ScoreModel.from_pretrained(arguments.model)
    grid = grids.uniform(model.sde, 50, end=0.0)
    result = sample(model, ddim(), grid, shape=(arguments.n, 1, 28, 28), batch_size=100)
    images = model.transform.inverse(result.x)
    judge = Judge(mnist_test_images().test, arguments.n, classifier_features())
    scores = judge(images)
    for name, measured in ((f"DDIM, {result.nfe} evaluations", scores), ("real test images", judge.floor)):
        print(
            f"{name}: p >= 0.9 for {measured.plausible}, sliced Wasserstein {measured.sliced_wasserstein}, "
            f"kernel distance {measured.kernel_distance}"
        )
    if arguments.picture:
        import matplotlib.pyplot as plt

        sheet = images[:100].clamp(0, 255).reshape(10, 10, 28, 28).permute(0, 2, 1, 3).reshape(280, 280)
        plt.imsave(
            arguments.picture, torch.nn.functional.interpolate(sheet[None, None], scale_factor=3)[0, 0], cmap="gray"
        )
