"""What classifier-free guidance does to Gaussians, in closed form: the truth for tests of guidance.

p(x | c) = N(0, a), p(x) = N(0, b). In coordinates x/α with s = (σ/α)², the guided x̂_0 is x − s (γ/(a + s) +
(1 − γ)/(b + s)) x, so that with E(s) = (a + s)^γ (b + s)^(1 − γ) the variance v of the reverse equation obeys

    dv/ds = (1 + η²) (log E)′ v − η²

The tilted law p(x | c)^γ p(x)^(1 − γ) is neither result (tests/guidance/test_guided_gaussians.py).
"""

from sde_toolkit import gaussian
from sde_toolkit.models import ClassMixture


def two_gaussians(sde, a=1.0, b=2.0):
    """A class N(0, a) in one dimension, label 0, within N(0, b), "no class", label 1."""
    return ClassMixture.of([gaussian([0.0], sde, std=a**0.5)], no_class=gaussian([0.0], sde, std=b**0.5))


def flow_variance(scale, a=1.0, b=2.0):
    """Variance at the end of the guided probability flow (η = 0), started from the noised data at s → ∞."""
    return a**scale * b ** (1 - scale)


def sde_variance(scale, a=1.0, b=2.0):
    """Variance at the end of the guided reverse SDE (η = 1); scale ≠ 1/2."""
    return (b - a ** (2 * scale - 1) * b ** (2 - 2 * scale)) * a / ((2 * scale - 1) * (b - a))


def tilted_variance(scale, a=1.0, b=2.0):
    """Variance of p(x | c)^scale p(x)^(1 − scale), normalised."""
    return 1 / (scale / a + (1 - scale) / b)
