"""Features of two sets of samples, extracted once for all metrics, by one process or many."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.errors import DataError
from sde_toolkit.jobs.fingerprints import tensor_digest
from sde_toolkit.jobs.sharing import Part, cut, do_parts
from sde_toolkit.jobs.store import Arrays, PartStore
from sde_toolkit.jobs.team import Team
from sde_toolkit.metrics.extractors import Extractor
from sde_toolkit.metrics.feature_cache import keep_features, kept_features
from sde_toolkit.progress import progress_bar

__all__ = ["Extraction", "Reference", "extract_features"]


@dataclass(frozen=True, eq=False)
class Reference:
    """The real samples.

    ``values`` (N, *event) in data space: a tensor, or anything that is indexed like one and reads when it is asked.
    ``index`` (n,): which of them, all by default. For the record: ``name``, ``split``, and ``classes``, if these are
    the samples of some classes only.
    """

    values: Any
    name: str = "reference"
    split: str = ""
    index: Tensor | None = None
    classes: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.values) if self.index is None else len(self.index)

    def rows(self, first: int, last: int) -> Tensor:
        """Samples ``first`` to ``last`` − 1."""
        return self[first:last]

    def __getitem__(self, places: slice | Tensor) -> Tensor:
        """The samples at these places."""
        return self.values[places] if self.index is None else self.values[self.index[places]]


@dataclass(frozen=True, eq=False)
class Extraction:
    """Features of the samples (n, d) and of the reference (N, d), float64; the hash of each set (over the
    hashes of its samples in order); and the store of finished batches, if there is one."""

    samples: Tensor
    reference: Tensor
    hashes: dict[str, str]
    store: PartStore | None


def extract_features(
    samples: Tensor,
    reference: Reference,
    extractor: Extractor,
    conditions: Mapping[str, Any],
    *,
    levels: int | None,
    batch_size: int,
    device: torch.device | str,
    team: Team,
    directory: str | Path | None,
    progress: bool,
    say: Callable[[str], None],
) -> Extraction | None:
    """The features of both sets; None in all processes but the main one.

    ``conditions``: what the features depend on besides the samples.
    """
    store = None
    if directory is not None:
        picked = None if reference.index is None else tensor_digest(reference.index)
        what = {"samples": tensor_digest(samples), "picked": picked, "batch_size": batch_size}
        fixed = {name: part for name, part in conditions.items() if name != "metrics"}
        store = PartStore(Path(directory), {"work": "features/1", **fixed, "what": what}, "output")
    sets = {"samples": Reference(samples), "reference": reference}
    key = _key(reference, extractor, levels, batch_size) if team.main else None
    kept = None if key is None else kept_features(key)
    known = team.agree(kept is not None)
    parts: list[Part] = []
    for name, values in sets.items():
        if name == "reference" and known:
            continue
        for first, last in cut(len(values), batch_size):
            parts.append(Part(len(parts), first, last, name, last - first))
    bar: Any = None

    def begin(own: Sequence[Part]) -> None:
        nonlocal bar
        total = sum(part.last - part.first for part in own)
        bar = progress_bar(total, "features", enabled=progress and team.main)

    def compute(part: Part) -> Arrays:
        x = sets[part.what].rows(part.first, part.last)
        features = extractor(x.to(device), levels).double().cpu().numpy()
        bar.update(part.last - part.first)
        return {"features": features, "hashes": _hashes(x)}

    done = do_parts(parts, compute, store=store, team=team, begin=begin, say=say)
    bar.close()
    if done is None:
        return None
    features, hashes = {}, {}
    for name in sets:
        arrays = [kept] if name == "reference" and kept is not None else done.of(name)
        features[name] = torch.from_numpy(np.concatenate([part["features"] for part in arrays]).astype(np.float64))
        joined = np.concatenate([part["hashes"] for part in arrays])
        hashes[name] = hashlib.sha256(joined.tobytes()).hexdigest()
        if name == "reference" and key is not None and kept is None:
            keep_features(key, {"features": features[name].numpy(), "hashes": joined})
        if not bool(features[name].isfinite().all()):
            problem = f"features of the {name} hold NaN or infinity"
            raise DataError("extractor", extractor.name, problem, "Check that the data have the range that it expects.")
    return Extraction(features["samples"], features["reference"], hashes, store)


def _key(reference: Reference, extractor: Extractor, levels: int | None, batch_size: int) -> dict[str, Any] | None:
    """All that the features of the reference depend on; None if they are not kept."""
    if not extractor.kept:
        return None
    hashes = hashlib.sha256()
    for first, last in cut(len(reference), batch_size):
        hashes.update(_hashes(reference.rows(first, last)).tobytes())
    extractors = extractor.description()
    return {"work": "features/1", "data": hashes.hexdigest(), "extractor": extractors, "levels": levels}


def _hashes(x: Tensor) -> np.ndarray:
    """SHA-256 of every sample, (b, 32) bytes: of dtype, shape and values, whatever the batch."""
    array = np.ascontiguousarray(x.detach().cpu().numpy())
    head = f"{array.dtype} {array.shape[1:]} ".encode()
    found = [np.frombuffer(hashlib.sha256(head + row.tobytes()).digest(), np.uint8) for row in array]
    return np.stack(found)
