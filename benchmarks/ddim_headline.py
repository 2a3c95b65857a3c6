"""DDIM's headline on the embedded MNIST network: at how many evaluations does it reach DDPM's 1000 steps?

    python benchmarks/ddim_headline.py            # about six minutes on two idle cores

Song et al. 2021a (section 5.1) report 10× to 50× fewer. Distances are those of `sde-toolkit compare`: to real
test images, in the features of the shipped classifier, with their standard errors and the floor that equally many
real images set.
"""

from __future__ import annotations

import argparse

from sde_toolkit import ScoreModel, ddim, ddpm, grids, sample
from sde_toolkit.data import mnist_test_images
from sde_toolkit.metrics.judge import Judge, classifier_features

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=256, help="images per row")
    parser.add_argument("--ddpm-steps", type=int, default=1000)
    parser.add_argument("--ddim-steps", type=int, nargs="*", default=[5, 10, 20, 30, 50, 100])
    arguments = parser.parse_args()
    model = ScoreModel.from_pretrained("mnist")
    judge = Judge(mnist_test_images().test, arguments.n, classifier_features())
    print(f"{arguments.n} images per row, grids uniform in t down to t=0")
    print(f"{'solver':<8}{'NFE':>6}  {'sliced Wasserstein':>22}  {'kernel distance':>24}  {'clear digits':>16}{'s':>8}")
    floor = judge.floor
    print(
        f"{'real':<8}{'':>6}  {floor.sliced_wasserstein!s:>22}  {floor.kernel_distance!s:>24}  {floor.plausible!s:>16}"
    )
    rows = [(ddpm(), arguments.ddpm_steps), *((ddim(), steps) for steps in arguments.ddim_steps)]
    for solver, steps in rows:
        grid = grids.uniform(model.sde, steps, end=0.0)
        result = sample(model, solver, grid, shape=(arguments.n, 1, 28, 28), batch_size=64)
        s = judge(model.transform.inverse(result.x))
        print(
            f"{solver.name:<8}{result.nfe:>6}  {s.sliced_wasserstein!s:>22}  {s.kernel_distance!s:>24}"
            f"  {s.plausible!s:>16}{result.seconds:8.1f}",
            flush=True,
        )
