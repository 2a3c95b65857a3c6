"""A step is pure: x, its row, what earlier steps kept, the network's outputs and the draws are left as they are."""

import pytest
import torch
from catalogue import SOLVERS, name
from torch.utils._pytree import tree_leaves

from sde_toolkit import VPSDE, ReverseEquation, ScoreModel, grids

pytestmark = pytest.mark.on_device


@pytest.mark.parametrize("kind", ["x0", "epsilon", "v"])
@pytest.mark.parametrize("solver", [s for s in SOLVERS if s.integrator.evals_per_step is not None], ids=name)
def test_a_step_writes_into_nothing_it_was_given(solver, kind):
    seen = []

    def keep(tensor):
        seen.append((tensor, tensor.clone()))
        return tensor

    def network(x, time):
        return keep(x if kind == "x0" else torch.sin(x))  # an x_0 network may answer with its very input

    sde = VPSDE()
    equation = ReverseEquation(ScoreModel(network, sde, kind), solver.eta)
    table = solver.integrator.prepare(equation, grids.uniform(sde, 5, start=0.9, end=0.1))
    x, state = torch.linspace(-2, 2, 6, dtype=torch.float64).reshape(3, 2), None
    keep(table.values)
    for row in table:
        keep(x)
        kept = [keep(leaf) for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]
        assert all(leaf.isfinite().all() for leaf in kept)
        x, state = solver.integrator.step(
            equation, x, row, state, lambda: keep(torch.linspace(-1, 1, 6).double().reshape(3, 2))
        )
    assert len(seen) > 10
    for tensor, before in seen:
        assert torch.equal(tensor, before)
