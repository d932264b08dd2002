"""Slant, place and size of a stroke drawing, made the same by its second moments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxpoison._check import UsageError
from jaxpoison._types import HostArray

from ._feature_map import FeatureMap, images_of

_ONE = np.float32(1)
_FLOOR = np.float32(1e-3)  # of a variance in square pixels: one dot has none
_MOST_SLANT = np.float32(1)
_MOST_SCALE = np.float32(2)


@dataclass(frozen=True)
class Deskew(FeatureMap):
    """Shears an image upright, centres it and scales it, from the moments of its own pixels.

    With centre ``m`` and covariance ``S`` of the ink, the slant is ``S_xy / S_yy``. Heights are
    brought to a standard deviation of ``height`` of the image, widths part of the way to ``width``.

    Attributes:
        height: Standard deviation across, as a share of the image's height.
        width: The same for the width, after the shear.
        vertical: How far heights go: 0 leaves them, 1 makes them all equal.
        horizontal: How far widths go; below 1 thin drawings stay thinner.

    **Assumes / fails on**: dark background (0), one object. On photographs it only blurs.
    """

    height: float = 0.168
    width: float = 0.143
    vertical: float = 1.0
    horizontal: float = 0.5

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            if not 0 < getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; give a share between 0 and 1")
        for name in ("vertical", "horizontal"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; give a number from 0 to 1")

    def of_block(self, x: HostArray) -> HostArray:
        """[b, h, w(, ch)] images of the same shape."""
        images = images_of(x, self.name)
        high, wide = images.shape[2:]
        centre, slant, deviation = _moments(np.abs(images).sum(axis=1))
        scale = [
            _scale(deviation[0], self.height * high, self.vertical),
            _scale(deviation[1], self.width * wide, self.horizontal),
        ]
        down = (_centred(high) * scale[0][:, None]).astype(np.float32)
        rows = down + centre[0][:, None]
        shift = slant[:, None] * down + centre[1][:, None]
        columns = (_centred(wide) * scale[1][:, None])[:, None, :] + shift[:, :, None]
        out = _interpolated(images, rows[:, None, :, None], axis=2)
        out = _interpolated(out, columns[:, None], axis=3)
        return out[:, 0] if x.ndim == 3 else np.ascontiguousarray(np.moveaxis(out, 1, 3))


def _centred(length: int) -> HostArray:
    return np.arange(length, dtype=np.float32) - np.float32((length - 1) / 2)


def _moments(ink: HostArray) -> tuple[list[HostArray], HostArray, list[HostArray]]:
    """Centre (y, x), slant, and standard deviations (y, x after the shear), [b] each."""
    ink = ink / np.maximum(ink.sum(axis=(1, 2), keepdims=True), _FLOOR)
    y, x = (np.arange(n, dtype=np.float32) for n in ink.shape[1:])
    by_row, by_column = ink.sum(axis=2), ink.sum(axis=1)
    centre = [(by_row * y).sum(axis=1), (by_column * x).sum(axis=1)]
    dy, dx = y - centre[0][:, None], x - centre[1][:, None]
    yy, xx = (by_row * dy * dy).sum(axis=1), (by_column * dx * dx).sum(axis=1)
    xy = ((ink * dx[:, None, :]).sum(axis=2) * dy).sum(axis=1)
    slant = np.clip(xy / (yy + _FLOOR), -_MOST_SLANT, _MOST_SLANT)
    sheared = xx - 2 * slant * xy + slant * slant * yy
    return centre, slant, [np.sqrt(np.maximum(v, _FLOOR)) for v in (yy, sheared)]


def _scale(deviation: HostArray, target: float, share: float) -> HostArray:
    """Source pixels a target pixel, [b]."""
    ratio = np.clip(deviation / np.float32(target), _ONE / _MOST_SCALE, _MOST_SCALE)
    return (ratio ** np.float32(share)).astype(np.float32)


def _interpolated(images: HostArray, place: HostArray, axis: int) -> HostArray:
    """Linear interpolation along an axis at ``place``, zero outside the image."""
    length = images.shape[axis]
    low = np.floor(place)
    share = place - low
    out = np.zeros((), np.float32)
    for step, weight in ((0, _ONE - share), (1, share)):
        index = low.astype(np.int64) + step
        inside = (index >= 0) & (index < length)
        index = np.clip(index, 0, length - 1)
        shape = list(images.shape)
        shape[axis] = index.shape[axis]
        index = np.broadcast_to(index, shape)
        out = out + np.take_along_axis(images, index, axis) * np.where(inside, weight, 0)
    return out.astype(np.float32)
