"""The likelihood of a data set as a table, as sentences computed from its numbers, and as a record for each sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from sde_toolkit.evaluation.density.density_request import finer_how
from sde_toolkit.evaluation.density.evaluating import DatasetLikelihood
from sde_toolkit.evaluation.report_table import Column, Line, Table
from sde_toolkit.likelihood import GaussianPrior

__all__ = [
    "COLUMNS",
    "ORDER",
    "Background",
    "Quantity",
    "likelihood_findings",
    "likelihood_table",
    "quantities",
    "sample_records",
    "scale",
    "spread",
    "unit",
]

ORDER = (
    "These rows have no order in general. The two bounds hold for the model that samples by the reverse SDE. The "
    "probability flow has a density of its own; the two agree for an exact score. Between integers and the first "
    "latent the bounds use a decoder and the flow uses dequantisation, which are not ordered either."
)

COLUMNS = (
    ("", "what was computed"),
    ("value", "mean over the samples"),
    ("± estimator", "standard error from the trace's probes, or from the bound's random times and noise"),
    ("± dequantisation", "standard error from the dequantisation noise, with the part of the probes; needs 2 draws"),
    (
        "± data",
        "standard error as an estimate for fresh samples: the spread of the samples, which includes all other errors",
    ),
    ("− flow", "difference to the flow's row, sample by sample, and its standard error"),
    ("evaluations", "of the network per sample: along the path + at the nodes of the divergence"),
    ("seconds", "of computing, all processes together"),
)


@dataclass(frozen=True, eq=False)
class Background:
    """What is known of the samples besides their values.

    ``source``: where they are from; ``index``: their places there; ``labels``; ``truth``: exact log p_0(x), nats, if it
    is known; ``moments``: the Gaussian of the data at t=1; ``moments_name``: how it was computed. ``model``: what a
    guided model is, in words; empty for a model as it was trained.
    """

    source: str
    index: Tensor | None = None
    labels: Tensor | None = None
    truth: Tensor | None = None
    moments: GaussianPrior | None = None
    moments_name: str = ""
    model: str = ""


@dataclass(frozen=True)
class Quantity:
    """One quantity in :func:`unit`; NaN where a number is unknown."""

    name: str
    value: float
    estimator: float
    dequantisation: float
    data: float
    difference: float
    difference_error: float
    evaluations: str
    seconds: float


def unit(result: DatasetLikelihood) -> str:
    """Bits per dimension for data on levels, nats per sample for data with a density."""
    return "nats" if result.request.levels is None else "bits/dim"


def scale(result: DatasetLikelihood) -> float:
    """From log-likelihoods in nats to the unit: negative for bits."""
    return 1.0 if result.request.levels is None else -1.0 / (result.dimension * math.log(2))


def quantities(result: DatasetLikelihood, background: Background) -> list[Quantity]:
    """The likelihood first, then the tighter bound of its draws, the two bounds, and the truth if there is one."""
    values, numbers, factor = result.values, result.numbers, scale(result)
    flow, nan = values["nats"].mean(1), math.nan

    def row(name: str, nats: np.ndarray, error: Any, dequantisation: Any, evaluations: str, seconds: float) -> Quantity:
        own = nats is flow
        difference = (nats - flow) * factor
        estimator, noise = (nan if e is None else _of_mean(e) * abs(factor) for e in (error, dequantisation))
        apart = (nan, nan) if own else (float(difference.mean()), spread(difference))
        return Quantity(
            name, float(nats.mean()) * factor, estimator, noise, spread(nats * factor), *apart, evaluations, seconds
        )

    levels = result.request.levels is not None
    cost = f"{numbers['nfe']:.0f} + {numbers['divergence_nfe']:.0f}"
    name = "flow, exact likelihood" + ", dequantised" * levels
    noise = values.get("dequantisation_error") if result.request.draws > 1 else None
    found = [row(name, flow, values["probe_error"], noise, cost, numbers["seconds"])]
    if result.request.draws > 1:
        tighter = values["importance_weighted"]
        found.append(row(f"flow, {result.request.draws} draws weighted", tighter, None, None, cost, nan))
    for key, title in (("elbo", "ELBO, continuous time"), ("discrete", f"DDPM bound, {_steps(result)} steps")):
        if f"{key}_nats" in values:
            counted, took = f"{numbers[f'{key}_nfe']:.0f}", numbers[f"{key}_seconds"]
            found.append(row(title, values[f"{key}_nats"], values[f"{key}_error"], None, counted, took))
    if background.truth is not None:
        truth = background.truth.detach().cpu().double().numpy()
        found.append(row("exact log p", truth, np.zeros(len(truth)), None, "", nan))
    return found


def _steps(result: DatasetLikelihood) -> str:
    return f"{result.request.discrete_steps:,}"


def _cells(quantity: Quantity) -> tuple[str, ...]:
    """A quantity as text, in the order of :data:`COLUMNS`."""
    apart = f"{quantity.difference:+.4f} ± {_number(quantity.difference_error)}"
    return (
        quantity.name,
        f"{quantity.value:.4f}",
        _number(quantity.estimator),
        _number(quantity.dequantisation),
        _number(quantity.data),
        "" if math.isnan(quantity.difference) else apart,
        quantity.evaluations,
        "" if math.isnan(quantity.seconds) else f"{quantity.seconds:.0f}",
    )


def likelihood_table(result: DatasetLikelihood, background: Background) -> Table:
    """A line for each quantity."""
    columns = [Column(unit(result) if name == "value" else name, meaning) for name, meaning in COLUMNS]
    columns[0] = Column("", COLUMNS[0][1], left=True)
    return Table(tuple(columns), tuple(Line(_cells(quantity)) for quantity in quantities(result, background)))


def likelihood_findings(result: DatasetLikelihood, background: Background) -> list[str]:
    """One sentence for each thing that the numbers say; the first is the headline."""
    found = [_headline(result, background), _guidance(background), _truth(result, background)]
    found += [_errors(result, background)]
    found += [_quadrature(result), _finer(result), *_ends(result), *_prior(result, background), ORDER]
    return [sentence for sentence in found if sentence]


def _headline(result: DatasetLikelihood, background: Background) -> str:
    first, *others = quantities(result, background)
    of = unit(result)
    text = f"{first.value:.3f} ± {first.data:.2g} {of} through the flow on {result.n} samples"
    bounds = [f"{row.name.split(',')[0]} {row.value:.3f}" for row in others if row.name.startswith(("ELBO", "DDPM"))]
    return f"{text}; {', '.join(bounds)}." if bounds else f"{text}."


def _guidance(background: Background) -> str:
    if not background.model:
        return ""
    return (
        f"The density is that of the probability flow of {background.model}; the bounds hold for its reverse SDE. "
        "Neither of the two samples the law p(x | c)^γ p(x)^(1 − γ) at the scale γ."
    )


def _truth(result: DatasetLikelihood, background: Background) -> str:
    if background.truth is None:
        return ""
    error = np.abs(result.values["nats"].mean(1) - background.truth.detach().cpu().double().numpy())
    each = error.mean() / result.dimension
    return f"The flow's likelihood differs from the exact one by {each:.2g} nats per dimension on average."


def _errors(result: DatasetLikelihood, background: Background) -> str:
    row = quantities(result, background)[0]
    if math.isnan(row.estimator):
        probes = "the probes' error is unknown, since there is only one probe"
    elif row.estimator == 0:
        probes = "the trace is exact"
    else:
        probes = f"the probes of the trace contribute {_number(row.estimator)}"
    text = f"The standard error over the data is {_number(row.data)} {unit(result)}; in it {probes}"
    if result.request.levels is None:
        return text + "."
    if result.request.draws == 1:
        return text + "; the error of the dequantisation noise is included, and two draws would show it separately."
    return text + f"; the draws of the dequantisation noise contribute {_number(row.dequantisation)}."


def _quadrature(result: DatasetLikelihood) -> str:
    error = float(result.values["quadrature_error"].mean()) * abs(scale(result))
    data = spread(result.values["nats"].mean(1)) * abs(scale(result))
    text = (
        f"The quadrature of the divergence, {result.request.quadrature.nodes} nodes, estimates its own error at "
        f"{_number(error)} {unit(result)} per sample on average"
    )
    return text + (": raise quadrature.nodes until it falls." if error > data else ".")


def _finer(result: DatasetLikelihood) -> str:
    if result.finer is None:
        return ""
    shift = result.finer.shift * scale(result)
    return (
        f"Solved with {finer_how(result.request)}, the first {len(shift)} samples move by {shift.mean():+.4f} ± "
        f"{_number(spread(shift))} {unit(result)}: no error bar above covers the solver and the quadrature."
    )


def _ends(result: DatasetLikelihood) -> list[str]:
    """How the answer depends on the end time."""
    if len(result.ends) < 2:
        return []
    factor, of = scale(result), unit(result)
    own = next(e for e in result.ends if e.end == result.request.end_of(result.model))
    moves = [
        f"by {e.shift.mean() * factor:+.4f} ± {_number(spread(e.shift * factor))} at t={e.end:g}"
        for e in result.ends
        if e is not own
    ]
    k = len(own.nats)
    estimate = float(own.truncation.mean()) * factor
    sentences = [
        f"The flow is stopped at t={own.end:g}, where σ/α is {_tau(result, own.end):.2g}; to first order that "
        f"added {estimate:+.2g} {of}. Stopped elsewhere, the first {k} samples move {' and '.join(moves)} {of}."
    ]
    raw, less = (np.ptp([float((e.nats - on * e.truncation).mean()) for e in result.ends]) for on in (0.0, 1.0))
    if less > raw and raw > 0:
        sentences.append("Do not trust the first-order estimate here: the end times agree less after it is subtracted.")
    largest = max(abs(float(e.shift.mean()) * factor) for e in result.ends)
    if largest > 2 * spread(result.values["nats"].mean(1)) * abs(factor):
        sentences.append(
            "That is more than twice the error from the data. At this resolution the model sees no smooth density (for "
            "example constant pixels, or integers learnt without noise), so the answer depends on the end time."
        )
    return sentences


def _tau(result: DatasetLikelihood, end: float) -> float:
    return math.exp(-result.model.sde.half_log_snr(end).item())


def _prior(result: DatasetLikelihood, background: Background) -> list[str]:
    factor, of = abs(scale(result)), unit(result)
    kl = float(result.values["prior_cost"].mean()) * factor
    text = f"Prior: {result.request.prior_name}. The difference between N(0, σ² I) and p_1 costs {kl:.2g} {of} "
    text += "per sample on average (prior_cost)"
    if background.moments is not None:
        gap = background.moments.mismatch(1.0) * factor
        text += f"; by second moments, KL(N(α m, α² C + σ² I) ‖ N(0, σ² I)), {gap:.2g} ({background.moments_name})"
    return [text + "."]


def sample_records(result: DatasetLikelihood, background: Background) -> list[dict[str, Any]]:
    """One for each sample: bits per dimension first where there are levels, everything else in nats."""
    values, n = result.values, result.n
    columns: dict[str, Sequence[Any]] = {"sample": range(n)}
    for name, known in (("index", background.index), ("label", background.labels)):
        if known is not None:
            columns[name] = known.tolist()
    nats = values["nats"].mean(1)
    if result.request.levels is not None:
        for name, of in (("", nats), ("elbo_", values.get("elbo_nats")), ("discrete_", values.get("discrete_nats"))):
            if of is not None:
                columns[f"{name}bits_per_dim"] = (of * scale(result)).tolist()
    columns["nats"] = nats.tolist()
    if result.request.draws > 1:
        columns["importance_weighted_nats"] = values["importance_weighted"].tolist()
    rest = ("probe_error", "dequantisation_error", "quadrature_error", "truncation", "prior_cost", "rejected")
    terms = ("nats", "error", "prior", "diffusion", "reconstruction")
    bounds = [f"{bound}_{term}" for bound in ("elbo", "discrete") for term in terms]
    for name in (*rest, *bounds):
        if name in values:
            columns[name if name.endswith("_nats") or name == "rejected" else f"{name}_nats"] = values[name].tolist()
    if background.truth is not None:
        columns["exact_nats"] = background.truth.tolist()
    return [dict(zip(columns, line, strict=True)) for line in zip(*columns.values(), strict=True)]


def _number(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "0" if value == 0 else f"{value:.1e}" if value < 5e-5 else f"{value:.4f}" if value < 1 else f"{value:.3g}"


def spread(values: np.ndarray) -> float:
    """Standard error of the mean; NaN for one value."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _of_mean(errors: np.ndarray) -> float:
    """Standard error of the mean of values with independent errors."""
    return math.sqrt(float(np.square(errors).sum())) / len(errors)
