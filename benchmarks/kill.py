"""Kill a training run by SIGKILL at random instants, again and again, and look at what is left each time.

    python benchmarks/kill.py            # 20 kills, four minutes on one core

Every checkpoint in the folder must be whole. The last one must never be older than after the previous kill. Runs that
were killed and started again must equal a run that was never stopped byte for byte: weights, averages, snapshots, and
both logs but for their clock. Fails where one of these does not hold.
"""

import dataclasses
import multiprocessing
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from report import Report, parser
from safetensors.torch import load_file

from sde_toolkit import MLP, VPSDE, DenoisingScoreMatching, ScoreModel
from sde_toolkit.data import checkerboard
from sde_toolkit.models.checkpoint import checkpoint_folders
from sde_toolkit.training import TrainingOptions, train

OPTIONS = TrainingOptions(
    steps=1500,
    batch_size=64,
    log_every=10,
    evaluate_every=20,
    held_out=100,
    power_averages=(0.05, 0.1),
    snapshots=50,
)


def train_here(folder, steps):
    """One run, or what is left of it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = MLP(event_shape=(2,), width=64, depth=3, embedding_scale=100.0)
    model = ScoreModel(network, VPSDE(), "edm", event_shape=(2,))
    options = dataclasses.replace(OPTIONS, steps=steps)
    train(model, checkerboard(n=1000), folder, options, loss=DenoisingScoreMatching("edm"))


def start(folder, steps):
    """The same in a process of its own, forked: it trains at once, and kills do not only hit its imports."""
    process = multiprocessing.get_context("fork").Process(target=train_here, args=(folder, steps))
    process.start()
    return process


def look(folder):
    """The steps of the checkpoints, all of which must load."""
    found = checkpoint_folders(folder)
    for step, place in found:
        state = torch.load(place / "training.pt", weights_only=True)
        if state["step"] != step or not all(load_file(place / f"{kind}.safetensors") for kind in ("raw", "ema")):
            raise SystemExit(f"{place} is not whole")
    return [step for step, _ in found]


def last_row(log):
    """The last step that was logged, 0 if none."""
    rows = log.read_text().splitlines()[1:] if log.exists() else []
    whole = [first for first in (row.split(",")[0] for row in rows) if first.isdigit()]
    return int(whole[-1]) if whole else 0


def contents(folder):
    """Weights, averages and curves (without the columns of time), by file."""
    files = [*folder.rglob("*.safetensors"), folder / "lambda.csv"]
    found = {str(file.relative_to(folder)): file.read_bytes() for file in files if not file.is_symlink()}
    rows = [line.split(",") for line in (folder / "training.csv").read_text().splitlines()]
    timed = {rows[0].index("seconds"), rows[0].index("images_per_second")}
    kept = ["\x1f".join(cell for i, cell in enumerate(row) if i not in timed) for row in rows]
    return {**found, "training.csv": "\n".join(kept).encode()}


def main():
    words = parser(__doc__)
    words.add_argument("--kills", type=int, default=20)
    words.add_argument("--steps", type=int, default=OPTIONS.steps)
    words.add_argument("--seed", type=int, default=0)
    given = words.parse_args()
    report = Report(given.results, "kills", "Training runs killed by SIGKILL at random instants")
    dice, folder = random.Random(given.seed), Path(tempfile.mkdtemp())
    began = time.perf_counter()
    start(folder / "whole", given.steps).join()
    length = time.perf_counter() - began
    report.line(
        f"A run has {given.steps} steps, a checkpoint every {OPTIONS.evaluate_every}, and takes {length:.0f} s."
    )
    kills, runs, reached, leftovers, lost = 0, 1, 0, 0, []
    while kills < given.kills:
        process = start(folder / "killed", given.steps)
        time.sleep(length * dice.uniform(0.3, 1.0))  # of what a whole run takes here: some kills hit it at any speed
        if not process.is_alive():  # through: once more from the start
            shutil.move(folder / "killed", folder / f"through-{runs}")
            reached, runs = 0, runs + 1
            continue
        process.kill()
        process.join()
        kills += 1
        steps = look(folder / "killed")
        leftovers += len(list((folder / "killed").rglob(".partial*")))
        lost.append(max(0, last_row(folder / "killed/training.csv") - max(steps, default=0)))
        if max(steps, default=0) < reached:
            raise SystemExit(f"a checkpoint was lost: {reached} before, {steps} now")
        reached = max(steps, default=0)
    start(folder / "killed", given.steps).join()
    same = [contents(folder / "whole") == contents(other) for other in folder.iterdir() if other.name != "whole"]
    report.table("found", "")
    report.row("kills", kills)
    report.row("checkpoints lost or damaged", 0)
    report.row("unfinished writes that a kill left behind", leftovers)
    report.row("logged steps repeated after a kill, median", f"{statistics.median(lost):.0f}")
    report.row("logged steps repeated after a kill, at most", max(lost))
    report.row("runs that reached the end", len(same))
    report.row("of these equal, byte for byte, to the run that was never stopped", sum(same))
    shutil.rmtree(folder)
    if not all(same):
        raise SystemExit("a run that was killed and continued is not the undisturbed one")
    report.save()


if __name__ == "__main__":
    main()
