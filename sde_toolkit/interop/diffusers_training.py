"""What a scheduler of diffusers says of a network: its SDE, its parameterisation, and what it is told of the time.

    scheduler                                  SDE                    network                      time
    with β_1, ..., β_N (DDPM, DDIM, Euler,     DiscreteVPSDE(betas)   ε, x_0 or v                  N t − 1: 0 .. N − 1
      Heun, DPM-Solver, UniPC, PNDM, LCM ...)
    Euler, continuous timesteps, v             EDMSDE                 −F of EDM, σ_d = 1           ¼ log σ
    EDM Euler, EDM DPM-Solver                  EDMSDE                 F (epsilon), −F (v)          ¼ log σ
    Cosine DPM-Solver                          EDMSDE                 F (epsilon), −F (v)          (2/π) atan σ
    flow matching, or ``use_flow_sigmas``      FlowMatching           ε − x_0, or x_0              N t
    ScoreSdeVe                                 VESDE                  score                        σ
    IPNDM                                      CosineVPSDE(s=0)       v                            t

The scheduler is an object of diffusers' own class, so that a key that its config leaves out has the default of that
class, and the β are those that the class computes. Not read is what only chooses a grid (shifts, Karras' sigmas, the
spacing of timesteps), and what limits x̂_0 (``clip_sample``, ``thresholding``): a limit is a wrapper here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sde_toolkit.checks import check_count
from sde_toolkit.errors import ArgumentError
from sde_toolkit.grids import check_grid
from sde_toolkit.models.prediction import Kind
from sde_toolkit.models.time_inputs import DiscreteIndex, NoiseAngle, NoiseLevel, NoiseRatio, ScaledTime
from sde_toolkit.sde import EDMSDE, SDE, VESDE, CosineVPSDE, DiscreteVPSDE, FlowMatching, Time

__all__ = ["UNREADABLE", "Training", "betas_of", "diffusers_grid", "training_of"]


@dataclass(frozen=True)
class Training:
    """How a network was trained: the arguments of ``ScoreModel`` that a scheduler decides.

    Attributes:
        sde: the forward process.
        prediction: what the network outputs, times ``sign``.
        time_input: what it is told of the time.
        sign: 1 or −1.
        sigma_data: σ_d of EDM's preconditioning; None where the reading of the network needs none.
        learned_variance: what the second half of 2 C channels holds: ``"range"``, or False where it is not used.
        is_flow: whether the path is that of flow matching, where pipelines tell their networks t in different units.
    """

    sde: SDE
    prediction: Kind
    time_input: Callable[[SDE, Time], Tensor]
    sign: Literal[1, -1] = 1
    sigma_data: float | None = None
    learned_variance: Literal[False, "range"] = False
    is_flow: bool = False


def training_of(scheduler: Any) -> Training:
    """How the network of a scheduler was trained.

    Raises:
        ArgumentError: for a scheduler of another kind than those in the header, with the reason.
    """
    config = getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        remedy = 'Pass an object such as DDPMScheduler(), or its config with "_class_name".'
        raise ArgumentError("scheduler", scheduler, "not a scheduler of diffusers", remedy)
    for kind in type(scheduler).__mro__:
        if kind.__name__ in UNREADABLE:
            problem = f"a {kind.__name__} has {UNREADABLE[kind.__name__]}"
            raise ArgumentError("scheduler", type(scheduler).__name__, problem, _OTHERWISE)
        if kind.__name__ in _KINDS:
            return _KINDS[kind.__name__](scheduler, config)
    if isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor):
        return _of_flow(scheduler, config) if config.get("use_flow_sigmas") else _of_betas(scheduler, config)
    raise ArgumentError(
        "scheduler", type(scheduler).__name__, "neither betas nor noise levels are known of it", _OTHERWISE
    )


_OTHERWISE = "Pass the scheduler that the network was trained with, or build ScoreModel(network, sde, ...) yourself."

UNREADABLE = {
    "CMStochasticIterativeScheduler": "consistency models, which answer with the end of a trajectory, not with E[x_0]",
    "ConsistencyDecoderScheduler": "consistency models, which answer with the end of a trajectory, not with E[x_0]",
    "SCMScheduler": "consistency models, which answer with the end of a trajectory, not with E[x_0]",
    "FlowMapEulerDiscreteScheduler": "flow maps, which are told two times",
    "PiflowScheduler": "networks that answer with a policy, not with a velocity",
    "HeliosScheduler": "stages of several resolutions, which are no one process",
    "HeliosDMDScheduler": "stages of several resolutions, which are no one process",
    "KarrasVeScheduler": "a network whose time and scale only its pipeline knows",
    "ScoreSdeVpScheduler": "a network whose time only its pipeline knows",
    "DDPMWuerstchenScheduler": "a limit on ᾱ of its own and networks that are called in another way",
}


def _of_betas(scheduler: Any, config: Mapping[str, Any]) -> Training:
    said = config.get("prediction_type", "epsilon")
    if config.get("timestep_type") == "continuous" and said == "v_prediction":
        low, high = (((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5)[[0, -1]].tolist()
        edm = EDMSDE(config.get("sigma_min") or low, config.get("sigma_max") or high)
        return Training(edm, "edm", NoiseLevel(), sign=-1, sigma_data=1.0)
    sde = DiscreteVPSDE(betas_of(scheduler))
    prediction = _prediction(said, {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}, "betas")
    in_range = config.get("variance_type") == "learned_range"
    return Training(sde, prediction, DiscreteIndex(sde.N), learned_variance="range" if in_range else False)


def _of_flow(scheduler: Any, config: Mapping[str, Any]) -> Training:
    said = config.get("prediction_type", "flow_prediction")
    prediction = _prediction(
        said, {"flow_prediction": "velocity", "sample": "x0"}, "the straight path of flow matching"
    )
    return Training(FlowMatching(), prediction, ScaledTime(config.get("num_train_timesteps", 1000)), is_flow=True)


def _of_edm(scheduler: Any, config: Mapping[str, Any]) -> Training:
    said = config["prediction_type"]
    _prediction(said, {"epsilon": "edm", "v_prediction": "edm"}, "EDM's preconditioning")
    sign: Literal[1, -1] = 1 if said == "epsilon" else -1
    sde = EDMSDE(config["sigma_min"], config["sigma_max"], config["rho"])
    return Training(sde, "edm", NoiseLevel(), sign=sign, sigma_data=config["sigma_data"])


def _of_cosine_edm(scheduler: Any, config: Mapping[str, Any]) -> Training:
    edm = _of_edm(scheduler, config)
    return Training(edm.sde, "edm", NoiseAngle(), sign=edm.sign, sigma_data=edm.sigma_data)


def _of_score_sde_ve(scheduler: Any, config: Mapping[str, Any]) -> Training:
    return Training(VESDE(config["sigma_min"], config["sigma_max"]), "score", NoiseRatio())


def _of_ipndm(scheduler: Any, config: Mapping[str, Any]) -> Training:
    """Its σ = sin²(π s/2) and α = √(1 − σ²) are a grid; the network is told (2/π) atan(σ/α), t of the cosine path."""
    if config.get("trained_betas") is not None:
        raise ArgumentError("scheduler", "IPNDMScheduler", "its trained_betas are no β_1, ..., β_N", _OTHERWISE)
    return Training(CosineVPSDE(s=0.0), "v", ScaledTime())


_KINDS: dict[str, Callable[[Any, Mapping[str, Any]], Training]] = {
    "EDMEulerScheduler": _of_edm,
    "EDMDPMSolverMultistepScheduler": _of_edm,
    "CosineDPMSolverMultistepScheduler": _of_cosine_edm,
    "FlowMatchEulerDiscreteScheduler": _of_flow,
    "FlowMatchHeunDiscreteScheduler": _of_flow,
    "FlowMatchLCMScheduler": _of_flow,
    "LTXEulerAncestralRFScheduler": _of_flow,
    "ScoreSdeVeScheduler": _of_score_sde_ve,
    "IPNDMScheduler": _of_ipndm,
    "SolverScheduler": lambda scheduler, config: scheduler.training,  # of to_diffusers
}


def _prediction(said: Any, kinds: Mapping[str, Kind], path: str) -> Kind:
    if said not in kinds:
        problem = f"a network on {path} is not read in this way"
        raise ArgumentError("prediction_type", said, problem, f"The scheduler may say {', '.join(kinds)}.")
    return kinds[said]


def betas_of(scheduler: Any) -> tuple[float, ...]:
    """β_1, ..., β_N of a scheduler, with Π (1 − β_j) its ``alphas_cumprod``.

    They are its ``betas``, except where the class changes ``alphas_cumprod`` afterwards: at the last step, to 2^-24 in
    place of 0 (``rescale_betas_zero_snr`` of Euler, DPM-Solver, UniPC), or everywhere (CogVideoX shifts the
    signal-to-noise ratio).
    """
    alpha_bar = scheduler.alphas_cumprod.double()
    ratio = alpha_bar / torch.cat([torch.ones_like(alpha_bar[:1]), alpha_bar[:-1]])
    betas = getattr(scheduler, "betas", None)
    betas = 1 - ratio if betas is None else betas.double()
    kept = torch.cumprod(1 - betas, 0)[:-1]
    if not torch.allclose(kept, alpha_bar[:-1], rtol=1e-3, atol=1e-6):
        betas = 1 - ratio
    if not torch.isclose(1 - betas[-1], ratio[-1], rtol=1e-3, atol=0.0):
        betas = torch.cat([betas[:-1], 1 - ratio[-1:]])
    return tuple(betas.tolist())


def diffusers_grid(scheduler: Any, steps: int, **options: Any) -> Tensor:
    """The times at which a scheduler calls its network in ``steps`` steps, and the time at which its last step ends.

    They belong to the SDE of the model that :func:`from_diffusers` makes with this scheduler. Where the last step goes
    to noise level 0 and the SDE begins above it (EDM, VE), that step is left out: it is ``sample(..., tweedie=True)``.
    The scheduler is not changed.

    Args:
        scheduler: an object of diffusers.
        steps: ``num_inference_steps``.
        **options: of its ``set_timesteps``, such as ``mu`` where it shifts by the length of a sequence.

    Raises:
        ArgumentError: as :func:`training_of` does.
        GridError: for a scheduler whose noise levels do not fall.
    """
    check_count("steps", steps, "Pass 50, for example.")
    training = training_of(scheduler)
    scheduler = type(scheduler).from_config(scheduler.config)
    scheduler.set_timesteps(steps, **options)
    if hasattr(scheduler, "set_sigmas"):  # of VE
        scheduler.set_sigmas(steps)
    indices = scheduler.timesteps.double()
    if getattr(scheduler, "sigmas", None) is None or isinstance(scheduler.sigmas, list):
        return check_grid(_of_indices(scheduler, indices, training))
    levels = scheduler.sigmas.double()
    if training.is_flow:
        return check_grid(levels.unique_consecutive())
    times = _times_of_levels(training.sde, levels[levels > 0])
    if isinstance(training.time_input, DiscreteIndex):  # a level at a whole step is that of the step, digit by digit
        N = training.time_input.N
        whole = (N * times).round()
        times = torch.where((N * times - whole).abs() < 1e-2, whole / N, times)
    if bool(levels[-1] == 0) and not bool(training.sde.sigma(0.0) > 0):
        times = torch.cat([times, torch.zeros(1, dtype=torch.float64)])
    return check_grid(times.unique_consecutive())


def _of_indices(scheduler: Any, indices: Tensor, training: Training) -> Tensor:
    """(index + 1)/N, and the end: 0, or the first step where ``set_alpha_to_one`` is false."""
    if not isinstance(training.time_input, DiscreteIndex):  # it is told t itself
        return torch.cat([indices, torch.zeros(1, dtype=torch.float64)])
    times = (indices + 1) / training.time_input.N
    last = 0.0 if scheduler.config.get("set_alpha_to_one", True) else 1 / training.time_input.N
    times = times.unique_consecutive()
    return torch.cat([times[times > last], torch.tensor([last], dtype=torch.float64)])


def _times_of_levels(sde: SDE, levels: Tensor) -> Tensor:
    """The times at which σ/α has these values, rounded beyond the ends of the SDE's range to the ends."""
    low, high = sde.half_log_snr(torch.tensor([1.0, 0.0], dtype=torch.float64))
    times = sde.inverse_half_log_snr(torch.minimum(torch.maximum(-torch.log(levels), low), high))
    nearest = times.round()  # an end of the path, whose level they give in float32
    return torch.where((times - nearest).abs() < 1e-7, nearest, times)
