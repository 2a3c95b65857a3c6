"""The scripts behind the figures of benchmarks/README.md run, here on next to nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
READ = ["--images", "200", "--megabytes", "4", "--cap", "128", "--seconds", "0.1"]


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("overhead.py", ["--steps", "3", "--network-steps", "1", "--repeats", "1"], "× bare"),
        ("ddim_headline.py", ["--n", "4", "--ddpm-steps", "2", "--ddim-steps", "2"], "ddim"),
        ("judge_embedded.py", ["--n", "4"], "p >= 0.9"),
        ("adaptive_coordinates.py", ["--tolerances", "1e-2", "--reference", "1e-5"], "DiscreteVPSDE"),
        ("per_sample.py", ["--n", "8", "--tolerances", "1e-3"], "PerSample"),
        ("choose_auto.py", ["--budgets", "5", "--problems", "1", "--n", "2"], "× the best"),
        ("likelihood.py", ["bar", "--n", "4", "--draws", "1", "--problems", "ring", "--tolerances"], "100 + 50"),
        ("likelihood.py", ["trace", "--n", "2", "--repeats", "1"], "ratio"),
        ("likelihood.py", ["choose", "--mixtures", "1", "--n", "2", "--budgets", "6", "--nodes", "4"], "scale 0.7"),
        ("jacobian_modes.py", ["--n", "1", "--repeats", "1"], "finite_differences"),
        ("training.py", ["loop", "--batch", "2", "--steps", "2", "--repeats", "1"], "over the bare operations"),
        ("training.py", ["scaling", "--batch", "2", "--steps", "2", "--repeats", "1"], "2 processes"),
        ("kill.py", ["--kills", "1", "--steps", "200"], "byte for byte"),
        ("data_loading.py", [*READ, "--workers", "0", "1"], "images/s"),
        ("data_loading.py", ["train", *READ, "--steps", "1", "--rounds", "1", "--batch", "4"], "off the disk / memory"),
    ],
)
def test_benchmark_runs(tmp_path, script, arguments, said):
    words = [sys.executable, str(FOLDER / script), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
