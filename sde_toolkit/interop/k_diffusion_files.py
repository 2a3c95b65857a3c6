"""Checkpoints of k-diffusion: slim safetensors with their configuration in the header, and training checkpoints.

    file                                     ema                   raw
    *.safetensors, metadata["config"]        its tensors           not in it
    *.pth: config, model, model_ema, opt     model_ema             model

Its network F is told σ, and x̂_0 = c_skip x + c_out F(c_in x, σ) of x = x_0 + σ ε, with EDM's c_skip, c_out and c_in
(Karras et al. 2022, table 1). The configuration has σ_data, 1 unless it says otherwise, and the range of σ. The network
is built by the installed package from the configuration, or by the caller.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from sde_toolkit.checks import is_count, is_number
from sde_toolkit.errors import ArgumentError, CheckpointError, MissingDependencyError
from sde_toolkit.files.tensors import check_regular, load_tensors, tensors_metadata
from sde_toolkit.interop.filling import filled
from sde_toolkit.interop.loading import Reader
from sde_toolkit.interop.state_dicts import check_weights_name, content_of, fill, peek, tensors_under
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.time_inputs import NoiseRatio
from sde_toolkit.sde import EDMSDE
from sde_toolkit.transforms import Transform

__all__ = ["READER"]

_SLIM = ".safetensors"
_MOST_BYTES = 2**24  # of a configuration


def _recognises(path: Path) -> bool:
    if path.suffix != _SLIM:
        return peek(path).keys() >= {"model", "model_ema"}
    try:
        return path.is_file() and "model" in _config_in_header(path)
    except CheckpointError:
        return False


def _read(
    path: Path,
    *,
    config: Mapping[str, Any] | str | Path | None = None,
    network: nn.Module | None = None,
    weights: Literal["ema", "raw"] = "ema",
    condition_name: str | None = None,
    transform: Transform | None = None,
) -> ScoreModel:
    """The denoiser in a checkpoint, on :class:`~sde_toolkit.EDMSDE`.

    Args:
        path: the file.
        config: the configuration, or the JSON file that holds it, where the checkpoint does not. It wins over that of
            the checkpoint.
        network: the network inside the denoiser, F(x, sigma, ...). None: the installed k-diffusion builds it.
        weights: the moving average or the raw weights.
        condition_name: its argument for a condition. None: ``class_cond`` for networks with classes; for others, a
            condition is a dictionary of arguments.
        transform: from the caller's data to [−1, 1]. None: data are in [−1, 1].
    """
    check_weights_name(weights)
    found, tensors = _content(path, weights)
    known = _config(path, found if config is None else config)
    if network is None:
        network = filled(path, _builder(known), tensors)
    else:
        fill(network, tensors, path)
    model = known["model"]
    numbers = {name: _number(model, name, path) for name in ("sigma_min", "sigma_max")}
    sigma_data = _number(model, "sigma_data", path, usual=1.0)
    data = known.get("dataset")
    classes = data.get("num_classes") if isinstance(data, Mapping) else None
    name = condition_name or ("class_cond" if classes else "**")
    event = (model.get("input_channels"), *_sizes(model.get("input_size")))
    options: dict[str, Any] = {"transform": transform, "condition_name": name}
    if len(event) > 1 and all(map(is_count, event)):
        options["event_shape"] = event
    sde = EDMSDE(numbers["sigma_min"], numbers["sigma_max"])
    return ScoreModel(network, sde, "edm", time_input=NoiseRatio(), sigma_data=sigma_data, **options).eval()


def _content(path: Path, weights: str) -> tuple[Any, dict[str, Tensor]]:
    """The configuration, None without, and the chosen tensors."""
    if path.suffix == _SLIM:
        if weights == "raw":
            remedy = "Pass the training checkpoint (.pth) instead."
            raise ArgumentError("weights", weights, "slim files hold the moving average alone", remedy)
        return _config_in_header(path), tensors_under(load_tensors(path), "", path)
    found = content_of(path)
    return found.get("config"), tensors_under(found["model_ema" if weights == "ema" else "model"], "", path)


def _config_in_header(path: Path) -> dict[str, Any]:
    return _parsed(path, tensors_metadata(path).get("config", "{}"))


def _config(path: Path, given: Any) -> dict[str, Any]:
    """The configuration as a dictionary that has a ``model``.

    Raises:
        ArgumentError: without one.
        CheckpointError: for a file that holds none.
    """
    if isinstance(given, (str, Path)):
        file = Path(given)
        check_regular(file)
        if not file.is_file() or file.stat().st_size > _MOST_BYTES:
            raise ArgumentError("config", given, "there is no such file of JSON", "Pass the file given to --config.")
        given = _parsed(file, file.read_text(encoding="utf-8", errors="replace"))
    if not given:
        problem = f"{path.name} has no configuration"
        raise ArgumentError("config", None, problem, "Pass the JSON file that training was given as --config.")
    if not (isinstance(given, Mapping) and isinstance(given.get("model"), Mapping)):
        raise CheckpointError(path, "its configuration has no model", "Pass config=, the JSON file of training.")
    return dict(given)


def _parsed(file: Path, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise CheckpointError(file, "its configuration is no JSON", "Copy the file again.") from None
    return found if isinstance(found, dict) else {}


def _builder(config: dict[str, Any]) -> Callable[[], nn.Module]:
    """Builds the network of a configuration with the installed package.

    Raises:
        MissingDependencyError: without the package.
    """
    try:
        package = import_module("k_diffusion.config")
    except Exception as error:  # it imports much, which may be missing or broken
        purpose = "the network that this file describes, unless you build it and pass network=,"
        raise MissingDependencyError("k-diffusion", purpose, None, error) from None

    def built() -> nn.Module:
        try:
            network: nn.Module = package.make_model(package.load_config(config))
        except (KeyError, AttributeError, AssertionError, RuntimeError, ArithmeticError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None
        return network

    return built


def _number(model: Mapping[str, Any], name: str, path: Path, usual: float | None = None) -> float:
    value = model.get(name, usual)
    if not is_number(value):
        problem = f"its configuration has {name}={value!r:.40}"
        raise CheckpointError(path, problem, f"Pass config= with a number for model.{name}.")
    return float(value)


def _sizes(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


READER = Reader("checkpoints of k-diffusion", _recognises, _read)
