"""Objects from their configuration: Hydra's ``instantiate``, with the errors of the called class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig

from sde_toolkit.errors import ArgumentError, SDEToolkitError

__all__ = ["instantiate"]

_HYDRA = Path(hydra.utils.__file__).parent


def instantiate(config: Any, **arguments: Any) -> Any:
    """Build what ``_target_`` names. Errors of the called class come without Hydra's wrapper.

    Raises:
        SDEToolkitError: from the class itself.
        ArgumentError: for arguments that the class does not have.
        Exception: from a class of the user's own, unchanged.
    """
    _check_switches(config)
    try:
        return hydra.utils.instantiate(config, _convert_="all", **arguments)
    except InstantiationException as error:
        causes = list(_causes(error))
        for cause in causes:
            if isinstance(cause, SDEToolkitError):
                raise cause from None
        target = str(config.get("_target_", "the configuration")) if isinstance(config, DictConfig) else "the value"
        last = causes[-1] if causes else error
        if causes and not target.startswith("sde_toolkit.") and _raised_inside(last):
            raise last from None
        problem = (str(last).splitlines() or [type(last).__name__])[0]
        shown = dict(config) if isinstance(config, DictConfig) else config
        raise ArgumentError(
            target,
            shown,
            problem,
            "Check that _target_ names a class or function that can be imported, and that its keys are its arguments.",
        ) from None


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause = error.__cause__
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _raised_inside(error: BaseException) -> bool:
    """Whether the called code raised the error, not the call itself (a missing class, an unknown argument)."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and _HYDRA not in Path(trace.tb_frame.f_code.co_filename).parents


def _check_switches(config: Any) -> None:
    """Refuse words such as no and off for an argument that is true or false: Hydra reads them as texts, which are true.

    Raises:
        ArgumentError: naming the argument.
    """
    if not isinstance(config, DictConfig) or "_target_" not in config:
        return
    try:
        called: Callable[..., Any] = hydra.utils.get_object(str(config._target_))
        parameters = inspect.signature(called).parameters
    except Exception:  # instantiate reports what is wrong
        return
    for key, value in config.items():
        name = str(key)
        parameter = parameters.get(name)
        if parameter is not None and parameter.annotation in (bool, "bool") and not isinstance(value, bool):
            problem = "neither true nor false"
            raise ArgumentError(name, value, problem, f"Give {name}=true or {name}=false.")
