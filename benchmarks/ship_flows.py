"""The exact flows of the embedded networks as files of the package.

    python benchmarks/ship_flows.py --truths small_network
    python benchmarks/ship_flows.py --truths image_network --steps 800 1600

More steps make a finer reference. These take one minute and six minutes of one core. A file has at most 100 kB:
endpoints on 65,536 levels, and the own error of each. `sde-toolkit bench` then has nothing to solve for these truths. A
file belongs to the weights, the noises and the method: after a change of one of them the suite no longer finds it.
"""

from __future__ import annotations

import argparse
import io

import numpy as np

from sde_toolkit.files.whole import write_atomically
from sde_toolkit.suite import ExactFlow, truths
from sde_toolkit.suite.exact_flow import solve_flow
from sde_toolkit.suite.kept_flows import SHIPPED_FLOWS, small_arrays

if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--steps", type=int, nargs=2, default=[400, 800], help="of the solve and of the finer one")
    words.add_argument("--truths", nargs="+", default=["small_network", "image_network"])
    given = words.parse_args()
    for name, truth in truths(given.truths).items():
        noise = truth.noise()
        flow = ExactFlow.joined(
            [solve_flow(truth.model, noise[a:b], steps=tuple(given.steps)) for a, b in truth.chunks()]
        )
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **small_arrays(flow))
        SHIPPED_FLOWS.mkdir(exist_ok=True)
        write_atomically(SHIPPED_FLOWS / f"{truth.digest}.npz", buffer.getvalue())
        size, own = buffer.tell() / 1000, flow.own_error / truth.size
        print(f"{name}: {size:.0f} kB, own error {own:.1e} of the data's size", flush=True)
