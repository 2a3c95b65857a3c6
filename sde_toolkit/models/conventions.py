"""The ways from a network of another code's convention to a score model.

    code                                 its network                its time               here
    EDM, k-diffusion                     x̂_0 = D(x_0 + σ ε, σ)      σ                      from_denoiser
    flow_matching, torchcfm              x_0 − ε                    0 noise, 1 data        from_velocity(noise_at=0)
    rectified flow, Stable Diffusion 3   ε − x_0                    0 data, 1 noise        from_velocity(noise_at=1)
    DDPM                                 ε                          index 0 .. N − 1       from_noise
    a score of any SDE                   ∇ log p_t(x)               t                      from_score

Each is a choice of an SDE, a prediction, a time input and a sign. :class:`~sde_toolkit.ScoreModel` itself takes any
other choice; :func:`~sde_toolkit.reschedule` moves the model to another path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from sde_toolkit.checks import as_python
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.time_inputs import DiscreteIndex, NoiseRatio, RemainingTime, ScaledTime
from sde_toolkit.sde import EDMSDE, SDE, DiscreteVPSDE, FlowMatching

__all__ = ["Conventions"]

Model = TypeVar("Model", bound="Conventions")
Network = Callable[..., Any]


class Conventions(nn.Module):
    """What :class:`~sde_toolkit.ScoreModel` can be built from.

    Every method takes the other arguments of ``ScoreModel`` too: ``transform``, ``sigma_data``, ``event_shape``,
    ``condition_name`` and the rest.
    """

    @classmethod
    def from_denoiser(
        cls: type[Model], denoiser: Network, *, sigma_min: float = 0.002, sigma_max: float = 80.0, **options: Any
    ) -> Model:
        """A denoiser of EDM or k-diffusion: x̂_0 = D(x, σ) of x = x_0 + σ ε, on :class:`~sde_toolkit.EDMSDE`.

        Args:
            denoiser: D(x, sigma) with x (B, *event) and sigma (B,), preconditioning included. Its answer is x̂_0.
            sigma_min, sigma_max: the noise levels that it was trained on, in units of model space.
            **options: of ``ScoreModel``. ``sigma_data`` is the size of the data: 0.5 for most networks of EDM.

        Raises:
            ArgumentError: as ``EDMSDE`` and ``ScoreModel`` do.
        """
        return cls(denoiser, EDMSDE(sigma_min, sigma_max), "x0", time_input=NoiseRatio(), **options)

    @classmethod
    def from_velocity(
        cls: type[Model], velocity: Network, *, noise_at: Literal[0, 1], time_scale: float = 1.0, **options: Any
    ) -> Model:
        """The velocity of the straight path between data and noise, on :class:`~sde_toolkit.FlowMatching`.

        Args:
            velocity: v(x, time) with x (B, *event) and time (B,): the derivative of x by its own time.
            noise_at: the time of its own at which x is noise. 0: ``flow_matching`` and ``torchcfm``, where
                v = x_0 − ε and time 1 is data. 1: rectified flow and Stable Diffusion 3, where v = ε − x_0.
            time_scale: factor on the time that it is told: 1000 for networks that are told 0 .. 1000.
            **options: of ``ScoreModel``.

        Raises:
            ArgumentError: for another ``noise_at``, and as ``ScoreModel`` does.
        """
        if isinstance(noise_at, bool) or noise_at not in (0, 1):
            remedy = "Pass 0 if its time 1 is data (flow_matching, torchcfm), 1 if its time 1 is noise (SD3)."
            raise ArgumentError("noise_at", noise_at, "it is the time of the network at which x is noise", remedy)
        if noise_at == 1:
            return cls(velocity, FlowMatching(), "velocity", time_input=ScaledTime(time_scale), **options)
        told = RemainingTime(time_scale)
        return cls(velocity, FlowMatching(), "velocity", time_input=told, sign=-1, **options)

    @classmethod
    def from_score(cls: type[Model], score: Network, sde: SDE, **options: Any) -> Model:
        """A score ∇ log p_t(x) of an SDE, as a function of x (B, *event) and t (B,) in [0, 1].

        ``**options`` are those of ``ScoreModel``: ``time_input`` for a network that is told 999 t, for example.

        Raises:
            ArgumentError: as ``ScoreModel`` does: a score says nothing of x_0 where α(1) = 0.
        """
        return cls(score, sde, "score", **options)

    @classmethod
    def from_noise(
        cls: type[Model],
        epsilon: Network,
        betas: Sequence[float] | Tensor,
        *,
        whole_steps: bool | None = None,
        **options: Any,
    ) -> Model:
        """A network of DDPM: ε̂(x, i − 1) of step i of N, on :class:`~sde_toolkit.DiscreteVPSDE`.

        It is told N t − 1 at time t: the whole numbers 0 .. N − 1 at its own steps, fractions between them.

        Args:
            epsilon: ε̂(x, index) with x (B, *event) and index (B,).
            betas: its β_1, ..., β_N.
            whole_steps: True: it is told the nearest index as an integer. False: never. None: if it takes nothing
                else, since it looks the index up in an ``nn.Embedding``.
            **options: of ``ScoreModel``.

        Raises:
            ArgumentError: for a schedule that is none; one that ends with β_N = 1, where ε says nothing of x_0.
        """
        sde = DiscreteVPSDE(as_python(betas))
        return cls(epsilon, sde, "epsilon", time_input=DiscreteIndex(sde.N, whole=whole_steps), **options)
