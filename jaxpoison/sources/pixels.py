"""Encoded images as pixels, by Pillow: what is read, how it is converted, what is refused.

The bytes are hostile. Only a few decoders are let near them, and the size is checked before any
pixel is decoded.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from jaxpoison._check import DataError, JaxpoisonError, UsageError

from .base import Array
from .table import install_command

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm")
# Images that are not read; beside others they must not be passed over in silence.
OTHER_ENDINGS = (".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".svg")
MAX_PIXELS = 1 << 26  # of one image, 8192 x 8192; below the size at which Pillow itself warns
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM")
_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # more than 8 bits a value
_GREY = ("1", "L", "LA", "La", *_DEEP)
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")


class Look(NamedTuple):
    """What the header of an image says."""

    height: int
    width: int
    is_colour: bool


def pillow(name: str) -> Any:
    """Pillow's module ``Image``.

    Raises:
        UsageError: It is not installed.
    """
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        raise UsageError(
            f"{name}: images are read by Pillow, which is not installed; "
            f"{install_command('images')}"
        ) from error


@contextmanager
def _opened(data: bytes, name: str) -> Iterator[Any]:
    """An image whose header has been checked, and whose pixels have not been decoded."""
    image_module = pillow(name)
    try:
        with image_module.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check(image, name)
            yield image
    except JaxpoisonError:
        raise
    except image_module.UnidentifiedImageError as error:
        raise DataError(
            f"{name}: starts with {data[:8]!r}, which is no PNG, JPEG, BMP, WebP or PPM image; "
            "remove it, or save it again"
        ) from error
    # Broken images make decoders raise nearly anything; all of it means the same to the user.
    except Exception as error:
        text = str(error) or type(error).__name__
        raise DataError(
            f"{name}: truncated or damaged image ({text}); copy or save it again, or remove it"
        ) from error


def _check(image: Any, name: str) -> None:
    width, height = image.size
    if not 0 < width * height <= MAX_PIXELS:
        raise DataError(
            f"{name}: declares {height} x {width} pixels; an image has 1 to {MAX_PIXELS}: "
            "make it smaller, or remove it"
        )
    if image.mode not in _GREY + _COLOUR:
        raise DataError(
            f"{name}: has pixels of kind {image.mode!r}; save it as 8 bit grey or RGB, or remove it"
        )
    # A JPEG may carry a thumbnail or a gain map behind the one image that every reader takes.
    frames = getattr(image, "n_frames", 1) if image.format in ("PNG", "WEBP") else 1
    if frames > 1:
        raise DataError(f"{name}: holds {frames} frames; save one image a file, or remove it")


def look(data: bytes, name: str) -> Look:
    """Size and kind, from the header.

    Args:
        data: The image, or so much of its beginning that the header is there.
        name: What to call it in a message.

    Returns:
        Height and width in pixels, and whether it has colours. Palettes count as colours.

    Raises:
        DataError: No image, damaged, too large, several frames, or pixels of an unknown kind.
        UsageError: Pillow is not installed.
    """
    with _opened(data, name) as image:
        width, height = image.size
        return Look(height, width, image.mode in _COLOUR)


def decode(
    data: bytes, name: str, *, is_colour: bool, stored: tuple[int, int] | None,
    resize: tuple[int, int] | None,
) -> Array:  # fmt: skip
    """The pixels of an image as they are stored: its orientation tag and its profile are not used.

    Alpha is dropped and the colours under it are kept, as readers for training do. Of 16 bits the
    upper 8 are kept. An image in grey becomes colour by repetition.

    Args:
        data: The whole image.
        name: What to call it in a message.
        is_colour: Whether pixels are wanted in colour.
        stored: Height and width that it must have, or None for any.
        resize: Height and width to bring it to (bilinear, antialiased), or None.

    Returns:
        [H, W] or [H, W, 3] uint8.

    Raises:
        DataError: As ``look``; also an image of another size, or in colour where grey is wanted.

    **Cost**: One decoding; memory for the pixels of one image.
    """
    with _opened(data, name) as image:
        width, height = image.size
        if (stored is not None and (height, width) != stored) or (
            image.mode in _COLOUR and not is_colour
        ):
            raise DataError(
                f"{name}: is {height} x {width} of kind {image.mode!r}, and was another when the "
                "data was opened; start again once nothing writes to it"
            )
        image.load()
        plain = _to_plain(image, name, is_colour)
        if resize is not None and resize != (height, width):
            image_module = pillow(name)
            bilinear = image_module.Resampling.BILINEAR
            plain = plain.resize((resize[1], resize[0]), bilinear)
        return np.asarray(plain, np.uint8)


def _to_plain(image: Any, name: str, is_colour: bool) -> Any:
    """The image in Pillow's mode L or RGB."""
    if image.mode in _DEEP:
        values = np.asarray(image)
        if values.size and not 0 <= int(values.min()) <= int(values.max()) < 1 << 16:
            raise DataError(f"{name}: holds values of more than 16 bits; save it with 8 bits")
        image = pillow(name).fromarray((values >> 8).astype(np.uint8))
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # straight to RGB, Pillow warns of transparent entries
    wanted = "RGB" if is_colour else "L"
    return image if image.mode == wanted else image.convert(wanted)
