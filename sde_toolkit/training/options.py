"""The options of a training run: one frozen dataclass, checked when it is constructed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from sde_toolkit.checks import check_count, check_positive, is_number, nested_tuples
from sde_toolkit.errors import ArgumentError
from sde_toolkit.sampling.cuda_graphs import CUDA_GRAPH
from sde_toolkit.training.averages import worth_using_from

__all__ = ["PRECISIONS", "TrainingOptions"]

PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}  # ours, accelerate's


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Args:
        steps: number of updates of the weights.
        batch_size: samples per update, over all processes and passes.
        pass_size: samples per forward pass of one process, at most. If a batch needs several passes, their gradients
            are accumulated. None: one pass.
        learning_rate: of Adam, after a linear rise over ``warmup_steps`` steps.
        cosine_decay: whether the learning rate falls to zero at the last step, as half a cosine; else it is constant.
        betas, epsilon, weight_decay: of AdamW.
        max_gradient_norm: larger gradients are scaled down to this norm.
        ema_decay: of the exponential moving average, per step.
        ema_warmup: whether the decay after n steps is min(ema_decay, (1 + n)/(10 + n)). Without it the average contains
            much of the first weights for about 5/(1 − ema_decay) steps (:attr:`average_from`).
        power_averages: relative widths σ_rel of power-function averages (Karras et al. 2024), for example (0.05, 0.1).
            Snapshots of them are kept; averages of any width can be computed from these afterwards.
        snapshots: number of snapshots of each of these averages, at equal distances.
        t_min: smallest training time; None for the SDE's ``likelihood_end``.
        low_discrepancy: whether the times of a batch are evenly spread (Kingma et al. 2021, appendix I.1); else they
            are independent.
        label_dropout: probability that a label is replaced by "no class", for classifier-free guidance.
        held_out: number of test samples in the held-out loss.
        log_every, evaluate_every, checkpoint_every: in steps; ``checkpoint_every`` None: at every evaluation.
        keep: number of last checkpoints that are kept, besides the best one.
        precision: of the network: float32, bfloat16, float16 (CUDA only). The loss is computed in float32.
        patience: the run stops after this many steps in a row without a finite gradient. Such steps are skipped. Their
            number is checked whenever a row is logged.
        compile: True compiles a pass (perturbation, network, loss and their gradients) into fused kernels. "cuda_graph"
            records the whole update as it is and launches it at one go: for small networks, on one CUDA device.
        tf32: whether a CUDA device multiplies float32 matrices, and convolves, in TF32: with 10 bits after the point.
        channels_last: whether the network's convolutions store channels last. None: on CUDA devices.
        data_on_device: whether the training samples are copied to the device as a whole. None: if they are one tensor
            and take at most a quarter of its free memory, and the device is a CUDA one.
        workers: number of processes that read data ahead. 0: the training process reads them itself.
        seed: of all random numbers.

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
    compile: bool | Literal["cuda_graph"] = False
    tf32: bool = True
    channels_last: bool | None = None
    data_on_device: bool | None = None
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):  # a checkpoint holds Python's own numbers and tuples only
            object.__setattr__(self, field.name, nested_tuples(getattr(self, field.name)))
        for name in ("steps", "batch_size", "log_every", "evaluate_every", "keep", "patience", "snapshots"):
            check_count(name, getattr(self, name), self._remedy(name))
        for name in ("pass_size", "checkpoint_every"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), self._remedy(name))
        for name in ("warmup_steps", "held_out", "seed", "workers"):
            check_count(name, getattr(self, name), self._remedy(name), least=0)
        self._require("seed", self.seed < 2**64 - 1, "must be less than 2^64 - 1")  # held-out noise has the next one
        for name in ("learning_rate", "max_gradient_norm", "epsilon"):
            check_positive(name, getattr(self, name), self._remedy(name))
        for name in ("low_discrepancy", "cosine_decay", "ema_warmup", "tf32"):
            self._require(name, isinstance(getattr(self, name), bool), "must be true or false")
        for name in ("channels_last", "data_on_device"):
            given = getattr(self, name)
            self._require(name, given is None or isinstance(given, bool), "must be true, false or None")
        modes = isinstance(self.compile, bool) or self.compile == CUDA_GRAPH
        self._require("compile", modes, f'neither true nor false nor "{CUDA_GRAPH}"')
        for name in ("ema_decay", "label_dropout"):
            self._require(name, _in_unit(getattr(self, name)), "must lie in [0, 1)")
        self._require("t_min", self.t_min is None or _in_unit(self.t_min), "must lie in [0, 1)")
        self._require("weight_decay", is_number(self.weight_decay) and self.weight_decay >= 0, "must not be negative")
        pair = isinstance(self.betas, tuple) and len(self.betas) == 2 and all(map(_in_unit, self.betas))
        self._require("betas", pair, "must be two numbers in [0, 1)")
        widths = isinstance(self.power_averages, tuple) and all(map(_is_width, self.power_averages))
        self._require("power_averages", widths, "each relative width must lie strictly between 0 and 0.28")
        names = {f"{width:g}" for width in self.power_averages}
        self._require("power_averages", len(names) == len(self.power_averages), "no width may appear twice")
        self._require("precision", self.precision in PRECISIONS, f"must be one of {', '.join(PRECISIONS)}")

    @property
    def average_from(self) -> int:
        """The first step at which the first weights are less than a hundredth of the exponential average."""
        return worth_using_from(self.ema_decay, self.ema_warmup)

    def _require(self, name: str, holds: bool, problem: str) -> None:
        if not holds:
            raise ArgumentError(name, getattr(self, name), problem, self._remedy(name))

    def _remedy(self, name: str) -> str:
        return f"Pass another value. The default is {getattr(type(self), name)}."


def _in_unit(value: Any) -> bool:
    return is_number(value) and 0 <= value < 1


def _is_width(value: Any) -> bool:
    return is_number(value) and 0 < value < 0.28
