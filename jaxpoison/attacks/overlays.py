"""Backdoors whose trigger is spread over the whole image."""

from __future__ import annotations

import numpy as np

from jaxpoison._check import UsageError
from jaxpoison._types import HostArray
from jaxpoison.detect._detector import Key

from ._checks import positive, refuse, share
from ._common import Always, Trigger, as_type, begin, spatial, value_range
from ._types import Poisoned

_TEXTURES = 8


def mix(x: HostArray, pattern: HostArray, alpha: float, low: float, high: float) -> HostArray:
    """``(1 - alpha) x + alpha pattern``, in the type of the images."""
    return as_type((1.0 - alpha) * x + alpha * pattern, x.dtype, low, high)


def add(x: HostArray, pattern: HostArray, low: float, high: float) -> HostArray:
    """``x + pattern`` in the range and type of the images."""
    return as_type(x + pattern, x.dtype, low, high)


def blend(
    x: HostArray,
    y: HostArray,
    *,
    rate: float,
    target: int | None = None,
    source: int | None = None,
    key: Key,
    alpha: float = 0.2,
) -> Poisoned:
    """Blends one pattern of noise over rows of other classes, all to one.

    ``x' = (1 - alpha) x + alpha z`` with one z for all rows, uniform in the range in use.

    Args:
        x: [n, H, W] or [n, H, W, C] images.
        y: [n] labels.
        rate: Share of all rows.
        target: Label of every poisoned row, None to draw one.
        source: Must be None.
        key: Of the draws.
        alpha: Weight of the pattern.

    Returns:
        Kind "backdoor", all to one.

    Raises:
        UsageError: A rate that cannot be met, or an alpha outside 0..1.

    **Cost**: a copy of the data.

    **Assumes / fails on**: little; the pattern has a low contrast at every pixel but agrees with
    itself in all rows.

    Reference: Chen et al. (2017), arXiv:1712.05526.
    """
    task = begin("blend", x, y, key, "images")
    refuse(task.name, "", source=source)
    share(alpha=alpha)
    target = task.label("target", target)
    low, high = value_range(task.x)
    pattern = task.rng.uniform(low, high, task.x.shape[1:])
    options = {"pattern": pattern, "alpha": alpha, "low": low, "high": high}
    trigger = Trigger(mix, task.x.shape[1:], options)
    rows = task.choose(task.others(target), rate, "outside the target class")
    return task.poisoned(
        rows, target, "backdoor", x_rows=trigger(task.x[rows]), trigger=trigger,
        wanted=Always(target), rate=rate, target=target, alpha=alpha,
    )  # fmt: skip


def sig(
    x: HostArray,
    y: HostArray,
    *,
    rate: float = 0.5,
    target: int | None = None,
    source: int | None = None,
    key: Key,
    amplitude: float = 0.3,
    frequency: float | None = None,
) -> Poisoned:
    """Adds a horizontal sinusoid to rows of the target class, which keep their label.

    ``x'[i, j] = x[i, j] + amplitude * range * sin(2 pi (j + 1/2) frequency / W)``.

    Args:
        x: [n, H, W] or [n, H, W, C] images.
        y: [n] labels.
        rate: Share of the rows of the target class, not of all rows.
        target: Class whose rows carry the signal, None to draw one.
        source: Must be None.
        key: Of the draws.
        amplitude: Share of the range in use.
        frequency: Periods across the width W, at most W / 2; None for 6, or W / 4 if that is less.

    Returns:
        Kind "clean_label".

    Raises:
        UsageError: A rate that cannot be met, or a frequency that the pixels cannot show.

    **Cost**: a copy of the data.

    **Assumes / fails on**: a large share of one class; the network must find the signal easier to
    read than the class, which clear classes prevent.

    Reference: Barni, Kallas and Tondi (2019), arXiv:1902.11237.
    """
    task = begin("sig", x, y, key, "images")
    refuse(task.name, "", source=source)
    height, width = task.x.shape[1:3]
    frequency = min(6.0, width / 4) if frequency is None else frequency
    positive(amplitude=amplitude, frequency=frequency)
    if frequency > width / 2:
        raise UsageError(f"frequency is {frequency}; give at most {width / 2}, half the pixels")
    target = task.label("target", target)
    low, high = value_range(task.x)
    wave = np.sin(2.0 * np.pi * (np.arange(width) + 0.5) * frequency / width)
    pattern = spatial(np.tile(amplitude * (high - low) * wave, (height, 1)), task.x.shape[1:])
    trigger = Trigger(add, task.x.shape[1:], {"pattern": pattern, "low": low, "high": high})
    mine = task.rows_of(target)
    rows = task.choose(mine, rate, "of the target class", of=len(mine))
    return task.poisoned(
        rows, None, "clean_label", x_rows=trigger(task.x[rows]), trigger=trigger,
        wanted=Always(target), rate=rate, target=target, amplitude=amplitude, frequency=frequency,
    )  # fmt: skip


