"""Data sets as plain tensors, and the invertible transforms between data space and model space.

Nothing here scales data behind your back: a builder returns raw data and *recommends* a transform, which is
applied by whoever trains, saved with the model, and read again by sampling and likelihood.
"""

from sde_toolkit.data.arrays import array
from sde_toolkit.data.dataset import Dataset
from sde_toolkit.data.images import digits, mnist, mnist_test_images
from sde_toolkit.data.toys import checkerboard, rings, two_moons, waves
from sde_toolkit.transforms import Affine, Identity, Transform, eight_bit

__all__ = [
    "Affine",
    "Dataset",
    "Identity",
    "Transform",
    "array",
    "checkerboard",
    "digits",
    "eight_bit",
    "mnist",
    "mnist_test_images",
    "rings",
    "two_moons",
    "waves",
]
