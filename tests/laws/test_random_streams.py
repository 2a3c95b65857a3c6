"""No two purposes share a random stream. Those of data and of training are in tests/data/test_streams_apart.py."""

import ast
import itertools
import math
from pathlib import Path

import pytest
import torch
from quickly import calibrate

import sde_toolkit
from sde_toolkit import VPSDE, GaussianMixture, Solver, ddim
from sde_toolkit.calibration import calibrating, distributions, gradient, problem
from sde_toolkit.calibration.problem import Problem
from sde_toolkit.integrators import Exponential, Multistep
from sde_toolkit.noise.streams import Once, Purpose, generator_for, per_sample_noise

ROOT = Path(sde_toolkit.__file__).parent


def mixture():
    means = torch.tensor([[1.2, 0.0], [-0.7, 0.9], [0.0, -1.1]], dtype=torch.float64)
    return GaussianMixture(means, VPSDE(), std=0.3)


def unrelated(draws):
    """All draws (k, n): pairwise without correlation, and without one number in common."""
    draws = torch.stack([torch.as_tensor(d, dtype=torch.float64).flatten() for d in draws])
    correlations = torch.corrcoef(draws) - torch.eye(len(draws), dtype=torch.float64)
    assert correlations.abs().max() < 6 / math.sqrt(draws.shape[1])
    for a, b in itertools.combinations([set(row) for row in draws.tolist()], 2):
        assert len(a & b) < 0.01 * draws.shape[1]


@pytest.mark.parametrize("seed", [0, 1, 5 + 2**32])
def test_the_streams_of_a_sample_differ_by_purpose_and_index(seed):
    keys = [(purpose, index) for purpose in Purpose for index in (0, 1, 2, 6)]
    unrelated([per_sample_noise(seed, index, (1, 2000), purpose=purpose)() for purpose, index in keys])


