"""The loop does not wait for the device: what it reads on the host does not grow with the steps, but for the flags."""

import pytest
import torch
from catalogue import FIXED_STEP, RandomNetwork, model_of, name
from torch.overrides import TorchFunctionMode

from sde_toolkit import VPSDE, Solver, grids, sample

READS = {"item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero", "__repr__"}


class CountReads(TorchFunctionMode):
    """Counts the calls after which the host knows a number of the device's."""

    def __init__(self):
        super().__init__()
        self.reads = 0

    def __torch_function__(self, function, types, arguments=(), named=None):
        self.reads += getattr(function, "__name__", "") in READS
        return function(*arguments, **(named or {}))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("integrator", FIXED_STEP, ids=name)
def test_host_reads_do_not_grow_with_the_steps(integrator, eta):
    if eta > 0 and integrator.weak_order is None:
        eta = 0.0
    if eta == 0 and integrator.order is None:
        eta = 1.0
    model, solver = model_of(RandomNetwork(), VPSDE()), Solver("", eta, integrator)

    def reads(steps, **options):
        generator = torch.Generator().manual_seed(0)
        with CountReads() as counted:
            grid = grids.uniform(VPSDE(), steps)
            sample(model, solver, grid, shape=(4, 2), generator=generator, dtype=torch.float64, **options)
        return counted.reads

    few, many = 32, 320
    assert reads(many, check_finite=False) == reads(few, check_finite=False)
    assert reads(many) - reads(few) == (many - few) / 16
