"""The solver of MMPS: conjugate gradients where K is a covariance, and no large answers where it is none."""

import pytest
import torch
from catalogue import RandomNetwork

from sde_toolkit import VPSDE, ScoreModel, ddim, posterior, sample
from sde_toolkit.errors import NonFiniteError
from sde_toolkit.guidance import MMPS, Mask
from sde_toolkit.guidance.covariance_solve import solve_covariance


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariances(B, m, seed=1):
    root = numbers(B, m, m, seed=seed)
    return root @ root.mT / m + 0.1 * torch.eye(m, dtype=torch.float64)


def solved(K, e, M=None, tolerance=0.0, most=30, calls=None):
    def apply(p):
        if calls is not None:
            calls.append(p)
        return torch.einsum("bij,bj->bi", K, p), 2 * p  # L w = 2 w

    precondition = (lambda r: r) if M is None else (lambda r: torch.linalg.solve(M, r.mT).mT)
    return solve_covariance(apply, e, precondition, tolerance=tolerance, max_iterations=most)


@pytest.mark.parametrize("m", [1, 2, 6])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_systems_are_solved_to_round_off_in_as_many_products_as_unknowns(m, preconditioned):
    K, e = covariances(5, m), numbers(5, m)
    M = covariances(1, m, seed=2)[0] if preconditioned else None
    found = solved(K, e, M)
    torch.testing.assert_close(found.image, 2 * torch.linalg.solve(K, e), rtol=1e-9, atol=1e-9)
    assert (found.iterations <= m).all()
    assert not found.unsolved.any()


def test_iterates_are_those_of_conjugate_gradients():
    """The k-th has the least error in the norm of K over the span of e, K e, ..., K^(k−1) e."""
    K, e = covariances(1, 8), numbers(1, 8)
    for k in (1, 2, 4):
        powers = torch.stack([torch.linalg.matrix_power(K[0], j) @ e[0] for j in range(k)], dim=1)
        best = powers @ torch.linalg.solve(powers.mT @ K[0] @ powers, powers.mT @ e[0])
        torch.testing.assert_close(solved(K, e, most=k).image[0] / 2, best, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("tolerance", [0.3, 0.03, 1e-4])
def test_a_system_stops_at_its_tolerance_and_not_before(tolerance):
    K, e, M = covariances(6, 12), numbers(6, 12), covariances(1, 12, seed=2)[0]
    found = solved(K, e, M, tolerance)

    def size(r):
        return torch.einsum("bi,bi->b", r, torch.linalg.solve(M, r.mT).mT).sqrt()

    left = size(e - torch.einsum("bij,bj->bi", K, found.image / 2)) / size(e)
    assert (left <= tolerance * 1.001).all()
    for i, k in enumerate(found.iterations.tolist()):
        before = solved(K[i : i + 1], e[i : i + 1], M, most=k - 1).image
        r = e[i : i + 1] if before is None else e[i : i + 1] - torch.einsum("bij,bj->bi", K[i : i + 1], before / 2)
        assert size(r) / size(e[i : i + 1]) > tolerance


def test_a_system_that_has_stopped_is_left_alone():
    """Bit for bit as if it were alone, and the batch stops with its last one."""
    K, e = covariances(4, 6), numbers(4, 6)
    K[0], e[1] = torch.eye(6), 0.0  # solved by one product; and by none
    calls = []
    whole = solved(K, e, tolerance=1e-6, calls=calls)
    assert whole.iterations.tolist()[:2] == [1, 0]
    assert len(calls) == int(whole.iterations.max())
    for i in range(4):
        alone = solved(K[i : i + 1], e[i : i + 1], tolerance=1e-6).image
        assert torch.equal(whole.image[i], torch.zeros(6).double() if alone is None else alone[0])


def test_a_system_without_a_right_side_needs_no_product():
    found = solved(covariances(3, 4), torch.zeros(3, 4, dtype=torch.float64))
    assert found.image is None


def test_what_is_no_covariance_does_not_make_large_answers():
    """K = C + E, with E as large as the middle eigenvalues of C: no answer is larger than C⁻¹ e may be.

    Solving exactly, or by conjugate gradients that trust K, makes some of 200 answers many times as large.
    """
    m, B = 10, 200
    values = torch.logspace(0, -3, m, dtype=torch.float64)
    axes = torch.linalg.qr(numbers(B, m, m, seed=3)).Q
    C = axes @ torch.diag(values) @ axes.mT
    K = C + 0.05 * numbers(B, m, m, seed=4)
    e = torch.einsum("bij,bj->bi", axes * values.sqrt(), numbers(B, m, seed=5))  # ~ N(0, C)
    exact, trusting, answer = torch.linalg.solve(C, e), torch.linalg.solve(K, e), solved(K, e, tolerance=1e-3)
    found = answer.image / 2
    most = exact.norm(dim=1).max()
    assert trusting.norm(dim=1).max() > 10 * most
    assert found.norm(dim=1).max() < 0.5 * most

    def misses(w):
        return (torch.einsum("bij,bj->bi", C, w) - e).norm(dim=1)

    assert misses(found).max() < 0.05 * misses(trusting).max()
    assert misses(found).quantile(0.95) < 0.12 * misses(trusting).quantile(0.95)
    assert misses(found).median() < 0.6 * misses(trusting).median()
    assert misses(found).median() < 0.9 * e.norm(dim=1).median()
    assert answer.iterations.double().mean() < 3.2  # products that could decide nothing are not made


@pytest.mark.parametrize("bad", [-1.0, 0.0])
def test_a_variance_that_is_not_positive_leaves_the_sample_alone_and_is_told(bad):
    K, e = covariances(3, 3), numbers(3, 3)
    K[1] = bad * torch.eye(3)
    found = solved(K, e)
    assert found.unsolved.tolist() == [False, True, False]
    assert (found.image[1] == 0).all()
    torch.testing.assert_close(found.image[0], 2 * torch.linalg.solve(K[0], e[0]))


def test_a_network_with_a_negative_covariance_warns_and_samples_stay_finite():
    def network(x, t):
        return -3.0 * x  # x̂_0 falls where x_t rises

    model = posterior(ScoreModel(network, VPSDE(), "x0"), Mask(torch.tensor([1, 0, 1])), torch.ones(2), 0.01)
    with pytest.warns(UserWarning, match="MMPS left 4 of 4 samples without guidance"):
        drawn = sample(model, ddim(), steps=3, shape=(4, 3))
    assert drawn.x.isfinite().all()


def test_a_network_with_nan_is_named_as_such():
    model = posterior(ScoreModel(lambda x, t: x * torch.nan, VPSDE(), "x0"), numbers(2, 3), numbers(2), 0.1)
    with pytest.raises(NonFiniteError):
        sample(model, ddim(), steps=3, shape=(4, 3))


@pytest.mark.filterwarnings("ignore:MMPS left")
def test_rough_networks_stay_finite():
    class Rough(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = RandomNetwork(6)

        def forward(self, x, t):
            return 5 * self.inside(3 * x, t)

    model = ScoreModel(Rough(), VPSDE(), "epsilon")
    for std in (0.0, 0.3):
        given = posterior(model, numbers(4, 6), numbers(4), std, method=MMPS(tolerance=0.0))
        drawn = sample(given, ddim(), steps=8, shape=(16, 6), dtype=torch.float64)
        assert drawn.x.isfinite().all()
