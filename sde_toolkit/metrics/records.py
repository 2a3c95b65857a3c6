"""Records: measured values with their conditions, as files. Values under different conditions are not compared.

FID and similar metrics compare two sets of features. They depend on the extractor and its weights, on how images
are resized and quantised, on the reference set, and on the number of samples (an estimate from fewer samples is larger:
its bias is of order 1/n). Two values say which of two models is better only if all of these are equal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sde_toolkit.errors import ArgumentError, DataError
from sde_toolkit.files.plain import UnreadableFileError, read_json
from sde_toolkit.files.whole import write_atomically
from sde_toolkit.jobs.fingerprints import differences
from sde_toolkit.showing import shown

__all__ = ["FORMAT", "Quality", "check_alike", "compare_records"]

FORMAT = "sde_toolkit quality/2"
_PARTS = ("values", "errors", "floors", "conditions", "about")


@dataclass(frozen=True, eq=False)
class Quality:
    """Measured values, and what they depend on.

    ``values``: by the metrics' names, with further numbers of a metric such as ``kid_std``.
    ``errors``: standard errors, where there are any.
    ``floors``: the values of as many real samples, as (value, error), of metrics that have a floor.
    ``conditions``: what has to be equal for two records to be compared: extractor, preparation, reference, number of
    samples, settings and library of each metric.
    ``about``: where the samples are from, their hash, seed, seconds, notes.
    """

    values: Mapping[str, float | None]
    errors: Mapping[str, float | None]
    floors: Mapping[str, Sequence[float | None]]
    conditions: Mapping[str, Any]
    about: Mapping[str, Any]

    def save(self, path: str | Path) -> None:
        """Write the record as JSON, whole or not at all."""
        content = {"format": FORMAT, **{name: getattr(self, name) for name in _PARTS}}
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(Path(path), f"{text}\n".encode())

    @classmethod
    def load(cls, path: str | Path) -> Quality:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: for a file that is missing, unreadable, or of another kind.
        """
        try:
            content = read_json(Path(path))
        except FileNotFoundError:
            problem = "there is no such file"
            raise DataError("record", str(path), problem, "Give the evaluation.json of an evaluation.") from None
        except UnreadableFileError as error:
            raise DataError("record", str(path), str(error), "Give the evaluation.json of an evaluation.") from None
        found = content.get("format") if isinstance(content, dict) else None
        if found != FORMAT:
            problem = f"its format is {shown(found)}, not {FORMAT!r}"
            raise DataError("record", str(path), problem, "Give the evaluation.json of an evaluation.")
        parts = {name: content.get(name) for name in _PARTS}
        missing = [name for name, part in parts.items() if not isinstance(part, dict)]
        if missing:
            raise DataError("record", str(path), f"it lacks {', '.join(missing)}", "Evaluate once more.")
        numbers = [*parts["values"].values(), *parts["errors"].values()]
        metrics = parts["conditions"].get("metrics", {})
        if not isinstance(metrics, dict) or not all(_is_value(number) for number in numbers):
            raise DataError("record", str(path), "its values are not numbers by metric", "Evaluate once more.")
        return cls(**parts)


def _is_value(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and abs(value) <= sys.float_info.max)


def compare_records(a: Quality | str | Path, b: Quality | str | Path) -> dict[str, float]:
    """b − a for every value that both have.

    Raises:
        ArgumentError: naming the first field that differs (``argument``) and both its values, if the two were not
            measured under the same conditions; or if they have no metric in common.
    """
    a, b = (record if isinstance(record, Quality) else Quality.load(record) for record in (a, b))
    check_alike(a.conditions, b.conditions)
    names = [name for name, value in a.values.items() if value is not None and b.values.get(name) is not None]
    return {name: float(b.values[name]) - float(a.values[name]) for name in names}  # type: ignore[arg-type]


def check_alike(there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse to compare values under different conditions. Metrics that only one of the two has do not matter.

    Raises:
        ArgumentError: naming what differs.
    """
    shared = set(there.get("metrics", {})) & set(here.get("metrics", {}))
    if not shared:
        both = (sorted(there.get("metrics", {})), sorted(here.get("metrics", {})))
        raise ArgumentError("metrics", both, "the two records have no metric in common", "Measure the same ones.")
    old, new = ({**side, "metrics": {name: side["metrics"][name] for name in shared}} for side in (there, here))
    found = differences(old, new)
    if found:
        field, _, values = found[0].partition(" (")
        more = f", and {len(found) - 1} more: {', '.join(f.partition(' (')[0] for f in found[1:6])}" * (len(found) > 1)
        problem = f"the two records differ in it{more}, so their values cannot be compared"
        raise ArgumentError(field, values.rstrip(")"), problem, "Evaluate both under the same conditions.")
