"""Pixels by documented rules, and images that are damaged or hostile, each named in the error."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest

from image_files import encoded, png, save_folder
from jaxpoison._check import DataError, JaxpoisonError
from jaxpoison.sources import open_source

Image = pytest.importorskip("PIL.Image", reason="images are read by Pillow (extra images)")


def check_pixels(tmp_path, files, expected):
    (tmp_path / "a/c").mkdir(parents=True)
    for name, raw in files.items():
        (tmp_path / "a/c" / name).write_bytes(raw)
    got = open_source(tmp_path / "a").read(0, len(files))["x"]
    np.testing.assert_array_equal(got, expected)


def test_kinds_of_grey(tmp_path):
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (4, 5), dtype=np.uint8)
    deep = rng.integers(0, 1 << 16, (4, 5)).astype(np.uint16)
    alpha = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(255 - grey)])
    bits = Image.fromarray(grey).convert("1", dither=0)
    files = {
        "0.png": png(grey),
        "1.bmp": encoded(Image.fromarray(grey), "BMP"),
        "2.png": encoded(alpha, "PNG"),
        "3.png": encoded(bits, "PNG"),
        "4.png": png(deep),
        "5.pgm": b"P5 5 4 65535\n" + deep.astype(">u2").tobytes(),
        "6.PGM": b"P5 5 4 255\n" + grey.tobytes(),
    }
    high = (deep >> 8).astype(np.uint8)
    black = np.where(grey >= 128, 255, 0)
    check_pixels(tmp_path, files, np.stack([grey, grey, grey, black, high, high, grey]))


def test_kinds_of_colour_and_a_grey_image_among_them(tmp_path):
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    grey = rng.integers(0, 256, (4, 5), dtype=np.uint8)
    alpha = np.dstack([rgb, grey])
    palette = Image.fromarray(rgb).quantize(16)
    colours = np.asarray(palette.convert("RGB"))
    cmyk = encoded(Image.fromarray(rgb).convert("CMYK"), "JPEG", quality=95)
    jpeg = encoded(Image.fromarray(rgb), "JPEG", quality=95)
    files = {
        "0.png": png(rgb),
        "1.png": png(alpha),
        "2.png": encoded(palette, "PNG"),
        "3.png": encoded(palette, "PNG", transparency=bytes([0, 128, 255])),
        "4.png": png(grey),
        "5.jpeg": cmyk,
        "6.JPG": jpeg,
        "7.webp": encoded(Image.fromarray(rgb), "WEBP", lossless=True),
    }
    as_rgb = [np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")) for raw in (cmyk, jpeg)]
    thrice = np.dstack([grey] * 3)
    expected = np.stack([rgb, rgb, colours, colours, thrice, *as_rgb, rgb])
    check_pixels(tmp_path, files, expected)


def test_orientation_is_not_applied(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(rgb)
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees: a reader that obeys has 5 x 4
    check_pixels(tmp_path, {"0.png": encoded(image, "PNG", exif=exif)}, rgb[None])


def bomb(width, height):
    """A PNG of a few hundred bytes that declares a huge image."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    out = b"\x89PNG\r\n\x1a\n"
    for kind, raw in ((b"IHDR", header), (b"IDAT", body), (b"IEND", b"")):
        crc = struct.pack(">I", zlib.crc32(kind + raw))
        out += struct.pack(">I", len(raw)) + kind + raw + crc
    return out


GOOD = np.random.default_rng(1).integers(0, 256, (20, 20), dtype=np.uint8)
FRAMES = [Image.fromarray(GOOD), Image.fromarray(255 - GOOD)]
BROKEN = {  # what stands in place of one image, and words of the message
    "empty": (b"", ["holds 0 bytes"]),
    "text": (b"hello, I am no image", ["b'hello, I'", "PNG, JPEG"]),
    "script": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", ["no PNG"]),
    "gif inside": (encoded(FRAMES[0], "GIF"), ["b'GIF87a", "no PNG"]),
    "tiff inside": (encoded(FRAMES[0], "TIFF"), ["no PNG"]),
    "only a header": (png(GOOD)[:20], ["image"]),
    "half": (png(GOOD)[:200], ["truncated or damaged image"]),
    "bomb": (bomb(30_000, 30_000), ["truncated or damaged image", "bomb"]),
    "smaller bomb": (bomb(9000, 9000), ["9000 x 9000 pixels"]),
    "no pixels": (bomb(0, 5), ["image"]),
    "frames": (
        encoded(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]),
        ["holds 2 frames"],
    ),
    "floats": (b"Pf 2 2 -1.0\n" + bytes(16), ["kind 'F'"]),
    "ppm of a huge size": (b"P6 99999999 99999999 255\n", ["truncated or damaged"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_images_are_named(tmp_path, case):
    raw, words = BROKEN[case]
    save_folder(tmp_path / "a", GOOD[None].repeat(3, 0), ["x", "x", "y"])
    (tmp_path / "a/x/00001.png").write_bytes(raw)
    with pytest.raises(DataError) as caught:
        open_source(tmp_path / "a").read(0, 3)
    for word in (f"{tmp_path}/a/x/00001.png", *words):
        assert word in str(caught.value)


def test_headers_behind_much_else_are_found(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    raw = encoded(Image.fromarray(rgb), "JPEG", comment=b"x" * 60_000)
    (tmp_path / "a/c").mkdir(parents=True)
    (tmp_path / "a/c/0.jpg").write_bytes(raw)
    assert open_source(tmp_path / "a").schema.shape == (8, 8, 3)


def test_damaged_bytes_never_escape_as_another_error(tmp_path):
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    image = Image.fromarray(rgb)
    raws = {
        "png": png(rgb), "jpg": encoded(image, "JPEG"), "bmp": encoded(image, "BMP"),
        "webp": encoded(image, "WEBP"), "ppm": encoded(image, "PPM"),
    }  # fmt: skip
    (tmp_path / "a/c").mkdir(parents=True)
    refused = 0
    for kind, content in raws.items():
        path = tmp_path / f"a/c/0.{kind}"
        for _ in range(60):
            raw = bytearray(content)
            for at in rng.integers(0, len(raw), rng.integers(1, 6)):
                raw[at] = rng.integers(0, 256)
            path.write_bytes(bytes(raw[: rng.integers(1, 2 * len(raw))]))
            try:
                open_source(tmp_path / "a").read(0, 1)
            except JaxpoisonError as error:
                refused += 1
                assert str(path) in str(error)
        path.unlink()
    assert refused > 60
