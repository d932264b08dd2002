"""Scattering: averages of the moduli of two layers of wavelets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy.fft

from jaxpoison._check import DataError, UsageError
from jaxpoison._types import HostArray

from ._feature_map import FeatureMap, images_of, unit_rows

_SIGMA = 0.8  # width of the finest wavelet, in pixels
_FREQUENCY = 3 / 4 * np.pi
_STRIDE = 4
_PADDING = 2
_ALIASES = 2  # periods of the grid that a wavelet is summed over


@dataclass(frozen=True)
class Scattering(FeatureMap):
    """Scattering coefficients of order 0, 1 and 2 over two octaves, each row scaled to length 1.

    ``x * phi, |x * psi_1| * phi, ||x * psi_1| * psi_2| * phi`` with Morlet wavelets of
    ``orientations`` directions, sampled at every fourth pixel; then ``log(1 + S / offset)``. Moduli
    of the second octave are kept on every second pixel, their spectrum cut there.

    Attributes:
        orientations: L; 1 + 2 L + L^2 maps.
        log: False leaves the coefficients as they are.
        offset: What is small for a coefficient of an image whose largest value is 1.

    Reference: Bruna and Mallat, Invariant scattering convolution networks (2013),
    arXiv:1203.1513.
    """

    orientations: int = 8
    log: bool = True
    offset: float = 0.03

    def __post_init__(self) -> None:
        if not 1 <= self.orientations <= 32:
            raise UsageError(f"orientations is {self.orientations}; give 1 to 32")
        if not self.offset > 0:
            raise UsageError(f"offset is {self.offset}; give a number above 0")

    def of_block(self, x: HostArray) -> HostArray:
        """[b, f] from images."""
        images = images_of(x, self.name)
        if min(images.shape[2:]) < _STRIDE:
            raise DataError(f"x has images of {images.shape[2:]} pixels; give {_STRIDE} a side")
        b, _, high, wide = images.shape
        extra = [(_PADDING, _PADDING + -n % _STRIDE) for n in (high, wide)]
        padded = np.pad(images.reshape(-1, high, wide), ((0, 0), *extra), mode="symmetric")
        out = _coefficients(padded, _filters(*padded.shape[1:], self.orientations))
        flat = out.reshape(b, -1)
        if self.log:
            flat = np.log1p(np.maximum(flat, 0) * np.float32(1 / self.offset))
        return unit_rows(flat)


class _Filters(NamedTuple):
    fine: HostArray  # [L, h, w] spectra of the first octave
    coarse: HostArray  # [L, h / 2, w / 2] of the second, cut to the low frequencies
    smooth: tuple[HostArray, HostArray]  # [h / 4, h], [w / 4, w]
    smooth_half: tuple[HostArray, HostArray]  # [h / 4, h / 2], [w / 4, w / 2]


def _coefficients(images: HostArray, filters: _Filters) -> HostArray:
    """[b, maps, h / 4, w / 4]."""
    high, wide = images.shape[1:]
    spectrum = scipy.fft.fft2(images)[:, None]
    first = _modulus(spectrum * filters.fine)
    halves = _low_frequencies(spectrum) * filters.coarse
    of_first = _low_frequencies(scipy.fft.fft2(first))
    second = (of_first[:, :, None] * filters.coarse).reshape(len(images), -1, high // 2, wide // 2)
    coarse = _modulus(np.concatenate([halves, second], axis=1))
    fine = np.concatenate([images[:, None], first], axis=1)
    maps = [_smoothed(fine, filters.smooth), _smoothed(coarse, filters.smooth_half)]
    return np.concatenate(maps, axis=1)


def _modulus(spectrum: HostArray) -> HostArray:
    values: HostArray = np.abs(scipy.fft.ifft2(spectrum, overwrite_x=True))
    return values


def _low_frequencies(spectrum: HostArray) -> HostArray:
    """The spectrum of every second pixel of the image without its upper half of frequencies."""
    high, wide = (n // 4 for n in spectrum.shape[-2:])
    rows = np.concatenate([spectrum[..., :high, :], spectrum[..., -high:, :]], axis=-2)
    cut = np.concatenate([rows[..., :wide], rows[..., -wide:]], axis=-1)
    out: HostArray = cut * np.float32(0.25)
    return out


def _smoothed(maps: HostArray, matrices: tuple[HostArray, HostArray]) -> HostArray:
    out: HostArray = np.matmul(np.matmul(matrices[0], maps), matrices[1].T)
    return out


@lru_cache(maxsize=8)
def _filters(high: int, wide: int, orientations: int) -> _Filters:
    angles = [np.pi * i / orientations for i in range(orientations)]
    octaves = [
        np.stack([_morlet(high, wide, j, angle, 4 / orientations) for angle in angles])
        for j in (0, 1)
    ]
    fine = octaves[0].astype(np.float32)
    coarse = _low_frequencies(octaves[1]) * 4
    return _Filters(
        fine,
        coarse.astype(np.float32),
        (_gaussians(high, _STRIDE, 2 * _SIGMA), _gaussians(wide, _STRIDE, 2 * _SIGMA)),
        (_gaussians(high // 2, _STRIDE // 2, _SIGMA), _gaussians(wide // 2, _STRIDE // 2, _SIGMA)),
    )


def _morlet(high: int, wide: int, octave: int, angle: float, slant: float) -> HostArray:
    """Real spectrum of a wavelet of mean 0: a wave under a Gaussian, less the Gaussian's share."""
    sigma, frequency = _SIGMA * 2**octave, _FREQUENCY / 2**octave
    wave = _gabor(high, wide, sigma, angle, frequency, slant)
    bump = _gabor(high, wide, sigma, angle, 0.0, slant)
    spectrum: HostArray = np.fft.fft2(wave - wave.sum() / bump.sum() * bump).real
    return spectrum


def _gabor(
    high: int, wide: int, sigma: float, angle: float, frequency: float, slant: float
) -> HostArray:
    out = np.zeros((high, wide), complex)
    for down in range(-_ALIASES, _ALIASES + 1):
        for right in range(-_ALIASES, _ALIASES + 1):
            y, x = np.mgrid[:high, :wide].astype(float)
            y, x = y + down * high, x + right * wide
            along = y * np.cos(angle) + x * np.sin(angle)
            across = slant * (x * np.cos(angle) - y * np.sin(angle))
            envelope = np.exp(-(along**2 + across**2) / (2 * sigma**2))
            out += envelope * np.exp(1j * frequency * along)
    return out * slant / (2 * np.pi * sigma**2)


def _gaussians(length: int, stride: int, sigma: float) -> HostArray:
    """[length / stride, length] circular averages around every stride-th pixel."""
    centres = stride // 2 + stride * np.arange(length // stride)
    distance = (np.arange(length) - centres[:, None] + length // 2) % length - length // 2
    weights = np.exp(-(distance**2) / (2 * sigma**2))
    out: HostArray = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return out
