"""The real 8×8 digits with a little noise around each, flow matching."""

from sde_toolkit.data.images import digits
from sde_toolkit.models.mixture import GaussianMixture
from sde_toolkit.sde import FlowMatching
from sde_toolkit.suite.truth import Truth


def truth() -> Truth:
    data = digits()
    images = data.transform.forward(data.test[:160]).double()
    return Truth(
        name="real_digits",
        model=GaussianMixture(images, FlowMatching(), std=0.1),
        description="160 real images of digits, 8×8, each with a Gaussian of standard deviation 0.1 around it; flow "
        "matching",
        reason="data that nobody designed: what a network that has learned its data by heart would do",
        n=128,
    )
