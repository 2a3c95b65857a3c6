"""The result of a calibration: a solver, its grid, and their gain on fresh noise; its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.calibration.calibration_files import build_solver, describe_solver, model_digest, sde_fingerprint
from sde_toolkit.calibration.plan_errors import Measured
from sde_toolkit.checks import is_count, is_number
from sde_toolkit.errors import ArgumentError, CheckpointError, warn_caller
from sde_toolkit.files.plain import UnreadableFileError, read_json
from sde_toolkit.files.whole import write_atomically
from sde_toolkit.grids import check_grid
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sampling.samples import Sample, sample
from sde_toolkit.sde import VPSDE
from sde_toolkit.solvers import Solver

__all__ = ["Calibration", "load_calibration"]

FORMAT = "sde_toolkit/calibration/2"
_OLDER_FORMAT = "sde_toolkit/calibration/1"  # in which the factors of v networks had another meaning

_LATER = ("typical_before", "typical_after", "own_error")  # older files have none of them


@dataclass(frozen=True, eq=False)
class Calibration:
    """A solver on the grid that was found for it.

    ``sample(model, c.solver, c.grid, tweedie=c.tweedie)`` uses it; :meth:`sample` also checks that the model is the
    one it was made for.

    Attributes:
        nfe: evaluations per sample, the last denoising included.
        before, after: error of the best uncalibrated start, and of this result, both on fresh noise: the root mean
            square difference to the fine solve, per element in model space (η > 0: a distance of distributions).
        typical_before, typical_after: the median over the noises instead of the root mean square; None for η > 0 and
            from older files.
        own_error: of the fine solve itself, as a root mean square; None from older files.
        improved: False if nothing beat the start. The result is then the start, and ``reason`` says so.
        record: provenance, plain data.
    """

    solver: Solver
    grid: Tensor
    tweedie: bool
    nfe: int
    before: Measured
    after: Measured
    improved: bool
    reason: str
    record: Mapping[str, Any] = field(default_factory=dict)
    typical_before: Measured | None = None
    typical_after: Measured | None = None
    own_error: Measured | None = None

    def __str__(self) -> str:
        return f"{self.solver.name}, {self.nfe} evaluations: {self.errors_in_words}. {self.reason}"

    @property
    def errors_in_words(self) -> str:
        """The errors before and after, the typical ones, and what the reference itself is uncertain by."""
        said = f"{self.before} before, {self.after} after"
        if self.typical_before is not None and self.typical_after is not None:
            said += f" (median: {self.typical_before} before, {self.typical_after} after)"
        if self.own_error is not None:
            said += f", reference good to {self.own_error.value:.2g}"
        return said

    def check(self, model: ScoreModel) -> None:
        """Refuse a model with another SDE; warn if the calibration was made with other weights.

        Raises:
            ArgumentError: naming both SDEs.
        """
        made_for, has = self.record["sde"], sde_fingerprint(model.sde)
        pairs = zip(made_for["alpha"] + made_for["sigma"], has["alpha"] + has["sigma"], strict=True)
        if not all(abs(a - b) <= 1e-9 * max(abs(a), abs(b)) for a, b in pairs):
            problem = f"its SDE is not the one that was calibrated, {made_for['name']}"
            raise ArgumentError("model", model.sde, problem, "Calibrate this model: calibrate(model, ...).")
        if self.record["model"]["sha256"] != model_digest(model):
            said = (
                "this calibration was made with other weights: its errors do not hold for this model. Calibrate again."
            )
            warn_caller(said)

    def sample(self, model: ScoreModel, **arguments: Any) -> Sample:
        """``sample`` with this solver and grid, after :meth:`check`."""
        self.check(model)
        return sample(model, self.solver, self.grid, tweedie=self.tweedie, **arguments)

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all."""
        content = {
            "format": FORMAT,
            "solver": describe_solver(self.solver),
            "grid": [float(t).hex() for t in self.grid],
            "times": self.grid.tolist(),
            "tweedie": self.tweedie,
            "nfe": self.nfe,
            "before": asdict(self.before),
            "after": asdict(self.after),
            **{name: None if (m := getattr(self, name)) is None else asdict(m) for name in _LATER},
            "improved": self.improved,
            "reason": self.reason,
            "record": dict(self.record),
        }
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        write_atomically(target, text.encode("utf-8", "backslashreplace"))


def _has_factors_of_v(found: Mapping[str, Any]) -> bool:
    def inside(*names: str) -> Any:
        part: Any = found
        for name in names:
            part = part.get(name) if isinstance(part, Mapping) else None
        return part

    return bool(inside("record", "model", "prediction") == "v" and inside("solver", "integrator", "class") == "Tuned")


def load_calibration(path: str | Path) -> Calibration:
    """Read what :meth:`Calibration.save` wrote. The file holds data only: it cannot name code outside this package.

    Raises:
        CheckpointError: if the file is missing, foreign, damaged, or names parts that this package does not publish.
    """
    try:
        found = read_json(Path(path))
    except FileNotFoundError:
        raise CheckpointError(path, "no such file", "Write one with calibrate(...).save(path).") from None
    except UnreadableFileError as error:
        raise CheckpointError(path, str(error), "Restore the file.") from None
    if not isinstance(found, dict) or found.get("format") not in (FORMAT, _OLDER_FORMAT):
        raise CheckpointError(path, f"it is not of the format {FORMAT!r}", "It was not written by this package.")
    if found["format"] == _OLDER_FORMAT and _has_factors_of_v(found):
        problem = "its weights are for a network of v and of an older format, in which they meant something else"
        raise CheckpointError(path, problem, "Calibrate again.")
    try:
        grid = check_grid(torch.tensor([float.fromhex(t) for t in found["grid"]], dtype=torch.float64))
        return Calibration(
            solver=build_solver(path, found["solver"]),
            grid=grid,
            tweedie=_flag(found, "tweedie"),
            nfe=_count(found, "nfe"),
            before=_measured(found, "before"),
            after=_measured(found, "after"),
            improved=_flag(found, "improved"),
            reason=str(found["reason"]),
            record=_record(found),
            **{name: _measured(found, name) for name in _LATER if found.get(name) is not None},
        )
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        said = f"{type(error).__name__}: {error}"[:300]
        raise CheckpointError(path, f"it is damaged ({said})", "Restore the file.") from None


def _flag(found: Mapping[str, Any], name: str) -> bool:
    if not isinstance(found[name], bool):
        raise ValueError(f"{name} is neither true nor false")
    return bool(found[name])


def _count(found: Mapping[str, Any], name: str) -> int:
    if not (is_count(found[name]) and is_number(found[name])):
        raise ValueError(f"{name} is no count")
    return int(found[name])


def _measured(found: Mapping[str, Any], name: str) -> Measured:
    value, error = (found[name][key] for key in ("value", "error"))
    if not all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in (value, error)):
        raise ValueError(f"{name} is no measured number")
    return Measured(float(value), float(error))


def _record(found: Mapping[str, Any]) -> dict[str, Any]:
    """The record, which must hold what :meth:`Calibration.check` reads."""
    record = found["record"]
    made_for, times = record["sde"], len(sde_fingerprint(VPSDE())["alpha"])
    for curve in (made_for["alpha"], made_for["sigma"]):
        if not (isinstance(curve, list) and len(curve) == times and all(map(is_number, curve))):
            raise ValueError("its record does not say for which SDE it was made")
    if not (isinstance(made_for["name"], str) and isinstance(record["model"]["sha256"], str)):
        raise ValueError("its record does not say for which model it was made")
    return dict(record)
