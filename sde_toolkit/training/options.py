"""How to train: one frozen record, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from sde_toolkit.checks import check_count, check_positive, is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.training.averages import worth_using_from

__all__ = ["PRECISIONS", "TrainingOptions"]

PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}  # ours, accelerate's

_CORRECT = "Correct this training option."


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Args:
        steps: updates of the weights.
        batch_size: samples per update, over all processes and passes.
        pass_size: samples per forward pass of one process, at most; the gradient is accumulated over the passes that
            a batch then takes. None: a process takes its share at once.
        learning_rate: of Adam, after ``warmup_steps`` of linear rise.
        cosine_decay: let the learning rate fall to zero over the run by half a cosine; else it stays.
        betas, epsilon, weight_decay: of AdamW.
        max_gradient_norm: gradients are scaled down to this norm.
        ema_decay: per step, of the exponential moving average. The larger, the more steps it covers.
        ema_warmup: begin with a shorter average, of decay (1 + n)/(10 + n) after n steps as long as that is smaller:
            without, the average holds the first weights for some 5/(1 − ema_decay) steps (:attr:`average_from`).
        power_averages: relative widths σ_rel of power-function averages (Karras et al. 2024), for example (0.05, 0.1);
            snapshots of them are kept, from which an average of any length is made afterwards.
        snapshots: how many snapshots of each of these the run leaves, at equal distances.
        t_min: None takes the SDE's ``likelihood_end``.
        low_discrepancy: spread the times of a batch evenly (Kingma et al. 2021, appendix I.1); else independent.
        label_dropout: probability of hiding a label, for classifier-free guidance.
        held_out: test samples in the held-out loss.
        log_every, evaluate_every, checkpoint_every: in steps; ``checkpoint_every`` None: with every evaluation.
        keep: checkpoints that stay, besides the best.
        precision: of the network: float32, bfloat16, float16 (CUDA only); the loss is float32.
        patience: stop when so many steps in a row had a gradient that was not finite. (They are skipped; it is looked
            at when a row is logged.)
        compile: compile the network.
        workers: processes that read data ahead. 0: the training process reads them itself.
        seed: of everything random.

    Raises:
        ArgumentError: naming the option that cannot be used.
    """

    steps: int = 5000
    batch_size: int = 128
    pass_size: int | None = None
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    cosine_decay: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    ema_decay: float = 0.999
    ema_warmup: bool = True
    power_averages: tuple[float, ...] = ()
    snapshots: int = 16
    t_min: float | None = None
    low_discrepancy: bool = True
    label_dropout: float = 0.0
    held_out: int = 1000
    log_every: int = 50
    evaluate_every: int = 500
    checkpoint_every: int | None = None
    keep: int = 2
    precision: str = "float32"
    patience: int = 10
    compile: bool = False
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(
            self
        ):  # numbers of numpy and torch, and YAML's lists, as Python's own, which a checkpoint can hold
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        for name in ("steps", "batch_size", "log_every", "evaluate_every", "keep", "patience", "snapshots"):
            check_count(name, getattr(self, name), _CORRECT)
        for name in ("pass_size", "checkpoint_every"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), _CORRECT)
        for name in ("warmup_steps", "held_out", "seed", "workers"):
            check_count(name, getattr(self, name), _CORRECT, least=0)
        for name in ("learning_rate", "max_gradient_norm", "epsilon"):
            check_positive(name, getattr(self, name), _CORRECT)
        for name in ("low_discrepancy", "cosine_decay", "ema_warmup", "compile"):
            self._require(name, isinstance(getattr(self, name), bool), "must be true or false")
        for name in ("ema_decay", "label_dropout"):
            self._require(name, _in_unit(getattr(self, name)), "must lie in [0, 1)")
        self._require("t_min", self.t_min is None or _in_unit(self.t_min), "must lie in [0, 1)")
        self._require("weight_decay", is_number(self.weight_decay) and self.weight_decay >= 0, "must not be negative")
        pair = isinstance(self.betas, tuple) and len(self.betas) == 2 and all(map(_in_unit, self.betas))
        self._require("betas", pair, "must be two numbers in [0, 1)")
        widths = isinstance(self.power_averages, tuple) and all(map(_is_width, self.power_averages))
        self._require("power_averages", widths, "each relative width must lie strictly between 0 and 0.28")
        names = {f"{width:g}" for width in self.power_averages}
        self._require("power_averages", len(names) == len(self.power_averages), "no width may come twice")
        self._require("precision", self.precision in PRECISIONS, f"must be one of {', '.join(PRECISIONS)}")

    @property
    def average_from(self) -> int:
        """The step from which the exponential average is worth using: the first weights are under a hundredth of it."""
        return worth_using_from(self.ema_decay, self.ema_warmup)

    def _require(self, name: str, holds: bool, problem: str) -> None:
        if not holds:
            raise ArgumentError(name, getattr(self, name), problem, _CORRECT)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    return _plain(value.tolist()) if isinstance(value, (np.generic, np.ndarray, torch.Tensor)) else value


def _in_unit(value: Any) -> bool:
    return is_number(value) and 0 <= value < 1


def _is_width(value: Any) -> bool:
    return is_number(value) and 0 < value < 0.28
