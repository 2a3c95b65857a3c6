"""What a restoration says: in sentences computed from its numbers, and as a table."""

from __future__ import annotations

import math

from sde_toolkit.evaluation.report_table import Column, Line, Table, plus_minus
from sde_toolkit.evaluation.restoration.restoration_results import EXACT, Restoration, Restored
from sde_toolkit.evaluation.restoration.restoration_scores import DISTANCE, Scores
from sde_toolkit.metrics.metric import Estimate

__all__ = ["restoration_findings", "restoration_table"]

_FAR = 0.1  # departures below this share are not spoken of


def restoration_findings(result: Restoration) -> list[str]:
    """One sentence for each thing that the numbers say; the first is the headline."""
    sentences = [_nearest_to_exact(result), _nearest_to_truth(result), _misfits(result), _confidence(result)]
    sentences.append(_failures(result))
    return [sentence for sentence in sentences if sentence] or ["Samples fit the measurement as its noise allows."]


def _done(result: Restoration) -> list[Restored]:
    return [done for done in result.restored if not done.failure]


def _nearest_to_exact(result: Restoration) -> str:
    """Which samples cannot be told from the exact posterior, or which are nearest to it."""
    exact, names = result.exact, [done.name for done in _done(result)]
    if exact is None or not names:
        return ""
    floor = f"two exact sets score {_number(exact.floor)}"
    at = [name for name in names if result.at_floor(name)]
    found = {name: estimate for name in names if (estimate := result.scores[name].distance) is not None}
    far = [f"{name} {_number(found[name])}" for name in names if name not in at]
    if at:
        rest = f"; {_listed(far)}" if far else ""
        return f"By {DISTANCE.heading}, {_listed(at)} cannot be told from the exact posterior: {floor}{rest}."
    best = min(found, key=lambda name: found[name].value)
    return f"Nearest to the exact posterior is {best}, with {DISTANCE.heading} {_number(found[best])}; {floor}."


def _nearest_to_truth(result: Restoration) -> str:
    """Whose mean is nearest to the truth, and whether that can be told."""
    found = {done.name: result.scores[done.name] for done in _done(result)}
    if len(found) < 2:
        return ""
    best = min(found, key=lambda name: found[name].rmse_of_mean.value)
    first = "No mean is measurably nearer to the truth than another"
    if all(result.nearer(best, name) for name in found if name != best):
        first = f"The mean of {best} is nearest to the truth"
    decibels = result.peak is not None
    shown = {name: s.psnr_of_mean if decibels else s.rmse_of_mean for name, s in found.items()}
    parts = [f"{name} {_number(estimate)}" for name, estimate in shown.items()]
    return f"{first}: {'PSNR' if decibels else 'RMSE'} {_listed(parts)}{' dB' * decibels}."


def _misfits(result: Restoration) -> str:
    """Which samples fit the measurement better or worse than its noise allows."""
    if result.request.noise_std == 0:
        return ""
    if result.exact is None:
        wanted = Estimate(1.0, result.misfit_of_truth.error)
        of = "1 is expected"
    else:
        wanted = result.scores[EXACT].misfit
        of = f"exact samples have {wanted.value:.2f}"
    found = {done.name: result.scores[done.name].misfit for done in _done(result)}
    worse = [f"{name} ({e.value:.2f})" for name, e in found.items() if _above(e, wanted)]
    better = [f"{name} ({e.value:.2f})" for name, e in found.items() if _above(wanted, e)]
    kinds = ((worse, "more: the measurement is missed"), (better, "less: its noise is fitted"))
    parts = [f"{_listed(names)} {_have(names)} {what}" for names, what in kinds if names]
    return f"Residuals over σ_y, where {of}: {'; '.join(parts)}." if parts else ""


def _confidence(result: Restoration) -> str:
    """Whose spread is smaller or larger than the errors of the mean."""
    exact = None if result.exact is None else result.scores[EXACT].over_confidence
    wanted = Estimate(1.0, math.nan) if exact is None else exact
    of = "1 is expected" if exact is None else f"exact samples have {exact.value:.2f}"
    found = {done.name: result.scores[done.name].over_confidence for done in _done(result)}
    sure = [f"{name} ({e.value:.2f})" for name, e in found.items() if _above(e, wanted)]
    unsure = [f"{name} ({e.value:.2f})" for name, e in found.items() if _above(wanted, e)]
    kinds = ((sure, "too little"), (unsure, "too much"))
    parts = [f"{_listed(names)} spread{'s' * (len(names) == 1)} {what}" for names, what in kinds if names]
    return f"Errors over spread, where {of}: {'; '.join(parts)}." if parts else ""


