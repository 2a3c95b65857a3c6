"""The embedded network of 8×8 digits, VP."""

from sde_toolkit.data.images import digits
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.suite.real_images import draws_of
from sde_toolkit.suite.truth import Truth


def truth() -> Truth:
    return Truth(
        name="small_network",
        model=ScoreModel.from_pretrained("digits"),
        description="the embedded U-Net of digits, 8×8, 0.12 M parameters, VP",
        reason="a trained network, which is neither exact nor as smooth as an exact score",
        draw=draws_of(digits()),
        n=128,
    )