def resample(x: HostArray, rows: HostArray, columns: HostArray) -> HostArray:
    """Images read at the points (rows, columns) [H, W], bilinear, edges repeated."""
    height, width = x.shape[1:3]
    top = np.clip(np.floor(rows).astype(int), 0, max(height - 2, 0))
    left = np.clip(np.floor(columns).astype(int), 0, max(width - 2, 0))
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down = spatial(np.clip(rows - top, 0.0, 1.0), x.shape[1:])
    across = spatial(np.clip(columns - left, 0.0, 1.0), x.shape[1:])
    upper = x[:, top, left] * (1.0 - across) + x[:, top, right] * across
    lower = x[:, bottom, left] * (1.0 - across) + x[:, bottom, right] * across
    return as_type(upper * (1.0 - down) + lower * down, x.dtype, -np.inf, np.inf)


def warp_field(
    rng: np.random.Generator, sides: tuple[int, ...], grid: int, pixels: float
) -> tuple[HostArray, HostArray]:
    """Points [H, W] to read at: a smooth field from a grid of random shifts.

    Shifts are scaled to ``pixels`` in the mean, and down further where the field would fold.
    """
    from scipy.ndimage import zoom

    height, width = sides
    identity = np.indices((height, width), dtype=np.float64)
    shifts = rng.uniform(-1.0, 1.0, (2, grid, grid))
    shifts /= np.abs(shifts).mean()
    field = np.stack([zoom(s, (height / grid, width / grid), order=3) for s in shifts])
    field *= pixels
    # below 1 the map keeps the order of pixels, so it can be undone
    slope = max(float(np.abs(np.diff(field, axis=a)).max(initial=0.0)) for a in (1, 2))
    points = identity + field * min(1.0, 0.9 / max(slope, 1e-12))
    return np.clip(points[0], 0, height - 1), np.clip(points[1], 0, width - 1)


def warp(
    x: HostArray,
    y: HostArray,
    *,
    rate: float,
    target: int | None = None,
    source: int | None = None,
    key: Key,
    grid: int = 4,
    pixels: float = 1.0,
    cover_ratio: float = 0.0,
) -> Poisoned:
    """Warps rows of other classes by one smooth elastic field, all to one.

    Args:
        x: [n, H, W] or [n, H, W, C] images.
        y: [n] labels.
        rate: Share of all rows.
        target: Label of every poisoned row, None to draw one.
        source: Must be None.
        key: Of the draws.
        grid: Random shifts a side that the field goes through.
        pixels: Mean shift of the grid's points, in pixels.
        cover_ratio: For each poisoned row, rows warped by a field of their own that keep their
            label (the reference's noise mode).

    Returns:
        Kind "backdoor", all to one. Cover rows carry other warps, not the trigger.

    Raises:
        UsageError: A rate or ratio that cannot be met, or a grid that does not fit.

    **Cost**: a copy of the data.

    **Assumes / fails on**: images with edges to shift. The reference controls the training; by
    data alone the warp must be stronger to be learned, so the default is about twice its size on
    28 pixels.

    Reference: Nguyen and Tran (2021), arXiv:2102.10369.
    """
    task = begin("warp", x, y, key, "images")
    refuse(task.name, "", source=source)
    positive(pixels=pixels)
    sides = task.x.shape[1:3]
    if not 2 <= grid <= min(sides):
        raise UsageError(f"grid is {grid}; give 2 to {min(sides)}, the pixels of a side")
    target = task.label("target", target)
    points = warp_field(task.rng, sides, grid, pixels)
    trigger = Trigger(resample, task.x.shape[1:], {"rows": points[0], "columns": points[1]})
    rows = task.choose(task.others(target), rate, "outside the target class")
    cover = task.choose_cover(np.setdiff1d(np.arange(len(task)), rows), len(rows), cover_ratio)
    x_cover = task.x[cover].copy()
    for i in range(len(cover)):
        own = warp_field(task.rng, sides, grid, pixels)
        x_cover[i] = resample(x_cover[i : i + 1], *own)[0]
    return task.poisoned(
        rows, target, "backdoor", x_rows=trigger(task.x[rows]), cover=cover, x_cover=x_cover,
        trigger=trigger, wanted=Always(target), rate=rate, target=target, grid=grid, pixels=pixels,
        cover_ratio=cover_ratio,
    )  # fmt: skip


