"""Mixtures of Gaussians with classes: a class-conditional score model whose every conditional is exact.

The condition is that of class-conditional networks: labels (B,), 0 to C − 1 for the classes and C for "no class". Each
class, and "no class", is a law of its own over the same K components: a row of log-weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.checks import check_count
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.components import Components, components_of, union
from sde_toolkit.models.mixture import GaussianMixture, MixtureNetwork
from sde_toolkit.models.tilted import finite_scale, tilted_components
from sde_toolkit.networks.embeddings import augmented, check_labels, parts_of
from sde_toolkit.sde import SDE, Time

__all__ = ["ClassMixture"]


class _ClassNetwork(MixtureNetwork):
    """v of a mixture whose log-weights depend on the class."""

    class_log_weights: Tensor  # (C + 1, K); the last row is "no class"

    def __init__(self, sde: SDE, components: Components, class_log_weights: Tensor) -> None:
        super().__init__(sde, replace(components, log_weights=class_log_weights[-1]))
        self.register_buffer("class_log_weights", class_log_weights)

    def after(self, components: Components, log_likelihood: Tensor) -> _ClassNetwork:
        table = torch.log_softmax(self.class_log_weights.to(log_likelihood) + log_likelihood, dim=1)
        return _ClassNetwork(self.sde, components, table)

    def weights_given(self, x: Tensor, condition: Any) -> Tensor:
        """The log-weights (B, K) of the labels (B,), or (K,) of "no class".

        Raises:
            ArgumentError: unless the labels are whole numbers from 0 to C, one per sample.
        """
        label, augmentation = parts_of(condition)
        if augmentation is not None:
            augmented(None, x, augmentation)  # refuses it: a mixture has no augmentation
        if label is None:
            return self.log_weights
        C = len(self.class_log_weights) - 1
        check_labels(x, label, C, C)
        return self.class_log_weights[label]


class ClassMixture(GaussianMixture):
    """A mixture of Gaussians in classes: p(x | class) is exact at every time, and so is p(x), the mixture of all.

    ``num_classes`` is C, as that of a network: label C, and no condition, mean "no class".

    Args:
        means, sde, std, covariances, weights: those of :class:`~sde_toolkit.models.mixture.GaussianMixture`, K
            components.
        labels: (K,), the class of each component, 0 to C − 1. Default: every component is a class.

    Raises:
        ArgumentError: as there; labels of another shape, and a class without a component.
    """

    network: _ClassNetwork

    def __init__(
        self,
        means: Any,
        sde: SDE,
        *,
        std: Any = None,
        covariances: Any = None,
        weights: Any = None,
        labels: Any = None,
    ) -> None:
        means = torch.as_tensor(means, dtype=torch.float64)
        components = components_of(means, std, covariances, weights)
        member = _memberships(labels, len(components.means)).to(means.device)
        within = torch.log_softmax(torch.where(member, components.log_weights, -torch.inf), dim=1)
        table = torch.cat([within, components.log_weights.unsqueeze(0)])
        self._set_up(_ClassNetwork(sde, components, table), tuple(means.shape[1:]))

    @classmethod
    def of(
        cls, classes: Sequence[GaussianMixture], *, weights: Any = None, no_class: GaussianMixture | None = None
    ) -> ClassMixture:
        """Classes from their laws.

        Args:
            classes: the law of each class, all under one SDE and with one event shape.
            weights: (C,), of the classes in the law of "no class". Equal by default.
            no_class: the law of "no class" instead, if it is not that mixture.

        Raises:
            ArgumentError: no classes, laws of another shape or SDE, both weights and no_class.
        """
        laws = [*classes, *([] if no_class is None else [no_class])]
        first = _checked_laws(laws, len(classes))
        if no_class is not None and weights is not None:
            raise ArgumentError("weights", weights, "no_class says what they would say", "Leave one of them out.")
        parts = [law.network.components().to(torch.device("cpu")) for law in laws]
        owner = torch.cat([torch.full((len(part.means),), i) for i, part in enumerate(parts)])
        log_weights = torch.cat([part.log_weights for part in parts])
        table = torch.where(owner == torch.arange(len(laws)).unsqueeze(1), log_weights, -torch.inf)
        if no_class is None:
            shares = components_of(torch.zeros(len(classes)), 1.0, None, weights).log_weights
            table = torch.cat([table, (shares[owner] + log_weights).unsqueeze(0)])
        made = cls.__new__(cls)
        network = _ClassNetwork(first.sde, union(parts, table[-1]), table)
        made._set_up(network.to(first.network.means.device), first._events)
        return made

    @property
    def num_classes(self) -> int:
        """The number C of classes; the label C means "no class"."""
        return len(self.network.class_log_weights) - 1

    def of_class(self, label: int) -> GaussianMixture:
        """The law p(x | class) alone, label C for p(x): a mixture without classes, under the same SDE."""
        if check_count("label", label, f"Pass 0..{self.num_classes}.", least=0) > self.num_classes:
            raise ArgumentError("label", label, f"there are {self.num_classes} classes", "Pass 0 to num_classes.")
        chosen = self.network.class_log_weights[label]
        return self._plain(self.network.components().only(chosen))

    def tilted(self, label: int, scale: float) -> GaussianMixture:
        """p(x | class)^γ p(x)^(1 − γ), normalised, under the same SDE: γ = ``scale``, the class ``label``.

        It is a Gaussian where p(x | class) and p(x) ("no class") are. Classifier-free guidance does not sample it.

        Raises:
            ArgumentError: where one of the two is no Gaussian with a spread along every axis; a ``scale`` for which
                the precision γ Λ_c + (1 − γ) Λ is not positive definite.
        """
        device, laws = self.network.means.device, [self.of_class(c) for c in (label, self.num_classes)]
        class_law, no_class = (law.network.components().to(torch.device("cpu")) for law in laws)
        made = tilted_components(class_law, no_class, finite_scale(scale))
        return self._plain(made.to(device))

    def log_tilted(self, x: Tensor, condition: Tensor, scale: float, t: Time = 0.0) -> Tensor:
        """γ log p_t(x | class) + (1 − γ) log p_t(x) in nats, (B,), for any classes: not normalised.

        At t > 0 this is the product of the densities at t, which is not the law of the noised :meth:`tilted`.
        """
        scale = finite_scale(scale)
        return scale * self.log_prob(x, t, condition) + (1 - scale) * self.log_prob(x, t)

    def log_prob(self, x: Tensor, t: Time = 0.0, condition: Any = None) -> Tensor:
        """log p_t(x | class) in nats per sample, exact; ``condition``: labels (B,), or None for log p_t(x)."""
        return super().log_prob(x, t, condition)

    def draw(
        self,
        n: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """n exact samples of the data, (n, *event), of the classes ``condition`` (n,) or of all."""
        if condition is None:
            return super().draw(n, generator=generator, dtype=dtype)
        weights = self.network.weights_given(torch.empty(n), condition.cpu()).exp().cpu()
        k = torch.multinomial(weights, 1, generator=generator)[:, 0]
        return self._draw_from(k, generator, dtype)

    def _plain(self, components: Components) -> GaussianMixture:
        """A mixture without classes, under the same SDE."""
        made = GaussianMixture.__new__(GaussianMixture)
        made._set_up(MixtureNetwork(self.sde, components), self._events)
        return made


def _memberships(labels: Any, K: int) -> Tensor:
    """Which components belong to which class, (C, K)."""
    labels = torch.arange(K) if labels is None else torch.as_tensor(labels).cpu()
    remedy = f"Pass the class of each of the {K} components, counted from 0."
    if labels.dtype not in (torch.int64, torch.int32) or tuple(labels.shape) != (K,) or int(labels.min()) < 0:
        raise ArgumentError("labels", labels.tolist(), f"not {K} whole numbers from 0", remedy)
    member = labels == torch.arange(int(labels.max()) + 1).unsqueeze(1)
    if not bool(member.any(1).all()):
        problem = f"class {int(member.any(1).int().argmin())} has no component"
        raise ArgumentError("labels", labels.tolist(), problem, remedy)
    return member


def _checked_laws(laws: Sequence[Any], classes: int) -> GaussianMixture:
    """The first of the laws, once it is known that they fit one another."""
    if classes == 0:
        raise ArgumentError("classes", [], "there must be at least one class", "Pass a list of mixtures.")
    for i, law in enumerate(laws):
        name = f"classes[{i}]" if i < classes else "no_class"
        if not isinstance(law, GaussianMixture):
            raise ArgumentError(name, law, "not a GaussianMixture", "Pass gaussian(...), for example.")
        if law.event_shape != laws[0].event_shape or law.sde != laws[0].sde:
            problem = f"its events {law.event_shape} under {law.sde} are not those of classes[0]"
            raise ArgumentError(name, law.event_shape, problem, "Give all laws one event shape and one SDE.")
    first: GaussianMixture = laws[0]
    return first
