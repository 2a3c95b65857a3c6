"""What calibration gains: the error at the end of the flow before and after it, on fresh noise.

    python benchmarks/calibration.py            # 10 evaluations, five problems: eight minutes on one core

Before: the best uncalibrated start, of several solvers on several grids. After: what ``calibrate`` returns. Both are
the root mean square over elements to a fine solve, on noises that the calibration has not used, with their standard
errors. The sub-VP and VE rings and ten modes in 64 dimensions have exact scores; ``mnist`` is the embedded network,
whose calibration stops by the clock (``--time-limit``).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from peers.problems import mixture_means, ring_means
from report import Report, parser

from sde_toolkit import VESDE, VPSDE, GaussianMixture, ScoreModel, SubVPSDE
from sde_toolkit.calibration import calibrate

MODELS: dict[str, Callable[[], ScoreModel]] = {
    "ring": lambda: GaussianMixture(ring_means(), VPSDE(), std=0.1),
    "ring, sub-VP": lambda: GaussianMixture(ring_means(), SubVPSDE(), std=0.1),
    "ring, VE": lambda: GaussianMixture(ring_means(), VESDE(), std=0.1),
    "64-D mixture": lambda: GaussianMixture(mixture_means(64), VPSDE(), std=0.2),
    "mnist": lambda: ScoreModel.from_pretrained("mnist"),
}

if __name__ == "__main__":
    words = parser(__doc__)
    words.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    words.add_argument("--budgets", nargs="+", type=int, default=[10])
    words.add_argument("--time-limit", type=float, default=300.0, help="seconds for one calibration")
    given = words.parse_args()
    report = Report(given.results, "calibration", "Calibration: error at the end of the flow before and after")
    report.table("problem", "evaluations", "before", "after", "after / before", "method", "seconds")
    for name in given.models:
        for budget in given.budgets:
            began = time.perf_counter()
            found = calibrate(MODELS[name](), None, budget, time_limit=given.time_limit)
            seconds, ratio = time.perf_counter() - began, found.after.value / found.before.value
            figures = (found.before, found.after, f"{ratio:.2f}")
            report.row(name, budget, *figures, found.record["method"], f"{seconds:.0f}")
    report.save()
