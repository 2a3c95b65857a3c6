"""A score model: a network, how its output is read, how time is fed to it, and its SDE.

    network(c_in x_t, time_input(t), condition=...) = y        read by :mod:`sde_toolkit.models.prediction`

c_in is 1 except for ``prediction="edm"``, where it is 1/√(σ² + α² σ_d²).

A solver calls three methods of a model: :meth:`ScoreModel.network_inputs` and :meth:`ScoreModel.readout` once per grid,
:meth:`ScoreModel.output` at every evaluation. The inputs depend on the model; a wrapper may add to those of the model
inside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from sde_toolkit.batching import as_floating, columns_like, expand_to
from sde_toolkit.checks import some_seen
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.calls import Asking
from sde_toolkit.models.conventions import Conventions
from sde_toolkit.models.descriptions import OWN, describe
from sde_toolkit.models.model_arguments import check_answers, check_arguments, check_told_times, refuse_answer
from sde_toolkit.models.prediction import Kind, Prediction, Readout, edm_input_scale
from sde_toolkit.models.savable import Savable
from sde_toolkit.models.time_inputs import NoiseLevel, ScaledTime
from sde_toolkit.models.variance_channels import LearnedVarianceKind, split_channels, twice_the_channels
from sde_toolkit.networks.inside import hyperparameters_of, inner_network
from sde_toolkit.sde import SDE, Time
from sde_toolkit.transforms import Identity, Transform

if TYPE_CHECKING:
    from sde_toolkit.models.declaration import DeclarationReport

__all__ = ["Inputs", "ScoreModel"]

TimeInput = Callable[[SDE, Time], Tensor]

Inputs: TypeAlias = tuple[Tensor, ...]
"""What :meth:`ScoreModel.output` needs of the time: tensors of the shape of t.

