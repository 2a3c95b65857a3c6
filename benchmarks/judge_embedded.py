"""How good the embedded MNIST networks are: the share of their samples that a classifier finds clear.

    python benchmarks/judge_embedded.py           # 1,000 samples of each, eight minutes on one core

A sample is clear if the classifier (99.56 % right on the MNIST test set, benchmarks/train_classifier.py) gives one
class a probability of 0.9 or more. Samples are those of DDIM with 50 steps, uniform in t down to t = 0. The distances
are to real test images, in the classifier's features. The last row judges as many other real images.
"""

from __future__ import annotations

from report import Report, parser

from sde_toolkit import ScoreModel, ddim, grids, sample
from sde_toolkit.data import mnist_test_images
from sde_toolkit.metrics.judge import Judge, classifier_features

KEYS = ("plausible", "sliced_wasserstein", "kernel_distance")

if __name__ == "__main__":
    words = parser(__doc__)
    words.add_argument("--models", nargs="+", default=["mnist", "mnist_large"])
    words.add_argument("--n", type=int, default=1000)
    given = words.parse_args()
    report = Report(given.results, "embedded-networks", "The embedded MNIST networks: clear samples of 50-step DDIM")
    judge = Judge(mnist_test_images().test, given.n, classifier_features())
    report.table("samples of", "number", "clear", "sliced Wasserstein", "kernel distance")
    for name in given.models:
        model = ScoreModel.from_pretrained(name)
        grid = grids.uniform(model.sde, 50, end=0.0)
        found = judge(sample(model, ddim(), grid, shape=(given.n, 1, 28, 28), batch_size=100).data)
        report.row(f"`{name}`", given.n, *(found[key] for key in KEYS))
    real = judge.floor
    report.row("real images", given.n, *(real[key] for key in KEYS))
    report.save()
