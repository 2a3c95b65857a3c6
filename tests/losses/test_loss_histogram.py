"""The λ-histogram: a partition of the losses, on the device, additive over batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sde_toolkit.errors import ArgumentError
from sde_toolkit.losses import lambda_histogram

EDGES = torch.linspace(-5, 7, 7)
lambdas = st.one_of(st.floats(-20, 20), st.sampled_from([-5.0, -3.0, 7.0, float("inf"), float("-inf")]))


@pytest.mark.on_device
@given(lam=st.lists(lambdas, min_size=0, max_size=40), seed=st.integers(0, 100))
def test_it_is_a_partition_of_the_losses(lam, seed):
    """Every loss is in exactly one bin, the one whose half-open interval holds its λ; the outer bins are open."""
    lam = torch.tensor(lam, dtype=torch.float64)
    losses = torch.rand(len(lam), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sums, counts = lambda_histogram(losses, lam, EDGES)
    assert sums.shape == counts.shape == (6,)
    assert counts.dtype == torch.int64
    assert counts.sum() == len(lam)
    torch.testing.assert_close(sums.sum(), losses.sum())
    ends = [float("-inf"), *EDGES[1:-1].tolist(), float("inf")]
    for k in range(6):
        inside = [bool(ends[k] <= v < ends[k + 1] or (k == 5 and v >= ends[5])) for v in lam.tolist()]
        assert counts[k] == sum(inside)
        torch.testing.assert_close(sums[k], losses[torch.tensor(inside, dtype=torch.bool)].sum())


@pytest.mark.on_device
def test_batches_add_up_and_gradients_are_left_alone():
    losses = torch.rand(50, requires_grad=True)
    lam = torch.linspace(-9, 9, 50)
    whole = lambda_histogram(losses, lam, EDGES)
    parts = [lambda_histogram(losses[i::3], lam[i::3], EDGES) for i in range(3)]
    for k in (0, 1):
        torch.testing.assert_close(sum(part[k] for part in parts), whole[k])
        assert not whole[k].requires_grad


@pytest.mark.on_device
def test_a_bad_loss_spoils_its_own_bin_only():
    losses = torch.tensor([1.0, float("nan"), 2.0, float("inf")])
    sums, counts = lambda_histogram(losses, torch.tensor([-4.0, -2.0, 0.0, 6.0]), EDGES)
    assert sums.isfinite().tolist() == [True, False, True, True, True, False]
    assert counts.tolist() == [1, 1, 1, 0, 0, 1]


def test_it_never_asks_the_host_for_a_value():
    """On the meta device there is none to be had."""
    losses, lam, edges = (v.to("meta") for v in (torch.rand(8), torch.linspace(-6, 8, 8), EDGES))
    assert [part.device.type for part in lambda_histogram(losses, lam, edges)] == ["meta", "meta"]


@pytest.mark.parametrize(
    ("losses", "lam", "edges", "word"),
    [
        (torch.rand(3), torch.rand(4), EDGES, "lam"),
        (torch.rand(3, 1), torch.rand(3), EDGES, "losses"),
        (torch.rand(3), torch.arange(3), EDGES, "lam"),
        (torch.rand(3), torch.tensor([0.0, 1.0, float("nan")]), EDGES, "lam"),
        (torch.rand(3), torch.rand(3), torch.tensor([1.0]), "edges"),
        (torch.rand(3), torch.rand(3), torch.tensor([1.0, 1.0]), "edges"),
        (torch.rand(3), torch.rand(3), torch.tensor([1.0, float("nan")]), "edges"),
        (torch.rand(3), torch.rand(3), None, "edges"),
    ],
)
def test_bad_input_is_named(losses, lam, edges, word):
    with pytest.raises(ArgumentError, match=word):
        lambda_histogram(losses, lam, edges)