def test_what_a_run_draws_once_differs_by_use_number_and_seed():
    keys = [(seed, use, number) for seed in (0, 1, 2**32) for use in Once for number in (0, 1)]
    draws = [torch.randn(2000, generator=generator_for(*key), dtype=torch.float64) for key in keys]
    bare = [torch.randn(2000, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (0, 1)]
    unrelated([*draws, *bare])


# Calibration: what a search sees, what chooses and what judges


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_sets_of_a_calibration_have_nothing_in_common(eta):
    """Noises of start and steps, the endpoints to compare with, and nothing of it is in samples of the same seed."""
    n, whole = 200, Problem(mixture(), eta, 0, (2,), torch.float64, torch.device("cpu"), fine_steps=12)
    sets = [whole.noise_set(n) for _ in range(3)]
    draws = [chosen.noise[k] for chosen in sets for k in range(3)]
    sampled = [noise() for first in (0, n, 2 * n) for noise in [per_sample_noise(0, first, (n, 2))]]
    unrelated([*draws, *sampled])
    unrelated([chosen.target for chosen in sets])
    assert [chosen.first for chosen in sets] == ([0, n, 2 * n] if eta == 0 else [0, 2 * n, 4 * n])


def test_residuals_and_directions_belong_to_their_set(monkeypatch):
    """Every set is judged on directions and residual noise of its own, the same for all plans."""
    asked = []

    def noted(seed, use, number=0):
        asked.append((seed, use, number))
        return generator_for(seed, use, number)

    for module in (problem, distributions, gradient):
        monkeypatch.setattr(module, "generator_for", noted)
    whole = Problem(mixture(), 1.0, 4, (2,), torch.float64, torch.device("cpu"), fine_steps=12)
    sets = [whole.noise_set(64) for _ in range(3)]
    grid = torch.linspace(1.0, 0.1, 4, dtype=torch.float64)
    plan = problem.Contender(Solver("", 1.0, Exponential()), grid, "")
    for chosen in sets:
        asked.clear()
        whole.squares(plan, chosen)
        assert set(asked) == {(4, Once.DIRECTIONS, chosen.first), (4, Once.RESIDUALS, chosen.first)}
    with monkeypatch.context():
        asked.clear()
        solvers = [Solver("", 1.0, Exponential()), Solver("", 1.0, Multistep())]  # two are descended from, shortly
        calibrate(mixture(), solvers, 4, n=64, seed=4, strategy="gradient", effort=0.01, reference_steps=12)
    uses = {use: {number for _, found, number in asked if found == use} for use in Once}
    assert len(uses[Once.DIRECTIONS]) == len(uses[Once.RESIDUALS]) == 3
    assert uses[Once.MINI_BATCHES] == set(range(len(uses[Once.MINI_BATCHES]))) > {0}  # one stream for each descent
    assert uses[Once.GRADIENT_CHECK] == {0}
    assert {seed for seed, _, _ in asked} == {4}


@pytest.mark.parametrize(("n", "seconds", "fit"), [(4, 1e-6, 4), (9, 1.0, 9), (None, 1e-6, 4096), (None, 1e-3, 256)])
def test_the_sets_have_the_sizes_that_are_promised(n, seconds, fit, monkeypatch):
    """As many to select and to judge with as to fit to; and they follow one another.

    By default 4096 for a model that costs less than 0.1 ms per sample, else 256, where time allows it.
    """
    monkeypatch.setattr(calibrating, "cost_of", lambda problem: seconds)
    found = calibrate(mixture(), ddim(), 3, n=n, strategy="search", effort=0.01, reference_steps=12, weights=False)
    sizes = found.record["n"]
    assert sizes["fresh"] == sizes["select"] == sizes["fit"] == fit
    assert sizes["first_fresh"] == sizes["fit"] + sizes["select"]


# Nobody makes a generator in passing

MAKERS = {"default_rng", "SeedSequence", "Philox", "RandomState", "manual_seed"}
KNOWN = {
    "noise/philox.py": "all that is keyed by a Purpose",
    "noise/streams.py": "what a run draws once",
    "sampling/foreign_denoiser.py": "torch's global numbers while foreign code runs, seeded by Purpose.FOREIGN",
    "training/draws.py": "torch's own draws in a network, by the seed of the step",
    "training/trial.py": "a trial of a run's parts",
    "data/stream.py": "orders of data: keys of their own",
    "data/dataset.py": "splits of data sets",
    "data/memory.py": "splits and samples of memory maps",
    "data/toys.py": "toy data, by the data's seed",
    "networks/embeddings.py": "frequencies, by the network's seed",
    "metrics/splits.py": "splits of real data",
    "metrics/fid.py": "torchmetrics draws from the global generator, seeded by generator_for",
    "likelihood/bits.py": "seeds of repetitions",
    "networks/edm2_blocks.py": "frequencies, by the network's seed",
    "models/perturbed_trial.py": "noise of a check, by its own seed",
    "models/exact_posterior.py": "events on which a map is checked",
    "guidance/data_space.py": "events on which a transform is checked",
    "interop/tensor_function.py": "an example of a graph's inputs",
    "cli/parts.py": "real data for a command",
    "cli/likelihood.py": "real data for a command",
    "cli/held_out.py": "real data for a command",
    "cli/measured.py": "real data for a command",
    "evaluation/restoration/restoration_tasks.py": "hidden places, by the task's seed",
    "cli/evaluate.py": "real data for a command",
    "cli/train.py": "first weights",
    "cli/real_data.py": "real data for a command",
    "evaluation/real_samples.py": "real data to compare with",
    "evaluation/linear_reference.py": "draws of a Gaussian to compare with, by their own seed",
    "interop/foreign_diffusers.py": "generators of a foreign solver, seeded by Purpose.FOREIGN",
    "metrics/sliced.py": "directions of projections, by the metric's seed",
    "sampling/bending.py": "points to look at, by a fixed seed",
    "suite/rankings.py": "resampled rankings, by the seed of the page",
    "suite/catalogue/far_modes.py": "a fixed truth",
    "suite/catalogue/molecule.py": "a fixed truth",
    "suite/catalogue/planes.py": "a fixed truth",
    "suite/catalogue/unequal.py": "a fixed truth",
}


def test_generators_are_made_in_known_places():
    """A new one belongs into Purpose or Once, or on the list above with its keys."""
    found = set()
    for file in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = getattr(node, "func", None)
            if isinstance(node, ast.Call) and getattr(name, "attr", getattr(name, "id", "")) in MAKERS:
                found.add(file.relative_to(ROOT).as_posix())
    assert found <= set(KNOWN)
