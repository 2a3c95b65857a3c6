"""Work cut into parts that do not depend on who does them, so that the result does not depend on how many do it.

A part is a fixed piece of the work: it is computed by itself, from its own streams, in batches of its own, and is the
same bits whether one process does all parts or a hundred processes do some each. Only the shares depend on the number
of processes: the dearest part first, each to whom has least to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sde_toolkit.errors import ArgumentError
from sde_toolkit.jobs.store import Arrays, PartStore
from sde_toolkit.jobs.team import Team

__all__ = ["Part", "Parts", "cut", "do_parts", "shares"]


@dataclass(frozen=True)
class Part:
    """Samples ``first`` to ``last`` − 1 of ``what``; ``cost``: about how much work, in any unit."""

    number: int
    first: int
    last: int
    what: Any = None
    cost: float = 1.0


@dataclass(frozen=True)
class Parts:
    """All parts with their arrays, in order; ``found``: how many were there already."""

    done: tuple[tuple[Part, Arrays], ...]
    found: int

    def of(self, what: Any) -> list[Arrays]:
        """The arrays of one kind of work, in the order of its samples."""
        return [arrays for part, arrays in self.done if part.what == what]


def cut(n: int, size: int | None) -> list[tuple[int, int]]:
    """Samples 0..n−1 as (first, last) of batches of ``size``; None: all together."""
    size = n if size is None else size
    return [(first, min(n, first + size)) for first in range(0, n, size)]


def shares(parts: Sequence[Part], size: int) -> list[list[Part]]:
    """Who does what: dearest first, each part to the process with the least to do. Each share in the order of parts."""
    load, own = [0.0] * size, [[] for _ in range(size)]  # type: list[float], list[list[Part]]
    for part in sorted(parts, key=lambda part: (-part.cost, part.number)):
        least = min(range(size), key=lambda rank: (load[rank], rank))
        load[least] += part.cost
        own[least].append(part)
    return [sorted(share, key=lambda part: part.number) for share in own]


def do_parts(
    parts: Sequence[Part],
    compute: Callable[[Part], Arrays],
    *,
    store: PartStore | None = None,
    team: Team | None = None,
    begin: Callable[[Sequence[Part]], object] = lambda own: None,
    say: Callable[[str], None] = print,
) -> Parts | None:
    """Compute what is not in the store yet; None in all processes but the main one.

    Args:
        compute: the arrays of a part, per-sample ones (last − first, ...), the others ().
        store: where finished parts are kept; None keeps them in memory, which one process alone can do.
        begin: is told, in each process, which parts it will compute, before the first of them.
        say: is told, in the main process, what was found and what was damaged.

    Raises:
        ArgumentError: for a team without a store, and for a store that holds parts of other work.
    """
    team = team or Team()
    if store is None:
        if team.size > 1:
            problem = f"{team.size} processes share the work, and have no folder to put their parts into"
            raise ArgumentError("directory", None, problem, "Name a folder that all of them see.")
        begin(parts)
        return Parts(tuple((part, compute(part)) for part in parts), 0)
    missing: list[int] = []
    if team.main:
        store.claim(dict)
        missing = [part.number for part in parts if store.read(part.number, part.first, part.last, say) is None]
        if len(missing) < len(parts):
            say(f"{len(parts) - len(missing)} of {len(parts)} parts are there already, {len(missing)} to compute")
    wanted = set(team.agree(missing))
    own = shares([part for part in parts if part.number in wanted], team.size)[team.rank]
    begin(own)
    for part in own:
        store.write(part.number, part.first, part.last, compute(part), team.rank)
    team.wait()
    if not team.main:
        return None
    return Parts(
        tuple((part, store.must_read(part.number, part.first, part.last, say)) for part in parts),
        len(parts) - len(wanted),
    )
