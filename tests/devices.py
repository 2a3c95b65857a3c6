"""Where the laws run: on the CPU, or on the device that ``pytest --device`` names.

On a device the files of tests/ see a module ``torch`` whose tensors are made on that device, as if each said
``device=``. The numbers are drawn on the CPU, so that they are the same everywhere. The package sees torch as it is.
"""

import builtins
import functools
import types
from pathlib import Path

import pytest
import torch

CPU = torch.device("cpu")
DEVICE = CPU
MAKING = (
    "arange", "as_tensor", "asarray", "empty", "eye", "from_numpy", "full", "linspace", "logspace", "normal", "ones",
    "rand", "randint", "randn", "randperm", "tensor", "tril_indices", "triu_indices", "zeros",
)  # fmt: skip
_TESTS = str(Path(__file__).parent)
_missing = None


def choose(name):
    """From here on the laws run on this device, if it is there."""
    global DEVICE, _missing
    if name == "mock":
        import mock_device

        mock_device.register()
    wanted = torch.device(name)
    if wanted.type == "cuda" and not torch.cuda.is_available():
        _missing = f"there is no {name} here: torch.cuda.is_available() says False"
        return
    DEVICE = wanted
    if wanted.type != "cpu":
        _show_to_tests(torch_on(wanted))


def found_device():
    """The device of the laws; a test is skipped where it is not there."""
    if _missing is not None:
        pytest.skip(_missing)
    return DEVICE


def at_device(model):
    """The model on the device. One without parameters and buffers, such as a function, gets a buffer that is there."""
    if DEVICE.type == "cpu":
        return model
    if not any(True for _ in (*model.parameters(), *model.buffers())):
        model.register_buffer("place", torch.zeros((), dtype=torch.int64), persistent=False)
    return model.to(DEVICE)


def used_by_the_package():
    """A function that tells whether the package has made a tensor on the device since."""
    if DEVICE.type == "mock":
        import mock_device

        mock_device.counts.in_package = False
        return lambda: mock_device.counts.in_package
    if DEVICE.type == "cuda":
        before = _allocations()
        return lambda: _allocations() > before
    return lambda: True


def _allocations():
    return torch.cuda.memory_stats(DEVICE).get("allocation.all.allocated", 0)


# A torch whose tensors are made on a device


def torch_on(device):
    """The module torch, but for the functions that make tensors."""
    made = types.ModuleType("torch")
    made.__dict__.update(vars(torch))
    for name in MAKING:
        setattr(made, name, _making_on(device, getattr(torch, name)))
    return made


def _making_on(device, function):
    @functools.wraps(function)
    def make(*arguments, **named):
        arguments = tuple(_numbers(x) for x in arguments)
        made = function(*arguments, **named)
        if "device" in named or made.device.type != "cpu" or (arguments and isinstance(arguments[0], torch.Tensor)):
            return made
        return made.detach().to(device).requires_grad_(made.requires_grad)

    return make


def _numbers(x):
    """Lists of numbers where tensors are in a list: torch reads those of the CPU and of CUDA alone."""
    if isinstance(x, list | tuple) and any(isinstance(part, torch.Tensor | list | tuple) for part in x):
        return type(x)(part.tolist() if isinstance(part, torch.Tensor) else _numbers(part) for part in x)
    return x


def _show_to_tests(seen):
    """Files of tests/ that say ``import torch`` from here on get this module."""
    real = builtins.__import__

    def importing(name, globals=None, locals=None, fromlist=(), level=0):
        found = real(name, globals, locals, fromlist, level)
        return seen if found is torch and str((globals or {}).get("__file__", "")).startswith(_TESTS) else found

    builtins.__import__ = importing
