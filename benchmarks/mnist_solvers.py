"""Solvers and grids on the embedded MNIST network: distances of their samples to real images.

    python benchmarks/mnist_solvers.py            # 128 images a row, six minutes on one core

The first rows repeat the headline of DDIM (Song et al. 2021a, section 5.1): DDPM with 1,000 evaluations against DDIM
with few. The others show that the grid decides, too: the same solver on steps uniform in t and on steps uniform in √t
(quadratic), down to t = 0, or for methods in t to 1e-3 with a last denoising. Distances are to real test images in
the classifier's features, with standard errors; the first row judges as many other real images.
"""

from __future__ import annotations

from report import Report, parser

from sde_toolkit import ScoreModel, ddim, ddpm, euler_maruyama, grids, probability_flow, sample
from sde_toolkit.data import mnist_test_images
from sde_toolkit.integrators import Heun
from sde_toolkit.metrics.judge import Judge, classifier_features

ON_BOTH = (  # name, solver, evaluations a step, end
    ("euler_maruyama", euler_maruyama(), 1, 1e-3),
    ("probability_flow(Heun)", probability_flow(Heun()), 2, 1e-3),
    ("ddpm", ddpm(), 1, 0.0),
    ("ddim", ddim(), 1, 0.0),
)

KEYS = ("sliced_wasserstein", "kernel_distance", "plausible")

if __name__ == "__main__":
    words = parser(__doc__)
    words.add_argument("--n", type=int, default=128, help="images per row")
    words.add_argument("--ddpm-steps", type=int, default=1000)
    words.add_argument("--ddim-steps", type=int, nargs="*", default=[5, 10, 50])
    words.add_argument("--nfe", type=int, default=20, help="evaluations of the rows on both grids")
    given = words.parse_args()
    model = ScoreModel.from_pretrained("mnist")
    judge = Judge(mnist_test_images().test, given.n, classifier_features())
    report = Report(given.results, "mnist-solvers", "Solvers and grids on the embedded MNIST network")
    report.line(f"{given.n} images per row.")
    report.table("solver", "grid", "evaluations", "sliced Wasserstein", "kernel distance", "clear digits")
    real = judge.floor
    report.row("real images", "", "", *(real[key] for key in KEYS))
    rows = [("ddpm", ddpm(), grids.uniform, given.ddpm_steps, 0.0)]
    rows += [("ddim", ddim(), grids.uniform, steps, 0.0) for steps in given.ddim_steps]
    rows += [
        (name, solver, build, given.nfe // evaluations, end)
        for name, solver, evaluations, end in ON_BOTH
        for build in (grids.uniform, grids.quadratic)
    ]
    for name, solver, build, steps, end in rows:
        grid = build(model.sde, steps, end=end)
        drawn = sample(model, solver, grid, shape=(given.n, 1, 28, 28), tweedie=end > 0, batch_size=64)
        found = judge(drawn.data)
        figures = [found[key] for key in KEYS]
        report.row(f"`{name}`", build.__name__, drawn.nfe, *figures)
    report.save()