They are floating point, or bool for what is done at some times only. A bool at one time stays on the host, where it is
read without waiting for a device (:mod:`sde_toolkit.integrators.tables`). Wherever many times are computed together it
arrives as 0 or 1.
"""


class ScoreModel(Conventions, Savable):
    """A network that predicts x_0, ε, score, v, velocity or EDM's F at (x_t, t), and how its output is read.

    Args:
        network: any callable ``network(x, time)`` with x (B, *event) and time (B,); a module's parameters
            become this model's. A condition, if one is given, is passed on as ``condition=...``.
        sde: the forward process that the network was trained under.
        prediction: what the network outputs: ``epsilon``, ``x0``, ``v``, ``score``, ``velocity``, ``edm``.
        time_input: maps (sde, t) to the time that the network is given. Default: EDM's ¼ log(σ/α) for ``edm``, t
            itself for all others.
        sigma_data: σ_d = √E[x_0²], the size of the data in model space. It is used by ``edm``, and wherever a grid,
            nodes, a tolerance or a scale is chosen by default: ``auto``, calibration, adaptive solvers, likelihoods.
        transform: the invertible map from the caller's data to model space, where the network works. The model does
            not apply it; ``sample`` and ``log_likelihood`` do.
        event_shape: the shape of one sample, if it is fixed.
        learned_variance: the network answers with twice the channels (axis 1): y, then the variance of a step,
            log Σ = v log β + (1 − v) log β̃ (Nichol & Dhariwal 2021, eq. 15;
            :class:`~sde_toolkit.integrators.LearnedVariance`). ``"fraction"``, or True: v itself, 0 to 1. ``"range"``:
            a value in [−1, 1] that means v = (value + 1)/2, as in the published codes.
        sign: −1 for a network that outputs −``prediction``, such as a velocity that points from the noise to the data.
        condition_name: the name of the network's argument for a condition, ``"y"`` or ``"class_labels"`` for example.
            ``"**"``: a condition is a dictionary of arguments.

    Raises:
        ArgumentError: unknown ``prediction``; ε or score prediction on an SDE with α(1) = 0, where they say nothing of
            x_0; a ``sigma_data`` that is not positive; an SDE that :func:`~sde_toolkit.sde.check_sde` refuses, for
            example one that runs backwards in time; arguments of another kind than said above.
    """

    has_exact_score: ClassVar[bool] = False  # if True, solvers follow the flow to t = 0, to tolerances of float64
    decoder: Callable[[Tensor], Tensor] | None = None  # pictures of data that are latents; saved nowhere

    def __init__(
        self,
        network: Callable[..., Tensor],
        sde: SDE,
        prediction: Kind = "epsilon",
        *,
        time_input: TimeInput | None = None,
        sigma_data: float = 1.0,
        transform: Transform | None = None,
        event_shape: tuple[int, ...] | None = None,
        learned_variance: bool | LearnedVarianceKind = False,
        sign: Literal[1, -1] = 1,
        condition_name: str = "condition",
    ) -> None:
        super().__init__()
        check_arguments(network, sde, prediction, sigma_data, event_shape)
        check_answers(learned_variance, sign, condition_name)
        self.network = network
        self.sde = sde
        self.learned_variance: Literal[False] | LearnedVarianceKind = (
            "fraction" if learned_variance is True else learned_variance
        )
        self.prediction: Kind = prediction
        self.time_input = time_input or (NoiseLevel() if prediction == "edm" else ScaledTime())
        self.sigma_data = float(sigma_data)
        self.transform = transform or Identity()
        self.sign, self.condition_name = sign, condition_name
        self._asking = Asking(network, condition_name, getattr(self.time_input, "whole", False))
        self.event_shape = None if event_shape is None else tuple(map(int, event_shape))

    def forward(self, x_t: Tensor, t: Time, condition: Any = None) -> Prediction:
        """The prediction at (x_t, t). Shapes: x_t (B, *event), t scalar or (B,)."""
        x_t = as_floating(x_t, "x_t")
        t64 = torch.as_tensor(t, dtype=torch.float64, device=x_t.device)
        expand_to(t64, x_t)  # refuses a t that does not fit x_t
        inputs = columns_like(x_t, self.network_inputs(t64))
        y, v = self.outputs(x_t, inputs, condition)
        return Prediction(x_t, y, self.readout(t64), v)

    @property
    def takes_whole_times(self) -> bool:
        """Whether its network was seen to take time as integers only."""
        return bool(self._asking.whole_times)

    @property
    def num_classes(self) -> int | None:
        """The number K of classes of a network of this package, None without; the label K means "no class"."""
        inside = inner_network(self.network)
        if isinstance(inside, ScoreModel):
            return inside.num_classes
        classes: int | None = hyperparameters_of(self.network).get("num_classes")
        return classes

    def network_inputs(self, t: Tensor) -> Inputs:
        """The inputs of :meth:`output` at the float64 times ``t``, once per grid: the time input, and c_in if not 1.

        Raises:
            ArgumentError: if the time input is not finite at one of the times.
        """
        if not torch.compiler.is_compiling():
            self._asking.renew(self.network)
        time = self.time_input(self.sde, t)
        check_told_times(time, t, self.time_input, self.sde)
        if not self.scales_input:
            return (time,)
        return time, edm_input_scale(self.sde.alpha(t), self.sde.sigma(t), self.sigma_data)

    @property
    def evaluations_inside(self) -> int:
        """Evaluations of networks in one evaluation of the model, at most: 2 under classifier-free guidance."""
        return 1

    @property
    def in_words(self) -> str:
        """What the model is, for the sentence "the probability flow of ..."; wrappers say what they change."""
        return "the model"

    def check_times(self, times: Tensor) -> None:
        """Called before a run that evaluates the model at ``times``, (steps,) float64: a wrapper may warn of them."""

    @property
    def scales_input(self) -> bool:
        """Whether the network sees c_in x_t with c_in ≠ 1."""
        return self.prediction == "edm"

    def output(self, x_t: Tensor, inputs: Inputs, condition: Any = None) -> Tensor:
        """The raw network output y for prepared inputs.

        Shapes: x_t (B, *event); inputs 0-dim or (B,), from :meth:`network_inputs`, in the dtype of x_t. A network is
        called in its own dtype (:mod:`sde_toolkit.models.calls`); y has the dtype of x_t.
        """
        return self.outputs(x_t, inputs, condition)[0]

    def outputs(self, x_t: Tensor, inputs: Inputs, condition: Any = None) -> tuple[Tensor, Tensor | None]:
        """(y, v) by one evaluation: y as from :meth:`output`, and v (B, *event), which sets the variance of a step.

        The log-variance is v log β + (1 − v) log β̃: the posterior's at v = 0, the forward process's at v = 1 (Nichol &
        Dhariwal 2021, eq. 15). v is None without ``learned_variance``.
        """
        y, v = self._ask(x_t, inputs, condition), None
        if self.learned_variance:
            y, v = split_channels(y, x_t, self.learned_variance)
        return (y if self.sign == 1 else -y), v

    def _ask(self, x_t: Tensor, inputs: Inputs, condition: Any) -> Tensor:
        """The whole answer of the network, its shape checked. The network is called here and nowhere else."""
        network, asking, shape = self.network, self._asking, x_t.shape  # torch looks up networks and shapes slowly
        x = expand_to(inputs[1], x_t) * x_t if len(inputs) > 1 else x_t
        if asking.network is not network:
            asking.renew(network)
        y = asking(x, inputs[0].expand(shape[0]), condition, x_t)
        wanted = twice_the_channels(x_t) if self.learned_variance else shape
        if y.shape != wanted:
            refuse_answer(network, y, x_t, tuple(wanted))
        return y if y.dtype == x_t.dtype else y.to(x_t.dtype)

    def readout(self, t: Tensor) -> Readout:
        """How the output at the times ``t`` is turned into x_0, ε, score and the rest."""
        return Readout(self.sde, self.prediction, t, self.sigma_data)

    def score(self, x_t: Tensor, t: Time, condition: Any = None) -> Tensor:
        """∇ log p_t(x_t), shape of x_t.

        Raises:
            ArgumentError: where σ = 0, if the network predicts something else: reading the score divides by σ.
        """
        said = self(x_t, t, condition)
        score = said.score
        t = said.readout.t.flatten()
        vanishes = self.sde.sigma(t) == 0
        if some_seen(vanishes) and some_seen(~score.isfinite()):
            problem = f"σ is 0 there, and the score cannot be read from {self.prediction}"
            remedy = f"Pass a later time, {self.sde.likelihood_end:g} for example."
            raise ArgumentError("t", t[int(vanishes.int().argmax())].item(), problem, remedy)
        return score

    def check(self, data: Tensor, *, condition: Any = None, n: int | None = None, seed: int = 0) -> DeclarationReport:
        """Is the declaration right? The error of x̂_0 on perturbed data, at twenty noise levels.

        Beside it stands the error of the best linear denoiser of these data. The network is also read and asked in
        other ways: other predictions, signs, times, paths, ranges of the data. The report says which fits best
        (:mod:`sde_toolkit.models.declaration`). Of a wrapped model the one inside is tested.

        Args:
            data: samples (N, *event) that the network was trained on, in the caller's space; 1,000 are plenty.
            condition: handed to the network; tensors in it have one row per sample of ``data``.
            n: samples per level. Default: 8 to 256, more for small samples.
            seed: of the noise. Global random numbers are left alone.

        Raises:
            ArgumentError: for fewer than 16 samples, samples that are all the same or not finite, and data of another
                shape.
        """
        from sde_toolkit.models.declaration import check_declaration

        return check_declaration(self, data, condition=condition, n=n, seed=seed)

    def description(self) -> dict[str, Any]:
        """Everything but the weights, as plain data: what ``model.yaml`` holds."""
        kind = self.learned_variance
        unusual: dict[str, Any] = {} if kind is False else {"learned_variance": True if kind == "fraction" else kind}
        unusual |= {} if self.sign == 1 else {"sign": self.sign}
        unusual |= {} if self.condition_name == "condition" else {"condition_name": self.condition_name}
        return {
            "sde": describe("sde", self.sde),
            "network": self._describe_network(),
            "prediction": self.prediction,
            "time_input": describe("time_input", self.time_input),
            "sigma_data": self.sigma_data,
            "transform": describe("transform", self.transform),
            "event_shape": None if self.event_shape is None else list(self.event_shape),
            **unusual,
        }

    def _describe_network(self) -> dict[str, Any]:
        inside = inner_network(self.network)
        if isinstance(inside, ScoreModel):
            return {OWN: type(inside).__qualname__, **inside.description()}
        return describe("network", inside)

    def extra_repr(self) -> str:
        return f"sde={self.sde}, prediction={self.prediction!r}, time_input={self.time_input}"
