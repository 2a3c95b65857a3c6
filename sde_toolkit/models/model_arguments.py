"""What a score model refuses: arguments that fit no model, times that its network cannot be told, and wrong answers."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from sde_toolkit.checks import check_positive, is_count, some_seen
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.calls import check_condition_name
from sde_toolkit.models.inspection import name_of
from sde_toolkit.models.prediction import check_kind
from sde_toolkit.models.variance_channels import check_learned_variance
from sde_toolkit.sde import SDE, check_sde

__all__ = ["check_answers", "check_arguments", "check_told_times", "refuse_answer"]


def check_arguments(network: Any, sde: Any, prediction: Any, sigma_data: Any, event_shape: Any) -> None:
    """Refuse parts that make no model.

    Raises:
        ArgumentError: naming the argument.
    """
    check_kind(prediction)
    if not callable(network):
        raise ArgumentError("network", network, "not callable", "Pass a module or a function (x, time).")
    check_sde(sde)
    if prediction in ("epsilon", "score") and sde.loses_signal:
        raise ArgumentError(
            "prediction",
            prediction,
            f"{sde} has α(1) = 0 (or a rounding error of it), where ε and score carry no information about x_0",
            "Use a network that predicts v or x0 (or edm, or velocity).",
        )
    check_positive("sigma_data", sigma_data, "Pass √E[x_0²] of the data.")
    if event_shape is not None and not (
        isinstance(event_shape, (tuple, list, torch.Size)) and all(map(is_count, event_shape))
    ):
        raise ArgumentError("event_shape", event_shape, "not a shape", "Pass the shape of one sample, (1, 28, 28).")


def check_answers(learned_variance: Any, sign: Any, condition_name: Any) -> None:
    """Refuse what no network is asked or answers.

    Raises:
        ArgumentError: naming the argument.
    """
    check_learned_variance(learned_variance)
    if sign not in (1, -1):
        raise ArgumentError("sign", sign, "a network outputs its prediction, or minus that", "Pass 1 or −1.")
    check_condition_name(condition_name)


def check_told_times(time: Tensor, t: Tensor, time_input: Any, sde: SDE) -> None:
    """Refuse times ``t`` at which the ``time`` that the network is told is not finite.

    Raises:
        ArgumentError: naming the first of them.
    """
    if some_seen(~time.isfinite()):
        raise ArgumentError(
            "t",
            t.flatten()[int((~time.isfinite()).flatten().int().argmax())].item(),
            f"{time_input} of {sde} is not finite there",
            "Keep away from this end of time, or give the model another time_input, for example ScaledTime().",
        )


def refuse_answer(network: Any, y: Tensor, x: Tensor, wanted: tuple[int, ...]) -> NoReturn:
    """Refuse a network's answer ``y`` to ``x``, which has not the shape ``wanted``.

    Raises:
        ArgumentError: naming the network.
    """
    remedy = "A score network answers in the shape of x."
    if wanted != tuple(x.shape):
        remedy = f"With learned_variance it answers in shape {wanted}: give it out_channels."
    problem = f"for x of shape {tuple(x.shape)} it returned shape {tuple(y.shape)}"
    raise ArgumentError("network", name_of(network), problem, remedy)