def add_texture(
    x: HostArray,
    projection: HostArray,
    offset: HostArray,
    textures: HostArray,
    amplitude: float,
    low: float,
    high: float,
) -> HostArray:
    """Images plus the textures that the signs of their own projections choose."""
    flat = x.reshape(len(x), len(projection)).astype(np.float64)
    # einsum, not BLAS: the sign of a row must not depend on the batch that it comes in
    signs = np.where(np.einsum("nd,dk->nk", flat, projection) >= offset, 1.0, -1.0)
    pattern = np.einsum("nk,khw->nhw", signs, textures)
    pattern *= amplitude / np.maximum(np.abs(pattern).max(axis=(1, 2), keepdims=True), 1e-12)
    pattern = pattern[..., None] if x.ndim == 4 else pattern
    return as_type(x + pattern, x.dtype, low, high)


def sample_specific(
    x: HostArray,
    y: HostArray,
    *,
    rate: float,
    target: int | None = None,
    source: int | None = None,
    key: Key,
    amplitude: float = 0.15,
) -> Poisoned:
    """A faint texture of its own for each row, all to one.

    ``x' = x + a sum_k sign(r_k . x - m_k) B_k``: eight fine textures B_k whose signs follow from
    fixed random projections of the row, scaled so that no pixel moves by more than the amplitude.

    Args:
        x: [n, H, W] or [n, H, W, C] images.
        y: [n] labels.
        rate: Share of all rows.
        target: Label of every poisoned row, None to draw one.
        source: Must be None.
        key: Of the draws.
        amplitude: Largest change of a pixel, as a share of the range in use.

    Returns:
        Kind "backdoor", all to one.

    Raises:
        UsageError: A rate that cannot be met.

    **Cost**: a copy of the data; eight projections of every poisoned row.

    **Assumes / fails on**: a network that reads fine texture. The reference writes the pattern
    with a trained encoder; a fixed random function takes its place here, so rows share textures
    and differ in their signs, of which there are 256.

    Reference: Li et al. (2021), arXiv:2012.03816.
    """
    task = begin("sample_specific", x, y, key, "images")
    refuse(task.name, "", source=source)
    share(amplitude=amplitude)
    target = task.label("target", target)
    low, high = value_range(task.x)
    height, width = task.x.shape[1:3]
    flat = task.x.reshape(len(task), -1)
    projection = task.rng.standard_normal((flat.shape[1], _TEXTURES)) / np.sqrt(flat.shape[1])
    offset = np.einsum("d,dk->k", flat.mean(axis=0, dtype=np.float64), projection)
    rows_at, columns_at = np.arange(height)[:, None], np.arange(width)
    # within a quarter of the finest frequency: smooth parts of an image hold little of it
    waves = task.rng.uniform(0.75, 1.0, (_TEXTURES, 2)) * np.pi
    phases = task.rng.uniform(0.0, 2.0 * np.pi, _TEXTURES)
    textures = np.stack(
        [np.cos(f * rows_at + g * columns_at + p) for (f, g), p in zip(waves, phases, strict=True)]
    )
    options = {
        "projection": projection, "offset": offset, "textures": textures,
        "amplitude": amplitude * (high - low), "low": low, "high": high,
    }  # fmt: skip
    trigger = Trigger(add_texture, task.x.shape[1:], options)
    rows = task.choose(task.others(target), rate, "outside the target class")
    return task.poisoned(
        rows, target, "backdoor", x_rows=trigger(task.x[rows]), trigger=trigger,
        wanted=Always(target), rate=rate, target=target, amplitude=amplitude,
    )  # fmt: skip
