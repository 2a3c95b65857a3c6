"""Image files to uint8 tensors (C, H, W) through Pillow; any error becomes a `DataError` naming the image.

How the images of a set are read is decided once, from their headers, as an `ImageShape`. An image is converted only
where that was asked for. Channels: 1 grey, 3 RGB (palettes become RGB without loss), 4 RGB and alpha. If ``channels``
is given, Pillow's ``convert`` does it: grey = 0.299 R + 0.587 G + 0.114 B, alpha is dropped or added as 255, CMYK is
converted without a colour profile. Orientation tags of cameras are not applied. Of an animation, the first frame is
read.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.checks import is_count
from sde_toolkit.data.opening import ending, open_regular, or_data_error
from sde_toolkit.errors import ArgumentError, DataError, MissingDependencyError

__all__ = [
    "MOST_BYTES",
    "SUFFIXES",
    "Header",
    "ImageShape",
    "agreed_shape",
    "checked_size",
    "decode",
    "ending",
    "open_image",
    "read_header",
]

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2", ".avif")
)
_RASTER_FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "BMP",
    "GIF",
    "TIFF",
    "PPM",
    "JPEG2000",
    "AVIF",
)  # the formats of SUFFIXES, as Pillow names them
MOST_BYTES = 2**28  # the largest image file that is read into memory
_GREY, _COLOUR = {"1", "L"}, {"RGB", "P", "YCbCr", "HSV", "LAB", "RGBX"}
_ALPHA = {"LA", "La", "PA", "RGBA", "RGBa"}
_PILLOW_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class Header(NamedTuple):
    """What the header of an image file says. ``mode`` is Pillow's; palettes with a transparent colour are "PA"."""

    width: int
    height: int
    mode: str


@dataclass(frozen=True)
class ImageShape:
    """Size and channels that every image of a set is read as.

    ``resize``: an image of another size is cropped at its centre and scaled; otherwise it is refused.
    """

    height: int
    width: int
    channels: int
    resize: bool

    @property
    def event_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, self.height, self.width)


def read_header(image: Path | bytes, shown: str) -> Header:
    """Size and mode, without decoding the pixels."""
    with open_image(image, shown) as picture:
        mode = "PA" if picture.mode == "P" and "transparency" in picture.info else picture.mode
        return Header(picture.width, picture.height, mode)


def decode(image: Path | bytes, shown: str, image_shape: ImageShape) -> Tensor:
    """An image as uint8 (C, H, W).

    If ``resize`` is set, the largest centred crop with the target's ratio of sides is resized with Pillow's Lanczos
    filter (3 lobes, widened when shrinking, so that nothing aliases). An image of the right size is left as it is.
    """
    with open_image(image, shown) as picture:
        if not image_shape.resize:
            _check_size(picture.size, image_shape, shown)  # before its pixels take memory
        picture.load()
        mode = _PILLOW_MODES[image_shape.channels]
        ready = picture if picture.mode == mode else picture.convert(mode)
        if image_shape.resize:
            ready = _cropped_and_resized(ready, image_shape.width, image_shape.height)
        pixels = np.array(ready, dtype=np.uint8)
    _check_size((pixels.shape[1], pixels.shape[0]), image_shape, shown)
    values = torch.from_numpy(pixels).reshape(image_shape.height, image_shape.width, image_shape.channels)
    return values.permute(2, 0, 1).contiguous()


def _check_size(size: tuple[int, int], image_shape: ImageShape, shown: str) -> None:
    if size != (image_shape.width, image_shape.height):
        found, wanted = f"{size[0]}x{size[1]}", f"{image_shape.width}x{image_shape.height}"
        raise DataError("image", ending(shown), f"it is {found}, the others are {wanted}", "Give size=, or remove it.")


def checked_size(size: Any) -> tuple[int, int] | None:
    """``size`` as (height, width), or None."""
    if size is None:
        return None
    pair = (size, size) if is_count(size) else tuple(size) if isinstance(size, Iterable) else ()
    if len(pair) != 2 or not all(is_count(n) for n in pair):
        raise ArgumentError("size", size, "not a size in pixels", "Give size=32, or size=(height, width).")
    return int(pair[0]), int(pair[1])


