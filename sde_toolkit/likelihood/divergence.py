"""Traces of a Jacobian: exact, and by random probes that are frozen for a whole solve.

    ExactTrace       tr J = Σ_i e_iᵀ J e_i                              D products
    Hutchinson       tr J ≈ vᵀ J v,    E[v vᵀ] = I                      one product per probe
    HutchPlusPlus    tr J = tr(Qᵀ J Q) + E[gᵀ (I − QQᵀ) J (I − QQᵀ) g], Q an orthonormal basis of J S

Hutchinson 1990; Grathwohl et al. 2019 (FFJORD), section 3.1; Meyer et al. 2021 (Hutch++), algorithm 1. Every estimator
returns one trace per *replicate*. Replicates are independent and unbiased; the standard error comes from their spread.

vᵀ J v is vᵀ Jᵀ v, so that the first two give the same trace by every mode. Hutch++ does not: J S and Jᵀ S span
different spaces.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from sde_toolkit.checks import MOST, check_count
from sde_toolkit.errors import ArgumentError
from sde_toolkit.likelihood.jacobian import Mode, Products, reverse
from sde_toolkit.noise.keyed_draws import KeyedDraws
from sde_toolkit.noise.streams import Purpose, check_stream

__all__ = ["Divergence", "ExactTrace", "HutchPlusPlus", "Hutchinson"]

Distribution = Literal["rademacher", "gaussian"]
_BASIS_AT_ONCE = 2**21  # elements


@dataclass(frozen=True)
class Divergence(ABC):
    """How the divergence of a field is computed; ``mode`` says how products with its Jacobian are taken.

    None: by :attr:`default_mode`, or by the fastest where that is None, too.
    """

    mode: Mode | None = field(default=None, kw_only=True, repr=False)

    @property
    def default_mode(self) -> Mode | None:
        """How products are taken if nobody chose; None where every mode gives the same traces."""
        return None

    @property
    @abstractmethod
    def replicates(self) -> int:
        """How many independent estimates there are."""

    @abstractmethod
    def products(self, dimension: int) -> int:
        """Products with the Jacobian per evaluation of the divergence."""

    @abstractmethod
    def check(self, dimension: int) -> None:
        """Refuse events of a dimension that this divergence cannot take."""

    @abstractmethod
    def directions(
        self, events: tuple[int, ...], seed: int, first_index: int, device: torch.device | str = "cpu"
    ) -> Tensor:
        """The probes of the samples first_index, ...: (P, n, *event) float32, from the streams of the samples."""

    @abstractmethod
    def traces(self, products: Products, x: Tensor, directions: Tensor) -> Tensor:
        """tr J at every row of x (R, *event): (replicates, R). ``directions``: (P, R, *event) in the dtype of x."""


@dataclass(frozen=True)
class ExactTrace(Divergence):
    """The trace itself, for events of at most ``max_dimension`` elements: D products per evaluation.

    Raises:
        ArgumentError: if ``max_dimension`` is no count.
    """

    max_dimension: int = 1024

    def __post_init__(self) -> None:
        check_count("max_dimension", self.max_dimension, "Pass 1024.")

    @property
    def replicates(self) -> int:
        return 1

    def products(self, dimension: int) -> int:
        return dimension

    def check(self, dimension: int) -> None:
        if dimension > self.max_dimension:
            raise ArgumentError(
                "divergence",
                self,
                f"the exact trace of {dimension} dimensions takes {dimension} products with the Jacobian at every node",
                f"Use Hutchinson(probes=8), or ExactTrace(max_dimension={dimension}) if you can wait.",
            )

    def directions(
        self, events: tuple[int, ...], seed: int, first_index: int, device: torch.device | str = "cpu"
    ) -> Tensor:
        return torch.empty((0, *events), device=device)

    def traces(self, products: Products, x: Tensor, directions: Tensor) -> Tensor:
        D = math.prod(x.shape[1:])
        total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        at_once = max(1, _BASIS_AT_ONCE // x.numel())
        for first in range(0, D, at_once):
            axes = torch.arange(first, min(D, first + at_once), device=x.device)
            basis = torch.nn.functional.one_hot(axes, D).to(x.dtype)  # (C, D)
            v = basis.unsqueeze(1).expand(-1, len(x), -1).reshape(len(axes), *x.shape)
            columns = products(v).reshape(len(axes), len(x), D)
            total = total + columns.gather(2, axes.reshape(-1, 1, 1).expand(-1, len(x), 1)).sum((0, 2))
        return total.unsqueeze(0)


@dataclass(frozen=True)
class Hutchinson(Divergence):
    """The mean of vᵀ J v over ``probes`` directions, Rademacher (less variance) or Gaussian.

    Raises:
        ArgumentError: for an unknown distribution, or less than one probe.
    """

    probes: int = 4
    distribution: Distribution = "rademacher"

    def __post_init__(self) -> None:
        check_probes(self.probes, 1)
        check_distribution(self.distribution)

    @property
    def replicates(self) -> int:
        return self.probes

    def products(self, dimension: int) -> int:
        return self.probes

    def check(self, dimension: int) -> None:
        """Every dimension is accepted."""

    def directions(
        self, events: tuple[int, ...], seed: int, first_index: int, device: torch.device | str = "cpu"
    ) -> Tensor:
        return draw_probes(self.distribution, self.probes, events, seed, first_index, device)

    def traces(self, products: Products, x: Tensor, directions: Tensor) -> Tensor:
        return (directions * products(directions, last=True)).reshape(len(directions), len(x), -1).sum(-1)


@dataclass(frozen=True)
class HutchPlusPlus(Divergence):
    """``rank`` directions catch the large eigenvalues, ``probes`` Rademacher ones estimate the rest.

    2 rank + probes products; less variance than Hutchinson's with as many where the Jacobian's spectrum decays.

    Products are taken in reverse mode if nobody chose. The faster mode may differ from one device to another, and the
    answer with it, by a tenth of its standard error. Q is computed and applied in float64. In TF32, which a user may
    allow for products of float32 matrices, I − Q Qᵀ would leave a thousandth of what Q has caught.

    Raises:
        ArgumentError: for less than one direction of a kind, or a rank above the dimension.
    """

    rank: int = 4
    probes: int = 4

    def __post_init__(self) -> None:
        check_probes(self.probes, 1)
        check_count("rank", self.rank, "4 is usual.")

    @property
    def replicates(self) -> int:
        return self.probes

    def products(self, dimension: int) -> int:
        return 2 * self.rank + self.probes

    def check(self, dimension: int) -> None:
        if self.rank >= dimension:
            problem = f"a sketch of rank {self.rank} spans all {dimension} dimensions"
            raise ArgumentError("divergence", self, problem, "Use ExactTrace().")

    def directions(
        self, events: tuple[int, ...], seed: int, first_index: int, device: torch.device | str = "cpu"
    ) -> Tensor:
        return draw_probes("rademacher", self.rank + self.probes, events, seed, first_index, device)

    @property
    def default_mode(self) -> Mode | None:
        return reverse

    def traces(self, products: Products, x: Tensor, directions: Tensor) -> Tensor:
        sketch = self._flat(products(directions[: self.rank]))  # (R, D, rank)
        Q = torch.linalg.qr(sketch).Q
        caught = (Q * self._flat(products(self._events(Q, x)))).sum((1, 2))
        g = self._flat(directions[self.rank :])
        rest = g - Q @ (Q.mT @ g)
        return caught + (rest * self._flat(products(self._events(rest, x), last=True))).sum(1).T

    @staticmethod
    def _flat(v: Tensor) -> Tensor:
        """(P, R, *event) to (R, D, P), float64."""
        return v.reshape(*v.shape[:2], -1).permute(1, 2, 0).to(torch.float64)

    @staticmethod
    def _events(v: Tensor, x: Tensor) -> Tensor:
        """(R, D, P) to (P, R, *event), in the dtype of x."""
        return v.permute(2, 0, 1).reshape(v.shape[2], *x.shape).to(x.dtype)


def check_probes(probes: int, least: int) -> None:
    """Refuse what is not a number of probes.

    Raises:
        ArgumentError: naming it.
    """
    check_count("probes", probes, "Pass 4, for example.", least=least, most=MOST)


def check_distribution(distribution: str) -> None:
    """Refuse an unknown distribution of probes.

    Raises:
        ArgumentError: naming the two.
    """
    if distribution not in ("rademacher", "gaussian"):
        raise ArgumentError("distribution", distribution, "unknown", "Use 'rademacher' or 'gaussian'.")


def draw_probes(
    distribution: Distribution,
    probes: int,
    events: tuple[int, ...],
    seed: int,
    first_index: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """(probes, n, *event) float32, on ``device`` if it is CUDA; those of sample i depend on the seed and on i alone."""
    check_stream(seed, first_index)
    draws = KeyedDraws(seed, Purpose.PROBES, device)
    kind = draws.normal if distribution == "gaussian" else draws.sign
    return torch.stack([kind(k, first_index, events) for k in range(probes)])
