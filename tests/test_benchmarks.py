"""The programs behind the claims of benchmarks/README.md run on next to nothing and write their results."""

import importlib
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
READ = ["--images", "200", "--megabytes", "4", "--cap", "128", "--seconds", "0.1", "--steps", "1"]
PEERS = ("diffusers", "azula", "flow_matching", "zuko", "k_diffusion")
CASES = [
    ("overhead.py", ["--steps", "3", "--network-steps", "1", "--repeats", "1"], "| bare loop with noise"),
    ("suite.py", ["--solvers", "ddim", "heun", "--peers", "--truths", "molecule", "--budgets", "4"], "| heun "),
    ("posteriors_against_peers.py", ["--problem", "mask-2", "--budgets", "3", "--n", "20"], "| ours "),
    ("gpu.py", ["--device", "cpu", "--tiny", "--parts", "agreement", "noise", "steps"], "over `generator=`"),
    ("gpu.py", ["--device", "cpu", "--minutes", "0"], "`train`, MNIST network, bfloat16, batch 1024"),
    ("posterior_cost.py", ["--rounds", "1", "--batch", "4", "--methods", "PiGDM"], "| PiGDM"),
    ("judge_embedded.py", ["--n", "4", "--models", "mnist"], "| real images"),
    ("judge_classes.py", ["--n", "4", "--epochs", "1"], "| real test images"),
    ("adaptive_coordinates.py", ["--tolerances", "1e-2", "--reference", "1e-5"], "| DiscreteVPSDE"),
    ("per_sample.py", ["--n", "8", "--tolerances", "1e-3", "--draws", "1"], "| 8 "),
    ("choose_auto.py", ["--budgets", "2", "--problems", "1", "--n", "2"], "| × the best"),
    ("choose_likelihood.py", ["--mixtures", "1", "--n", "2", "--budgets", "6", "--nodes", "4"], "| scale 0.7"),
    ("calibration.py", ["--truths", "ring", "--budgets", "3", "--patience", "0.04", "--keep", "cells.json"], "| ring"),
    ("calibration_objectives.py", ["--models", "ring", "--budgets", "3", "--seconds", "0.1", "--n", "8"], "| ring"),
    ("training.py", ["loop", "--batch", "1", "--steps", "1", "--repeats", "1"], "over the bare loop"),
    ("training.py", ["scaling", "--batch", "1", "--steps", "1", "--repeats", "1"], "2 processes"),
    ("kill.py", ["--kills", "1", "--steps", "40"], "byte for byte"),
    ("network_traffic.py", ["--batch", "1", "--networks", "UNet"], "| UNet"),
    ("data_loading.py", ["read", *READ, "--workers", "0", "1", "--batch", "2"], "PNG in tar shards"),
    ("data_loading.py", ["train", *READ, "--rounds", "1", "--batch", "4"], "| file, off the disk"),
]
PEER_CASES = [
    ("agreement.py", [], "agrees"),
    ("orders.py", ["--steps", "20", "40"], "| ours `dpmpp_3m`"),
    ("sampling_against_peers.py", ["--budgets", "3", "--n", "8", "--time-limit", "1"], "best peer"),
    ("likelihood_against_peers.py", ["bar", "--problems", "ring", "--n", "2", "--draws", "1"], "score_sde"),
    ("networks_against_peers.py", ["agree"], "| float64"),
]


LAUNCHERS = ("training.py", "kill.py", "networks_against_peers.py", "posterior_cost.py")
"""These fork processes that train, or set threads: each runs in a process of its own."""


@pytest.fixture
def run(request, tmp_path, monkeypatch):
    """``run(script, arguments)``: the text of the one results file that the program wrote into an empty folder."""

    def here(words):
        """In this process: one of its own would spend most of its time to import torch."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.syspath_prepend(str(FOLDER))
        known, threads = {*sys.modules}, torch.get_num_threads()
        try:
            runpy.run_path(words[0], run_name="__main__")
        finally:
            torch.set_num_threads(threads)
            for name in [name for name in {*sys.modules} - known if is_ours(sys.modules[name])]:
                del sys.modules[name]  # `report` is an ordinary name

    def apart(words):
        request.getfixturevalue("forks").run(1, *words, folder=tmp_path)

    def run(script, arguments):
        words = [str(FOLDER / script), *arguments, "--results", str(tmp_path)]
        (apart if script in LAUNCHERS else here)(words)
        (file,) = tmp_path.glob("*.md")
        return file.read_text(encoding="utf-8")

    return run


def is_ours(module):
    return FOLDER in Path(getattr(module, "__file__", None) or "/").parents


@pytest.mark.parametrize(("script", "arguments", "said"), CASES)
def test_benchmark_writes_its_result(run, tmp_path, script, arguments, said):
    """The file begins with the command that was given, without anything of this machine, and holds the table."""
    text = run(script, arguments)
    assert f"`python benchmarks/{' '.join([script, *arguments])}`" in text.splitlines()
    assert said in text
    assert str(tmp_path) not in text
    assert str(FOLDER.parent) not in text


@pytest.mark.parametrize(("script", "arguments", "said"), PEER_CASES)
def test_benchmark_against_peers_writes_its_result(run, script, arguments, said):
    for name in PEERS:
        pytest.importorskip(name)
    assert said in run(script, arguments)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    known = {*sys.modules}
    yield importlib.import_module("gpu")
    for name in [name for name in {*sys.modules} - known if is_ours(sys.modules[name])]:
        del sys.modules[name]


def test_a_row_that_takes_too_long_is_ended_and_one_that_fails_says_why(gpu):
    def endless():
        while True:
            pass

    ended, failed = (gpu.measured(gpu.Row("a", "b", "c", 1, work), 0.02) for work in (endless, lambda: 1 / 0))
    assert "left out" in gpu.now(ended)
    assert "ZeroDivisionError" in gpu.now(failed)


def test_every_claim_has_its_command_and_its_file():
    """One screen; a row names a program that is there and a file that its command wrote; no file without a claim."""
    lines = (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
    claims = [line.strip("| ").split(" | ") for line in lines if "(results/" in line]
    assert claims
    assert len(lines) <= 50
    linked = set()
    for _, command, result in claims:
        script = re.match(r"`(\w+\.py)", command).group(1)
        assert (FOLDER / script).exists()
        for name in re.findall(r"\(results/([\w-]+\.md)\)", result):
            text = (FOLDER / "results" / name).read_text(encoding="utf-8")
            assert f"`python benchmarks/{script}" in text.replace("\n", " "), name
            linked.add(name)
    assert {file.name for file in (FOLDER / "results").iterdir()} == linked