def agreed_shape(
    headers: Iterable[tuple[str, Header]], size: tuple[int, int] | None, channels: int | None, what: str, where: str
) -> ImageShape:
    """The `ImageShape` that all images can be read as, from their names and headers. Images that disagree are refused.

    ``what`` is the name of the argument and ``where`` its value, for error messages.

    Raises:
        DataError: naming two images of different sizes or channels, or one that needs ``channels=``.
        ArgumentError: if ``channels`` is none of 1, 3, 4.
    """
    if channels is not None and channels not in _PILLOW_MODES:
        raise ArgumentError("channels", channels, "not a number of channels", "Give 1, 3 or 4, or None.")
    first: tuple[str, Header] | None = None
    for name, header in headers:
        if _channels(header) == 0:
            problem = f"its pixels are {header.mode!r}, more than 8 bits each"
            raise DataError("image", ending(name), problem, "Save such data as .npy and use memory_map.")
        if channels is None and _channels(header) < 0:
            kind = "an alpha channel" if header.mode in _ALPHA else f"{header.mode} colours"
            remedy = "Give channels=3 to convert, or channels=4 to keep alpha."
            raise DataError("image", ending(name), f"it has {kind}", remedy)
        first = first or (name, header)
        if size is None and header[:2] != first[1][:2]:
            sizes = f"{first[0]} has {first[1].width}x{first[1].height} pixels, {name} {header.width}x{header.height}"
            raise DataError(what, ending(where), f"mixed sizes: {sizes}", "Give size= to crop and resize.")
        if channels is None and _channels(header) != _channels(first[1]):
            modes = f"{first[0]} is {first[1].mode}, {name} {header.mode}"
            raise DataError(what, ending(where), f"mixed channels: {modes}", "Give channels=1 or channels=3.")
    if first is None:
        raise DataError(what, ending(where), "there are no images", "Give at least one.")
    height, width = size or (first[1].height, first[1].width)
    return ImageShape(height, width, channels or _channels(first[1]), size is not None)


def _channels(header: Header) -> int:
    """1 or 3; −1 if the caller has to ask for a conversion, 0 if there is none."""
    if header.mode in _GREY:
        return 1
    if header.mode in _COLOUR:
        return 3
    return -1 if header.mode in _ALPHA or header.mode == "CMYK" else 0


@contextmanager
def open_image(image: Path | bytes, shown: str) -> Iterator[Any]:
    """A picture opened by Pillow. Any error inside the block becomes a `DataError`.

    Only decoders of raster formats are tried, whatever the file is called: Pillow passes PostScript on to Ghostscript,
    which runs programs.
    """
    pillow = _pillow()
    wrong = or_data_error("image", shown, "not a readable image", "Fetch it again, or remove it.")
    gone = ("it is no longer there", "Build the data set again.")
    with (
        io.BytesIO(image) if isinstance(image, bytes) else open_regular(image, "image", gone) as stream,
        wrong,
        pillow.open(stream, formats=_known_formats()) as picture,
    ):
        yield picture


@cache
def _known_formats() -> tuple[str, ...]:
    """The raster formats that this version of Pillow can read."""
    pillow = _pillow()
    pillow.init()
    return tuple(name for name in _RASTER_FORMATS if name in pillow.OPEN)


def _cropped_and_resized(picture: Any, width: int, height: int) -> Any:
    if picture.size == (width, height):
        return picture
    scale = min(picture.width / width, picture.height / height)
    across, down = (picture.width - scale * width) / 2, (picture.height - scale * height) / 2
    box = (round(across), round(down), round(across + scale * width), round(down + scale * height))
    return picture.crop(box).resize((width, height), _pillow().Resampling.LANCZOS)


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError("pillow", "reading images", "data", error) from error
    return Image
