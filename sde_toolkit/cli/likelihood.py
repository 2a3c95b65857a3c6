"""``sde-toolkit likelihood``: the likelihood of a data set: exact values, bounds, and an estimate of each error."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from sde_toolkit.cli.folders import CONFIG, save_config
from sde_toolkit.cli.guidances import guided_model
from sde_toolkit.cli.held_out import HeldOut
from sde_toolkit.cli.parts import (
    build_grids,
    build_solvers,
    find_dataset,
    load_model,
    model_name,
    whole_number,
)
from sde_toolkit.cli.setup import command_words, instantiate, join, switch
from sde_toolkit.errors import ArgumentError, DataError
from sde_toolkit.evaluation.density import LikelihoodRequest, evaluate_likelihood, write_likelihood_report
from sde_toolkit.evaluation.density.density_findings import Background, likelihood_findings, likelihood_table
from sde_toolkit.evaluation.page import require_report_packages
from sde_toolkit.jobs.provenance import provenance_of
from sde_toolkit.likelihood import Divergence, ExactTrace, GaussianPrior, Hutchinson, Levels, Quadrature
from sde_toolkit.models.mixture import GaussianMixture
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.progress import require_progress
from sde_toolkit.ranges import check_range
from sde_toolkit.solvers import GridBuilder, Solver

__all__ = ["auto_divergence", "run"]

_FULL_COVARIANCE_UP_TO = 4096  # dimensions
_MOMENTS_OF = 10_000  # samples of a data set that is not in memory

_FILES = (
    "report.html", "report.md", "samples.csv", "results.json", CONFIG,
    "histogram.png", "extremes.png", "end_times.png",
)  # fmt: skip


def run(config: DictConfig) -> None:
    """Check everything, evaluate what is missing, write the report, print the table."""
    require_report_packages()
    _check_resume(config)
    progress, check_declaration = switch(config, "progress"), switch(config, "check_declaration")
    require_progress(progress)
    place = join(config, "output" if config.resume is None else "resume")
    model, weights = load_model(config)
    x, levels, background, reference = _samples(config, model)
    labels = _labels(model, background)
    model = guided_model(config, model, labels)
    request, background = _request(config, model, levels, background, reference, x, labels)
    name = model_name(config)
    with place.holding("likelihood", _FILES):
        if place.main:
            print(f"{name}: {background.source}, {len(x)} samples of shape {tuple(x.shape[1:])}, seed {request.seed}")
        found = evaluate_likelihood(
            model,
            x,
            request,
            place.directory,
            team=place.team,
            device=place.device,
            check_declaration=check_declaration,
            progress=progress,
            name=place.name,
        )
        if found is not None:
            record = provenance_of(model, name, weights, seed=request.seed, command=command_words())
            record["config"] = OmegaConf.to_container(config, resolve=True)
            title = f"Likelihood: {Path(name).name}"
            page = write_likelihood_report(found, background, place.directory, record, title=title)
            save_config(config, place.directory)
    if found is not None:
        print(f"\n{likelihood_table(found, background).text()}\n")
        for sentence in likelihood_findings(found, background):
            print(sentence)
        print(f"\nreport: {page}  ({found.seconds:.0f} s)")
    place.team.leave()


def _labels(model: ScoreModel, known: Background) -> Tensor | None:
    """The data's own labels, for a network that was built with classes.

    Raises:
        DataError: if the data have no labels, or labels of other classes.
    """
    classes = model.num_classes
    if classes is None:
        return None
    if known.labels is None:
        problem = f"the network has {classes} classes, and the data have no labels"
        raise DataError("data", known.source, problem, "Choose labelled data.")
    if int(known.labels.min()) < 0 or int(known.labels.max()) >= classes:
        problem = (
            f"their labels span {int(known.labels.min())}..{int(known.labels.max())}, the network's 0..{classes - 1}"
        )
        raise DataError("data", known.source, problem, "Choose the data that the model was trained on.")
    return known.labels


def auto_divergence(dimension: int, probes: int, exact_up_to: int) -> Divergence:
    """The exact trace in few dimensions, Rademacher probes in many."""
    return ExactTrace() if dimension <= exact_up_to else Hutchinson(probes)


def _check_resume(config: DictConfig) -> None:
    if config.resume is not None and not (Path(str(config.resume)) / "request.json").is_file():
        problem = "there is no run in that folder: it has no request.json"
        raise ArgumentError("resume", config.resume, problem, "Give the output folder of a run that was stopped.")


def _samples(config: DictConfig, model: ScoreModel) -> tuple[Tensor, Levels | None, Background, Tensor]:
    """The samples, their levels, what else is known of them, and real data for the moments of the prior."""
    n = whole_number(config, "n", 1)
    if isinstance(model, GaussianMixture) and config.get("data") is None:
        x = model.draw(n, generator=torch.Generator().manual_seed(1))
        truth = None if _any_level(config) else model.log_prob(x.double())
        drawn = Background("exact draws of the mixture", truth=truth)
        return x, _levels(config, None), drawn, model.draw(10_000, generator=torch.Generator().manual_seed(2))
    dataset = find_dataset(config, model)
    if dataset is None:
        problem = f"no data of shape {model.event_shape} ship with the package"
        raise DataError("data", None, problem, "Choose some, such as data=array data.path=test.npy.")
    chosen = HeldOut(dataset, n)
    index, labels = chosen.index, chosen.labels
    background = Background(chosen.source, index, None if labels is None else labels[index])
    x = chosen.x
    remedy = "Choose the data that the model was trained on."
    check_range(model.transform, x, dataset.transform, name=f"data={dataset.name}", remedy=remedy)
    reference = dataset.train if len(dataset.train) > 1 else chosen.values
    if not isinstance(reference, Tensor):  # read from files as needed: a part is enough for the moments
        order = torch.randperm(len(reference), generator=torch.Generator().manual_seed(0))
        reference = reference[order[:_MOMENTS_OF]]
    return x, _levels(config, dataset.levels), background, reference


def _any_level(config: DictConfig) -> bool:
    return any(config.levels[key] is not None for key in ("count", "low", "high"))


def _levels(config: DictConfig, known: int | None) -> Levels | None:
    """The levels in the configuration, or else those of the data set, 0..known−1."""
    count = known if config.levels.count is None else config.levels.count
    if count is None:
        if _any_level(config):
            problem = "it has a range of levels and not their number"
            raise ArgumentError("levels", dict(config.levels), problem, "Add levels.count=256, for example.")
        return None
    high = count - 1 if config.levels.high is None and isinstance(count, int) else config.levels.high
    return Levels(count, *(_as_float(v) for v in (0.0 if config.levels.low is None else config.levels.low, high)))


def _as_float(value: Any) -> Any:
    return float(value) if isinstance(value, int) else value


def _request(
    config: DictConfig,
    model: ScoreModel,
    levels: Levels | None,
    known: Background,
    reference: Tensor,
    x: Tensor,
    labels: Tensor | None,
) -> tuple[LikelihoodRequest, Background]:
    solver, grid = _flow(config)
    divergence = instantiate(config.divergence) if config.get("divergence") else None
    if isinstance(divergence, partial):  # auto: a function of the dimension
        divergence = divergence(math.prod(x.shape[1:]))
    moments, moments_name = _moments(model, reference)
    priors = {"standard": None, "gaussian": moments, "exact": getattr(model, "log_prob", None)}
    named = {"gaussian": f"N(α m, α² C + σ² I), {moments_name}", "exact": "the exact p_1 of the mixture"}
    if config.prior not in priors or (config.prior != "standard" and priors[config.prior] is None):
        problem = "there is no such prior" + " for this model" * (config.prior in priors)
        raise ArgumentError("prior", config.prior, problem, "Choose standard or gaussian; mixture also has exact.")
    ends = config.truncation.ends
    request = LikelihoodRequest(
        levels=levels,
        nfe=whole_number(config, "nfe", 1),
        end=config.end,
        solver=solver,
        grid=grid,
        divergence=divergence,
        quadrature=Quadrature(whole_number(config, "quadrature.nodes", 2), config.quadrature.scale),
        detail=config.detail,
        draws=1 if levels is None else whole_number(config, "draws", 1),
        prior=priors[config.prior],
        prior_name=named.get(config.prior, LikelihoodRequest.prior_name),
        elbo_draws=whole_number(config, "elbo.draws", 0),
        discrete_steps=whole_number(config, "discrete.steps", 0),
        discrete_draws=None if config.discrete.draws is None else whole_number(config, "discrete.draws", 1),
        ends=None if ends is None else tuple(ends) if isinstance(ends, ListConfig) else (ends,),
        ends_n=whole_number(config, "truncation.n", 0),
        condition=labels,
        seed=whole_number(config, "seed", 0),
        chunk=whole_number(config, "chunk", 1),
    )
    return request, Background(
        known.source, known.index, known.labels, known.truth, moments=moments, moments_name=moments_name,
        model="" if config.guidance is None else model.in_words,
    )  # fmt: skip


def _flow(config: DictConfig) -> tuple[Solver | None, GridBuilder | None]:
    """One solver and one grid, or None for the library's own choice."""
    found: list[Any] = []
    for group, build in (("solver", build_solvers), ("grid", build_grids)):
        chosen: dict[str, Any] = dict(build(config)) if config.get(f"{group}s") else {}
        if len(chosen) > 1:
            raise ArgumentError(group, list(chosen), f"a likelihood takes one {group}", f"Choose {group}=NAME.")
        found.append(next(iter(chosen.values()), None))
    solver, grid = found
    if solver is not None and not isinstance(solver, Solver):
        raise ArgumentError("solver", config.solvers, "a likelihood takes a solver, not a planner", "Choose heun.")
    return solver, grid


def _moments(model: ScoreModel, reference: Tensor) -> tuple[GaussianPrior | None, str]:
    """The Gaussian of the data at t = 1: its covariance is full if there are enough samples, else diagonal."""
    N, D = len(reference), math.prod(reference.shape[1:])
    if N < 2:
        return None, ""
    full = N > D and D <= _FULL_COVARIANCE_UP_TO
    covariance = "full" if full else "diagonal"
    prior = GaussianPrior.of_data(model, reference, "full" if full else "diagonal")
    return prior, f"{covariance} covariance of {N} samples"
