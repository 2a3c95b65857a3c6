"""Data sets, in memory or read as they are needed, and the invertible transforms between data space and model space.

A builder returns raw data and *recommends* a transform; nothing is scaled behind your back. Training applies the
transform and saves it with the model, and sampling and likelihood read it from there.
"""

from sde_toolkit.data.arrays import array
from sde_toolkit.data.augmentation import Augmentation, EDMAugmentation, HorizontalFlip, NoAugmentation, horizontal_flip
from sde_toolkit.data.cifar import cifar10
from sde_toolkit.data.dataset import Dataset
from sde_toolkit.data.hub import hugging_face, hugging_face_stream
from sde_toolkit.data.image_folders import image_folder
from sde_toolkit.data.images import digits, mnist, mnist_test_images
from sde_toolkit.data.memory import memory_map
from sde_toolkit.data.parallel import ParallelStream
from sde_toolkit.data.sources import PerProcess, Source
from sde_toolkit.data.stream import Shards, ShuffledStream, Stream
from sde_toolkit.data.tars import webdataset
from sde_toolkit.data.toys import checkerboard, rings, two_moons, waves
from sde_toolkit.transforms import Affine, Identity, Transform, eight_bit

__all__ = [
    "Affine",
    "Augmentation",
    "Dataset",
    "EDMAugmentation",
    "HorizontalFlip",
    "Identity",
    "NoAugmentation",
    "ParallelStream",
    "PerProcess",
    "Shards",
    "ShuffledStream",
    "Source",
    "Stream",
    "Transform",
    "array",
    "checkerboard",
    "cifar10",
    "digits",
    "eight_bit",
    "horizontal_flip",
    "hugging_face",
    "hugging_face_stream",
    "image_folder",
    "memory_map",
    "mnist",
    "mnist_test_images",
    "rings",
    "two_moons",
    "waves",
    "webdataset",
]
