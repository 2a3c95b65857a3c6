"""The embedded network of MNIST images, VP."""

from sde_toolkit.data.images import mnist_test_images
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.suite.real_images import draws_of
from sde_toolkit.suite.truth import Truth


def truth() -> Truth:
    return Truth(
        name="image_network",
        model=ScoreModel.from_pretrained("mnist"),
        description="the embedded U-Net of MNIST, 28×28, 1.4 M parameters, VP",
        reason="a trained network of images, the largest of the suite",
        draw=draws_of(mnist_test_images()),
        n=64,
    )
