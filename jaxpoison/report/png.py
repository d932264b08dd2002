"""Thumbnails: shrink an image and encode it as PNG, with zlib alone."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from markupsafe import Markup

_COLOR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> grey, grey+alpha, RGB, RGBA


def encode_png(image: np.ndarray) -> bytes:
    """Encodes 8-bit pixels as a PNG file.

    Args:
      image: uint8 [H, W] or [H, W, C] with C of 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA).

    Returns:
      The bytes of a complete PNG; equal pixels give equal bytes.

    Raises:
      ValueError: if the array is not such an image.
    """
    pixels = image[..., None] if image.ndim == 2 else image
    if pixels.ndim != 3 or pixels.shape[2] not in _COLOR_TYPE or not pixels.size:
        raise ValueError(f"image must be [H, W] or [H, W, 1..4], got shape {image.shape}")
    if pixels.dtype.name != "uint8":
        raise ValueError(f"image must be uint8, got {pixels.dtype}")
    height, width, channels = pixels.shape
    # Every line starts with its filter type; 0 (none) is best for tiny pictures.
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOR_TYPE[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def as_pixels(image: np.ndarray) -> np.ndarray:
    """Turns any image array into uint8 [H, W, 1 or 3], for display only.

    Args:
      image: [H, W] or [H, W, C], any real type; values outside uint8 are stretched to 0..255.
        With 2 channels or more than 4 the first is shown; of RGBA the alpha is dropped, because
        a transparent pixel would hide what the model sees.

    Returns:
      uint8 pixels of the same height and width.
    """
    import numpy as np

    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    pixels = pixels[..., :3] if pixels.shape[2] in (3, 4) else pixels[..., :1]
    if pixels.dtype == np.uint8:
        return pixels
    real = np.nan_to_num(pixels.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(real.min()), float(real.max())
    scaled: np.ndarray = np.rint((real - low) * (255.0 / (high - low) if high > low else 0.0))
    return scaled.astype(np.uint8)


def shrink(pixels: np.ndarray, side: int) -> np.ndarray:
    """Averages blocks of pixels until neither side is longer than `side`.

    Args:
      pixels: uint8 [H, W, C].
      side: longest side allowed, in pixels.

    Returns:
      uint8 [H', W', C]; the input itself when it is small enough.
    """
    import numpy as np

    height, width = pixels.shape[:2]
    if max(height, width) <= side:
        return pixels
    # Edges at whole pixels: each output pixel is the plain mean of its own rectangle.
    scale = side / max(height, width)
    out_h, out_w = max(1, round(height * scale)), max(1, round(width * scale))
    rows = np.arange(out_h + 1) * height // out_h
    cols = np.arange(out_w + 1) * width // out_w
    total = np.add.reduceat(pixels.astype(np.float64), rows[:-1], axis=0)
    total = np.add.reduceat(total, cols[:-1], axis=1)
    area = np.diff(rows)[:, None, None] * np.diff(cols)[None, :, None]
    mean: np.ndarray = np.rint(total / area)
    return mean.astype(np.uint8)


def data_uri(image: np.ndarray, side: int) -> Markup:
    """Encodes an image as a `data:` address of a PNG of at most `side` pixels a side."""
    from markupsafe import Markup

    png = encode_png(shrink(as_pixels(image), side))
    return Markup("data:image/png;base64," + base64.b64encode(png).decode("ascii"))
