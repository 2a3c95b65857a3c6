"""Small training runs for the laws: `python runs.py FOLDER NAME [UNTIL]` runs one in a process of its own.

FOLDER NAME UNTIL may be given again and again, "end" for no stop: one run after another."""

import csv
import dataclasses
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from sde_toolkit import MLP, VPSDE, DenoisingScoreMatching, ScoreModel, UNet
from sde_toolkit.data import Dataset, HorizontalFlip, checkerboard
from sde_toolkit.models.checkpoint import checkpoint_folders
from sde_toolkit.training import TrainingOptions, train

VECTORS = TrainingOptions(
    steps=100,
    batch_size=64,
    warmup_steps=5,
    log_every=7,
    evaluate_every=20,
    power_averages=(0.05, 0.1),
    snapshots=10,
    held_out=200,
)
HALF = dataclasses.replace(VECTORS, steps=50, evaluate_every=10)


def vectors(folder, until=None, options=VECTORS):
    """Points in the plane, a perceptron."""
    torch.manual_seed(0)
    network = MLP(event_shape=(2,), width=32, depth=2, embedding_scale=100.0)
    model = ScoreModel(network, VPSDE(), "edm", event_shape=(2,))
    return train(model, checkerboard(n=1000), folder, options, loss=DenoisingScoreMatching("edm"), until=until)


def stripes(n=120, classes=3):
    """Images whose class is where the bright stripe is, and a little noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % classes
    x = 0.1 * torch.randn(n, 1, 8, 8, generator=generator) - 1
    for i, label in enumerate(labels.tolist()):
        x[i, :, 2 * label : 2 * label + 2] += 2
    part = slice(0, n // 4)
    return Dataset("stripes", train=x, test=x[part], train_labels=labels, test_labels=labels[part])


def images(folder, until=None, **changes):
    """Everything that is random at once: dropout, flips, hidden labels, independent times, passes, reading ahead."""
    torch.manual_seed(0)
    network = UNet(widths=(8, 16), blocks_per_level=1, attention_levels=(1,), dropout=0.2, num_classes=3)
    model = ScoreModel(network, VPSDE(), "v", event_shape=(1, 8, 8))
    given = {
        "steps": 20,
        "batch_size": 16,
        "pass_size": 8,
        "label_dropout": 0.3,
        "low_discrepancy": False,
        "log_every": 3,
        "evaluate_every": 6,
        "checkpoint_every": 4,
        "warmup_steps": 2,
        "workers": 1,
        "held_out": 24,
    }
    options = TrainingOptions(**{**given, **changes})
    return train(model, stripes(), folder, options, augmentation=HorizontalFlip(), until=until)


def half(folder, until=None):
    """For what is long enough already."""
    return vectors(folder, until, HALF)


RUNS = {"vectors": vectors, "half": half, "images": images}


def weights(folder, name, step=None):
    """The tensors of a checkpoint of a run; the last one by default."""
    folders = dict(checkpoint_folders(folder))
    return load_file(folders[max(folders) if step is None else step] / f"{name}.safetensors")


def rows(folder, file="training.csv"):
    """The rows of a log without the two columns that measure time."""
    with (Path(folder) / file).open(newline="") as lines:
        found = list(csv.DictReader(lines))
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in found]


if __name__ == "__main__":
    torch.set_num_threads(1)
    words = [*sys.argv[1:], "end"]
    for place, name, until in zip(words[::3], words[1::3], words[2::3], strict=False):
        place = Path(place.format(rank=os.environ.get("RANK", "0")))  # {rank}: a folder for each process
        RUNS[name](place, until=None if until == "end" else int(until))