def _above(one: Estimate, other: Estimate) -> bool:
    """Whether one is larger by more than a tenth, and by more than three standard errors of the difference."""
    return one.value - other.value > max(_FAR * other.value, 3 * math.hypot(_error(one), _error(other)))


def _have(names: list[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _failures(result: Restoration) -> str:
    failed = [done.name for done in result.restored if done.failure]
    return f"Failed: {', '.join(failed)}." if failed else ""


def restoration_table(result: Restoration) -> Table:
    """A line for each method; the exact posterior and the truth below."""
    columns = [
        Column("method", "how the measurement enters", left=True),
        Column("NFE", "network evaluations of each sample"),
        Column("products", "vector-Jacobian products of each sample"),
        Column(*_misfit_words(result)),
        *(Column(heading, meaning) for heading, meaning in _accuracy(result)),
        Column("spread", "root mean square of the samples' standard deviation, per element"),
        Column("errors/spread", "of the mean; 1 where the spread is honest, above 1 where it is too small"),
        *(
            [
                Column(
                    DISTANCE.heading,
                    "distance to exact posterior samples, in exact standard deviations of every direction",
                )
            ]
            if result.exact is not None
            else []
        ),
        Column("seconds", "wall time of all measurements"),
    ]
    lines = [_line(result, done) for done in result.restored]
    if result.exact is not None:
        lines.append(Line((EXACT, "", "", *_cells(result, result.scores[EXACT], EXACT), ""), "floor"))
    rest = ("",) * (len(columns) - 4)
    lines.append(Line(("truth", "", "", _number(result.misfit_of_truth), *rest), "floor"))
    return Table(tuple(columns), tuple(lines))


def _misfit_words(result: Restoration) -> tuple[str, str]:
    if result.request.noise_std == 0:
        return "residual", "root mean square of y − A x, model space"
    return "misfit", "root mean square of (y − A x)/σ_y; 1 is expected"


def _accuracy(result: Restoration) -> list[tuple[str, str]]:
    if result.peak is None:
        return [("RMSE mean", "of the samples' mean, to the truth"), ("RMSE samples", "of the samples themselves")]
    return [
        ("RMSE mean", "of the samples' mean to the truth, data space"),
        ("PSNR mean", "10 log10(range²/mean square), in decibels"),
        ("PSNR samples", "of the samples themselves"),
    ]


def _line(result: Restoration, done: Restored) -> Line:
    known = (done.name, str(done.nfe), str(done.products))
    if done.failure:
        cells = ("–",) * (3 + len(_accuracy(result)) + (result.exact is not None))
        return Line((done.name, "", "", *cells, "failed"))
    seconds = f"{done.seconds:.2f}" if done.seconds < 10 else f"{done.seconds:.1f}"
    return Line((*known, *_cells(result, result.scores[done.name], done.name), seconds))


def _cells(result: Restoration, scores: Scores, name: str) -> tuple[str, ...]:
    """The cells from the misfit to the distance."""
    accuracy: list[Estimate | None] = [scores.rmse_of_mean]
    accuracy += [scores.rmse_of_samples] if result.peak is None else [scores.psnr_of_mean, scores.psnr_of_samples]
    out = [_number(estimate) for estimate in (scores.misfit, *accuracy, scores.spread, scores.over_confidence)]
    if result.exact is not None:
        mark = "≈ " if name != EXACT and result.at_floor(name) else ""
        out.append(mark + _number(scores.distance))
    return tuple(out)


def _number(estimate: Estimate | None) -> str:
    """Value and error to the error's first two digits, but to no more than three digits of the value."""
    if estimate is None:
        return "–"
    value, error = estimate.value, estimate.error
    if not (math.isfinite(error) and error > 0 and value != 0):
        return plus_minus(estimate)
    decimals = min(2 - math.floor(math.log10(abs(value))), 1 - math.floor(math.log10(error)))
    return f"{value:.{max(0, decimals)}f} ± {error:.{max(0, decimals)}f}"


def _error(estimate: Estimate) -> float:
    return estimate.error if math.isfinite(estimate.error) else 0.0


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
