"""Feature maps: against plain float64 loops; a row's bits are its own."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxpoison._check import DataError, UsageError
from jaxpoison.certify.features import Chain, Deskew, Hog, Pixels, Scattering
from jaxpoison.certify.features.rows import CHUNK, FeatureRows

DIGITS = load_digits().images.astype(np.uint8)
MAPS = (
    Pixels(),
    Deskew(),
    Hog(),
    Scattering(),
    Scattering(3, log=False),
    Chain((Deskew(), Scattering(4))),
)


def unit(row):
    length = np.sqrt((row**2).sum())
    return row / length if length else row


def sampled(image, y, x):
    """Bilinear, zero outside."""
    total = 0.0
    for i in (int(np.floor(y)), int(np.floor(y)) + 1):
        for j in (int(np.floor(x)), int(np.floor(x)) + 1):
            if 0 <= i < image.shape[0] and 0 <= j < image.shape[1]:
                total += image[i, j] * (1 - abs(y - i)) * (1 - abs(x - j))
    return total


def deskewed(image, height=0.168, width=0.143, vertical=1.0, horizontal=0.5):
    image = image / image.max()
    ink = image / image.sum()
    h, w = image.shape
    places = [(i, j) for i in range(h) for j in range(w)]
    cy = sum(ink[p] * p[0] for p in places)
    cx = sum(ink[p] * p[1] for p in places)
    yy = sum(ink[p] * (p[0] - cy) ** 2 for p in places)
    xy = sum(ink[p] * (p[0] - cy) * (p[1] - cx) for p in places)
    slant = min(max(xy / (yy + 1e-3), -1), 1)
    xx = sum(ink[p] * (p[1] - cx - slant * (p[0] - cy)) ** 2 for p in places)
    down = np.clip(np.sqrt(yy) / (height * h), 0.5, 2) ** vertical
    right = np.clip(np.sqrt(xx) / (width * w), 0.5, 2) ** horizontal
    out = np.empty((h, w))
    for i, j in places:
        y = down * (i - (h - 1) / 2)
        out[i, j] = sampled(image, cy + y, cx + slant * y + right * (j - (w - 1) / 2))
    return out


def fourier(n):
    return np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n)


def wavelet(n, octave, angle, slant):
    """[n, n] values of a Morlet wavelet on the periodic grid."""
    sigma, frequency = 0.8 * 2**octave, 0.75 * np.pi / 2**octave
    wave, bump = np.zeros((n, n), complex), np.zeros((n, n))
    for y in range(-2 * n, 3 * n):
        for x in range(-2 * n, 3 * n):
            along = np.cos(angle) * y + np.sin(angle) * x
            across = -np.sin(angle) * y + np.cos(angle) * x
            value = np.exp(-(along**2 + slant**2 * across**2) / (2 * sigma**2))
            wave[y % n, x % n] += value * np.exp(1j * frequency * along)
            bump[y % n, x % n] += value
    norm = slant / (2 * np.pi * sigma**2)
    return norm * (wave - wave.sum() / bump.sum() * bump)


def averaged(values, stride, sigma):
    n = len(values)
    weight = np.zeros((n // stride, n))
    for i in range(n // stride):
        for j in range(n):
            apart = (j - stride // 2 - stride * i + n // 2) % n - n // 2
            weight[i, j] = np.exp(-(apart**2) / (2 * sigma**2))
    weight /= weight.sum(axis=1, keepdims=True)
    return weight @ values @ weight.T


def scattered(image, orientations):
    """Of an 8 x 8 image, by sums over all pixels; logarithms and scale are left to the caller."""
    image = np.pad(image / image.max(), 2, mode="symmetric")
    n = len(image)
    full, half = fourier(n), fourier(n // 2)
    kept = [*range(n // 4), *range(n - n // 4, n)]

    def convolved(values, filter_):
        spectrum = (full @ values @ full) * (full @ filter_ @ full).real
        return np.abs(full.conj() @ spectrum @ full.conj()) / n**2

    def halved(values, filter_):
        spectrum = (full @ values @ full) * (full @ filter_ @ full).real
        low = spectrum[np.ix_(kept, kept)] / 4
        return np.abs(half.conj() @ low @ half.conj()) / (n // 2) ** 2

    angles = [np.pi * i / orientations for i in range(orientations)]
    psi = [[wavelet(n, j, a, 4 / orientations) for a in angles] for j in (0, 1)]
    first = [convolved(image, f) for f in psi[0]]
    out = [averaged(m, 4, 1.6) for m in (image, *first)]
    coarse = [halved(image, f) for f in psi[1]]
    coarse += [halved(m, f) for m in first for f in psi[1]]
    return np.concatenate([np.ravel(m) for m in (*out, *(averaged(m, 2, 0.8) for m in coarse))])


def oriented(image, cell=4, directions=8):
    image = image / image.max()
    h, w = image.shape
    down, right = np.gradient(image)
    out = np.zeros((directions, -(-h // cell), -(-w // cell)))
    for i in range(h):
        for j in range(w):
            turn = np.arctan2(down[i, j], right[i, j]) % np.pi / np.pi * directions
            near = [[], []]
            for axis, (place, count) in enumerate(((i, out.shape[1]), (j, out.shape[2]))):
                shares = [1 - abs(place - cell * c - (cell - 1) / 2) / cell for c in range(count)]
                near[axis] = np.maximum(shares, 0) / np.maximum(shares, 0).sum()
            for step, share in ((0, 1 - turn % 1), (1, turn % 1)):
                length = np.hypot(down[i, j], right[i, j])
                weight = length * share * np.outer(near[0], near[1])
                out[(int(turn) + step) % directions] += weight
    return unit(np.sqrt(out.ravel()))


@pytest.mark.parametrize("row", [0, 17, 101])
def test_features_are_those_of_plain_loops_in_float64(row):
    image, given = DIGITS[row].astype(float), DIGITS[row : row + 1]
    np.testing.assert_allclose(Pixels()(given)[0], unit(image.ravel()), atol=1e-6)
    np.testing.assert_allclose(Deskew()(given)[0], deskewed(image).ravel(), atol=2e-5)
    other = Deskew(height=0.2, width=0.2, vertical=0.3, horizontal=1.0)
    want = deskewed(image, 0.2, 0.2, 0.3, 1.0)
    np.testing.assert_allclose(other(given)[0], want.ravel(), atol=2e-5)
    np.testing.assert_allclose(Hog()(given)[0], oriented(image), atol=1e-5)
    want = scattered(image, 3)
    np.testing.assert_allclose(Scattering(3, log=False)(given)[0], unit(want), atol=1e-6)
    np.testing.assert_allclose(
        Scattering(3, offset=0.1)(given)[0], unit(np.log1p(want / 0.1)), atol=1e-6
    )


@pytest.mark.parametrize("map_", MAPS, ids=str)
def test_a_row_has_the_same_bits_alone_and_in_any_company(map_):
    x = DIGITS[:300]
    want = map_(x)
    assert want.dtype == np.float32 and want.shape[0] == 300 and np.isfinite(want).all()
    order = np.random.default_rng(0).permutation(300)
    np.testing.assert_array_equal(map_(x[order]), want[order])
    np.testing.assert_array_equal(map_(x[7:8]), want[7:8])
    np.testing.assert_array_equal(map_(x[5:160]), want[5:160])
    strange = x.copy()
    strange[1::2] = 255 - 3 * strange[1::2]
    np.testing.assert_array_equal(map_(strange)[::2], want[::2])


@pytest.mark.parametrize("map_", MAPS, ids=str)
def test_grey_scale_and_an_empty_image_do_no_harm(map_):
    x = DIGITS[:5].astype(np.float64)
    x[3] = 0
    got = map_(x)
    assert np.isfinite(got).all() and not got[3].any()
    np.testing.assert_allclose(map_(x / 16), got, atol=1e-5)
    assert map_(x[:0]).shape == (0, got.shape[1])


def test_channels_and_odd_sizes():
    x = np.random.default_rng(0).random((3, 9, 7, 3)).astype(np.float32)
    for map_ in (Hog(), Scattering(2), Deskew()):
        got = map_(x)
        first = map_(np.repeat(x[..., :1], 3, axis=3))
        one = map_(x[..., 0])
        assert got.shape == first.shape == (3, 3 * one.shape[1])
    parts = Hog()(np.repeat(x[..., :1], 3, axis=3)).reshape(3, 3, -1)
    np.testing.assert_allclose(parts[:, 1] * np.sqrt(3), Hog()(x[..., 0]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Deskew(height=0), "height is 0"),
        (lambda: Deskew(horizontal=2), "horizontal is 2"),
        (lambda: Scattering(0), "orientations is 0"),
        (lambda: Scattering(offset=0), "offset is 0"),
        (lambda: Hog(cell=0), "cell is 0"),
        (lambda: Chain(()), "maps is"),
    ],
)
def test_settings_that_make_no_sense(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_rows_that_cannot_be_read():
    with pytest.raises(DataError, match="takes images"):
        Scattering()(np.zeros((2, 64)))
    with pytest.raises(DataError, match="dtype <U1"):
        Pixels()(np.array([["a", "b"]]))
    with pytest.raises(DataError, match="not a finite"):
        Pixels()(np.array([[1.0, np.nan]]))
    with pytest.raises(DataError, match="cell of at most 3"):
        Hog(cell=4)(np.ones((1, 3, 3)))


def test_json_names_every_setting():
    found = Chain((Deskew(), Scattering(4))).to_json()
    assert [each["name"] for each in found["maps"]] == ["Deskew", "Scattering"]
    assert found["maps"][1] == {
        "name": "Scattering", "orientations": 4, "log": True, "offset": 0.03,
    }  # fmt: skip


def test_feature_rows_grow_without_a_version_seeing_another():
    rng = np.random.default_rng(0)
    x = rng.random((CHUNK + 5, 3), np.float32)
    rows = FeatureRows(x[: CHUNK - 1])
    one = rows.append(x[CHUNK - 1 : CHUNK + 2])
    other = rows.append(-x[:1])
    longer = one.append(x[CHUNK + 2 :])
    ids = np.array([0, CHUNK - 2, CHUNK - 1])
    np.testing.assert_array_equal(one[ids], x[ids])
    np.testing.assert_array_equal(other[ids], np.concatenate([x[ids[:2]], -x[:1]]))
    np.testing.assert_array_equal(longer[np.arange(CHUNK + 5)], x)
    assert [len(r) for r in (rows, one, other, longer)] == [
        CHUNK - 1, CHUNK + 2, CHUNK, CHUNK + 5,
    ]  # fmt: skip
    starts, chunks = zip(*one.chunks, strict=True)
    assert starts == (0, CHUNK) and all(c.shape == (CHUNK, 3) for c in chunks)
    np.testing.assert_array_equal(np.concatenate(chunks)[: CHUNK + 2], x[: CHUNK + 2])
    assert not chunks[1][2:].any()  # what the longer version wrote behind it is not shown
    assert not rows.chunks[0][1][CHUNK - 1].any()
