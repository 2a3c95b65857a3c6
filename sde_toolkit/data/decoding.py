"""Image files to uint8 tensors (C, H, W) through Pillow; whatever is wrong becomes a `DataError` naming the image.

How the images of a set are read is decided once, from all their headers, as a `Layout`: no image is converted unless
that was asked for. Channels: 1 grey, 3 RGB (palettes become RGB without loss), 4 RGB and alpha. Where ``channels`` is
given, Pillow's ``convert`` does it: grey = 0.299 R + 0.587 G + 0.114 B, alpha is dropped or added as 255, CMYK is
converted without a colour profile. Cameras' orientation tags are not applied; of an animation the first frame is read.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.checking import is_count
from sde_toolkit.errors import ArgumentError, DataError, MissingDependencyError

__all__ = ["SUFFIXES", "Header", "Layout", "agreed_layout", "checked_size", "decode", "ending", "read_header"]

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2", ".avif")
)
_GREY, _COLOUR = {"1", "L"}, {"RGB", "P", "YCbCr", "HSV", "LAB", "RGBX"}
_ALPHA = {"LA", "La", "PA", "RGBA", "RGBa"}
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class Header(NamedTuple):
    """What an image file says of itself. ``mode``: Pillow's; "PA" also for a palette with a transparent colour."""

    width: int
    height: int
    mode: str


@dataclass(frozen=True)
class Layout:
    """What every image of a set becomes. ``resize``: cut out the centre and scale it, unless it fits."""

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
    with _opened(image, shown) as picture:
        mode = "PA" if picture.mode == "P" and "transparency" in picture.info else picture.mode
        return Header(picture.width, picture.height, mode)


def decode(image: Path | bytes, shown: str, layout: Layout) -> Tensor:
    """uint8 (C, H, W).

    A crop with the layout's ratio of sides, as large as fits, is taken from the centre and resized with Pillow's
    Lanczos filter (3 lobes, widened when shrinking, so that nothing aliases). An image of the right size is left as
    it is.
    """
    with _opened(image, shown) as picture:
        try:
            picture.load()
            ready = picture.convert(_MODES[layout.channels]) if picture.mode != _MODES[layout.channels] else picture
            if layout.resize:
                ready = _fitted(ready, layout.width, layout.height)
            pixels = np.array(ready, dtype=np.uint8)
        except Exception as error:  # decoders of damaged files raise what they like
            raise _unreadable(shown, error) from error
    if pixels.shape[:2] != (layout.height, layout.width):
        found, wanted = f"{pixels.shape[1]}x{pixels.shape[0]}", f"{layout.width}x{layout.height}"
        raise DataError("image", ending(shown), f"it is {found}, the others {wanted}", "Give size=, or remove it.")
    values = torch.from_numpy(pixels).reshape(layout.height, layout.width, layout.channels)
    return values.permute(2, 0, 1).contiguous()


def checked_size(size: Any) -> tuple[int, int] | None:
    """``size`` as (height, width), or None."""
    if size is None:
        return None
    pair = (size, size) if is_count(size) else tuple(size) if isinstance(size, Iterable) else ()
    if len(pair) != 2 or not all(is_count(n) for n in pair):
        raise ArgumentError("size", size, "not a size in pixels", "Give size=32, or size=(height, width).")
    return int(pair[0]), int(pair[1])


def agreed_layout(
    headers: Iterable[tuple[str, Header]], size: tuple[int, int] | None, channels: int | None, what: str, where: str
) -> Layout:
    """What all images can be read as, from their names and headers; refused where they disagree.

    ``what`` is the argument and ``where`` its value in error messages.

    Raises:
        DataError: naming two images of different sizes or channels, or one that needs ``channels=``.
        ArgumentError: if ``channels`` is none of 1, 3, 4.
    """
    if channels is not None and channels not in _MODES:
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
    return Layout(height, width, channels or _channels(first[1]), size is not None)


def ending(name: str) -> str:
    """The last 100 characters: messages cut long values short, and of a path its end matters."""
    return name if len(name) <= 100 else "..." + name[-97:]


def _channels(header: Header) -> int:
    """1 or 3; −1 where a conversion must be asked for, 0 where none is offered."""
    if header.mode in _GREY:
        return 1
    if header.mode in _COLOUR:
        return 3
    return -1 if header.mode in _ALPHA or header.mode == "CMYK" else 0


def _opened(image: Path | bytes, shown: str) -> Any:
    pillow = _pillow()
    try:
        return pillow.open(io.BytesIO(image) if isinstance(image, bytes) else image)
    except PermissionError as error:
        raise DataError("image", ending(shown), "it may not be read", "Check its permissions.") from error
    except FileNotFoundError as error:
        raise DataError("image", ending(shown), "it is no longer there", "Build the data set again.") from error
    except Exception as error:  # decoders of damaged files raise what they like
        raise _unreadable(shown, error) from error


def _fitted(picture: Any, width: int, height: int) -> Any:
    if picture.size == (width, height):
        return picture
    scale = min(picture.width / width, picture.height / height)
    across, down = (picture.width - scale * width) / 2, (picture.height - scale * height) / 2
    box = (round(across), round(down), round(across + scale * width), round(down + scale * height))
    return picture.crop(box).resize((width, height), _pillow().Resampling.LANCZOS)


def _unreadable(shown: str, error: Exception) -> DataError:
    problem = f"not a readable image ({type(error).__name__}: {error})"
    return DataError("image", ending(shown), problem, "Fetch it again, or remove it.")


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError("pillow", "reading images", "data", error) from error
    return Image
