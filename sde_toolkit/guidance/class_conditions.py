"""With a class and without: the two conditions of classifier-free guidance, and what travels with each sample.

What stands for "no class" is one of

    the network's own row       the label ``model.num_classes``, in place of every label of the caller's
    given                       a condition of the caller's structure with one row for all samples
    given with each sample      ``Guided(condition, no_class=...)``, with one row per sample
    ``UNCONDITIONAL``           the network is called without a condition
"""

from __future__ import annotations

import enum
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance.guided import Guided
from sde_toolkit.models.conditions import pair_parts
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.wrapper import Inside
from sde_toolkit.networks.embeddings import Condition

__all__ = ["UNCONDITIONAL", "check_no_class", "condition_without_class", "with_and_without"]


class _Unconditional(enum.Enum):
    UNCONDITIONAL = "the network is called without a condition"


UNCONDITIONAL = _Unconditional.UNCONDITIONAL
"""As ``no_class``: the network is called without a condition."""


def check_no_class(model: ScoreModel, no_class: Any) -> None:
    """Refuse a model without a row for "no class", where nothing is given in its place.

    Raises:
        ArgumentError: naming the remedy.
    """
    if no_class is not None or own_row(model) is not None:
        return
    if model.num_classes is None:
        problem = "the model has no classes of its own, so that no label stands for no class"
    else:
        problem = f"the network knows its {model.num_classes} classes, and no row for samples without one"
    remedy = (
        "Train a network with num_classes=K on labels of which some are hidden (label_dropout=0.1), or pass "
        "no_class=: the condition that stands for no class, or UNCONDITIONAL."
    )
    raise ArgumentError("no_class", None, problem, remedy)


def own_row(model: ScoreModel) -> int | None:
    """The label of the network's own row for "no class", None if it has none: a module says ``no_class="refused"``."""
    if any(getattr(module, "no_class", None) == "refused" for module in model.modules()):
        return None
    return model.num_classes


def condition_without_class(model: ScoreModel, told: Guided, no_class: Any) -> Any:
    """The condition of a batch with "no class" in place of its classes, as many rows.

    Args:
        model: of which the own row is taken, where nothing is given.
        told: the condition of the batch, and its own "no class", if it brings one.
        no_class: None, ``UNCONDITIONAL``, or the given condition with one row, or without the axis of rows.

    Raises:
        ArgumentError: naming the part of ``no_class`` that does not fit; if the own row cannot stand for a condition.
    """
    condition = told.condition
    if told.no_class is not None:
        return told.no_class
    if no_class is UNCONDITIONAL:
        return None
    if no_class is not None:
        return pair_parts(condition, no_class, _one_row_for_all, "no_class")
    label = condition.label if isinstance(condition, Condition) else condition
    if not isinstance(label, Tensor) or label.ndim != 1 or label.is_floating_point():
        shown = type(condition).__name__ if not isinstance(label, Tensor) else f"{label.dtype} {tuple(label.shape)}"
        problem = "the network's own row stands for class labels, (n,) integers"
        raise ArgumentError("condition", shown, problem, "Pass labels, or no_class= in the structure of the condition.")
    free = torch.full_like(label, model.num_classes or 0)  # a model without such a row was refused before
    return condition._replace(label=free) if isinstance(condition, Condition) else free


def _one_row_for_all(path: str, value: Any, given: Any) -> Any:
    """What is given in place of a tensor of rows, expanded to the rows; in place of a shared value it stays."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return given
    if isinstance(given, (int, float)) and value.ndim == 1:
        return torch.full_like(value, given)
    if not isinstance(given, Tensor):
        problem = f"the condition of the samples is a tensor of shape {tuple(value.shape)} there"
        raise ArgumentError(path, given, problem, "Pass a tensor with one row.")
    if given.ndim == value.ndim - 1:
        given = given.unsqueeze(0)
    if given.ndim != value.ndim or given.shape[0] != 1:
        problem = f"not one row for all, beside a condition of shape {tuple(value.shape)}"
        remedy = "Pass one row. What differs between samples is passed with them: Guided(condition, no_class=rows)."
        raise ArgumentError(path, tuple(given.shape), problem, remedy)
    return given.to(value.device).expand(value.shape[0], *given.shape[1:])


def with_and_without(
    inside: Inside, x_t: Tensor, condition: Any, without: Any, stacked: bool = True
) -> tuple[Tensor, Tensor]:
    """x̂_0 of the model inside under both conditions: two evaluations.

    With ``stacked`` they are one call of the network with twice the rows, where the conditions can be stacked: both are
    made of tensors of equal shapes and equal shared values.
    """
    if not (stacked and _stackable(condition, without)):
        return inside(x_t, condition), inside(x_t, without)
    both = inside(torch.cat([x_t, x_t]), pair_parts(condition, without, _stack))
    # Both halves are cut at the length of x_t, so that an exported graph knows how long they are.
    return both[: x_t.shape[0]], both[x_t.shape[0] :]


def _stackable(condition: Any, without: Any) -> bool:
    if without is None:  # no rows at all
        return False
    each: list[bool] = []

    def note(path: str, one: Any, other: Any) -> None:
        if isinstance(one, Tensor) and isinstance(other, Tensor) and one.ndim > 0:
            each.append(one.shape == other.shape)
        else:  # tensors are not compared by value: that would wait for the device
            each.append(one is other or (not (isinstance(one, Tensor) or isinstance(other, Tensor)) and one == other))

    pair_parts(condition, without, note)
    return all(each)


def _stack(path: str, one: Any, other: Any) -> Any:
    return torch.cat([one, other]) if isinstance(one, Tensor) and one.ndim > 0 else one
