"""The coefficients of a grid: a tensor with one row per step, whose columns have names.

``prepare`` of an integrator writes the names once, as keywords of :meth:`Integrator.table`; ``step`` reads its row by
them. What a name stands for may be one column, a tuple of columns (the network's inputs), tuples of such tuples (the
stages of a step), or the table of another integrator, whose row is then a part of this one's.

A bool column says what is done in some steps only. In ``values`` it is 0 or 1. In a row that is read by name it stays a
bool on the host, which can be read without waiting for the device.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any, TypeAlias, Union

import torch
from torch import Tensor

__all__ = ["Layout", "StepRow", "Table"]

_ROWS_AT_ONCE = 64  # rows that are split together, which is faster than one by one

StepRow: TypeAlias = Any
"""The coefficients of one step by name, a named tuple: 0-dim tensors in the dtype and on the device of the state."""

Shape: TypeAlias = Union[int, "Layout", tuple["Shape", ...], None]
"""What a name stands for: one column (None), several (their number), another table, or a tuple of these."""


class Layout:
    """The names of a table's columns, in order. Equal layouts are one object: see :meth:`of`.

    ``width``: number of columns.
    """

    def __init__(self, shapes: tuple[tuple[str, Shape], ...]) -> None:
        self.names = tuple(name for name, _ in shapes)
        self.shapes = tuple(shape for _, shape in shapes)
        self.width = sum(_width(shape) for shape in self.shapes)
        self.row: Any = namedtuple("StepRow", self.names)  # type: ignore[misc]
        self._cuts: Any = None
        if len(shapes) > 1 and all(shape is None or isinstance(shape, int) for shape in self.shapes):
            self._cuts = itemgetter(*_cuts(self.shapes))

    @staticmethod
    @lru_cache(maxsize=1024)
    def of(shapes: tuple[tuple[str, Shape], ...]) -> Layout:
        """The layout of these names and shapes."""
        return Layout(shapes)

    def __reduce__(self) -> tuple[Any, ...]:
        return Layout.of, (tuple(zip(self.names, self.shapes, strict=True)),)

    def read(self, cells: tuple[Tensor, ...]) -> StepRow:
        """The row of these ``width`` coefficients."""
        parts, first = [], 0
        for shape in self.shapes:
            parts.append(_part(shape, cells, first))
            first += _width(shape)
        return self.row(*parts)

    def read_fast(self, cells: tuple[Tensor, ...]) -> StepRow:
        """The same, outside of compiled graphs."""
        return self.read(cells) if self._cuts is None else self.row._make(self._cuts(cells))


@dataclass(frozen=True, eq=False)
class Table:
    """``values`` (steps, k), float64 from ``prepare``, and the ``layout`` of its columns. Iteration gives the rows.

    ``switches``: (place, column (steps,) on the CPU) of every bool column.
    """

    values: Tensor
    layout: Layout
    switches: tuple[tuple[int, Tensor], ...] = ()

    @classmethod
    def of(cls, steps: int, columns: dict[str, Any]) -> Table:
        """The columns stacked: each a tensor that broadcasts with (steps,), a sequence of such, or another table."""
        flat = [column.expand(steps) for value in columns.values() for column in _flat(value)]
        layout = Layout.of(tuple((name, _shape(value)) for name, value in columns.items()))
        switches = tuple((place, column.cpu()) for place, column in enumerate(flat) if column.dtype is torch.bool)
        for place, column in switches:
            flat[place] = column.to(flat[place].device, torch.float64)
        return cls(torch.stack(flat, dim=1), layout, switches)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Table:
        """The same numbers on another device and in another dtype."""
        return Table(self.values.to(device, dtype), self.layout, self.switches)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, i: int) -> StepRow:
        return self.layout.read(self._cells(self.values[i], i))

    def __iter__(self) -> Iterator[StepRow]:
        k, read = self.layout.width, self.layout.read_fast
        for number, part in enumerate(self.values.split(_ROWS_AT_ONCE)):
            cells = self._cells(part, number * _ROWS_AT_ONCE)
            for i in range(0, len(cells), k):
                yield read(cells[i : i + k])

    def _cells(self, values: Tensor, first: int) -> tuple[Tensor, ...]:
        """The cells of some rows, one after another, with the bools of the rows from ``first`` on."""
        cells = values.flatten().unbind()
        if not self.switches:
            return cells
        mixed, width = list(cells), self.layout.width
        for place, column in self.switches:
            mixed[place::width] = column[first : first + len(cells) // width].unbind()
        return tuple(mixed)


def _width(shape: Shape) -> int:
    if shape is None:
        return 1
    if isinstance(shape, int):
        return shape
    return shape.width if isinstance(shape, Layout) else sum(_width(part) for part in shape)


def _cuts(shapes: tuple[Shape, ...]) -> list[int | slice]:
    """The positions of single columns and of tuples of columns in a row."""
    cuts: list[int | slice] = []
    first = 0
    for shape in shapes:
        cuts.append(first if shape is None else slice(first, first + _width(shape)))
        first += _width(shape)
    return cuts


def _part(shape: Shape, cells: tuple[Tensor, ...], first: int) -> Any:
    """What a name stands for, from the cell ``first`` on."""
    if shape is None:
        return cells[first]
    if isinstance(shape, int):
        return cells[first : first + shape]
    if isinstance(shape, Layout):
        return shape.read(cells[first : first + shape.width])
    parts = []
    for part in shape:
        parts.append(_part(part, cells, first))
        first += _width(part)
    return tuple(parts)


def _flat(value: Any) -> list[Tensor]:
    """The columns of a value of :meth:`Table.of`, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Table):
        columns = list(value.values.unbind(1))
        for place, column in value.switches:
            columns[place] = column
        return columns
    return [column for part in value for column in _flat(part)]


def _shape(value: Any) -> Shape:
    if isinstance(value, Tensor):
        return None
    if isinstance(value, Table):
        return value.layout
    return len(value) if all(isinstance(part, Tensor) for part in value) else tuple(_shape(part) for part in value)
