"""The report's page: self-contained, small, and deaf to hostile text."""

from __future__ import annotations

import base64
import hashlib
import re
import struct
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest

import report_sample as sample
from jaxpoison.attacks import ATTACKS
from jaxpoison.report import _notes, render_html
from jaxpoison.report._text import number, percent, visible
from jaxpoison.report.png import as_pixels, encode_png, shrink
from jaxpoison.report.svg import histogram, scatter

make_report = sample.make_report


class Page(HTMLParser):
    """Collects tags and attributes, and complains about every unbalanced one."""

    VOID = frozenset({"meta", "img", "input", "br", "hr", "link", "base"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack and self.stack[-1] == tag, f"</{tag}> closes {self.stack[-3:]}"
        self.stack.pop()

    def handle_data(self, data):
        if not self.stack or self.stack[-1] not in ("script", "style"):
            self.text.append(data)


def test_visible_text():
    assert visible("a\u202eb\x1b") == "a⟨U+202E⟩b⟨U+001B⟩"
    assert visible("two\r\nlines") == "two  lines"
    assert visible("é ß 漢 🙂 שלום") == "é ß 漢 🙂 שלום", "honest names stay as they are"
    for text in sample.HOSTILE:
        shown = visible(text, 50)
        assert len(shown) <= 50 and shown.isprintable()
        shown.encode("utf-8")


def test_numbers():
    assert [number(v) for v in (0, 3.14159, 12345.6, 1e-9, float("inf"), None)] == [
        "0", "3.14", "12,346", "1.0e\N{MINUS SIGN}9", "inf", "\N{EN DASH}",
    ]  # fmt: skip
    assert [percent(v) for v in (0, 1, 0.00001, 0.99999, 0.0137)] == [
        "0 %", "100 %", "< 0.01 %", "> 99.9 %", "1.37 %",
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(3, 5), (4, 4, 1), (4, 4, 2), (2, 7, 3), (3, 3, 4)])
def test_png_decodes_to_the_same_pixels(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = encode_png(image)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    at, chunks = 8, {}
    while at < len(data):
        (size,), name = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        chunks[name] = data[at + 8 : at + 8 + size]
        crc = struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0]
        assert crc == zlib.crc32(name + chunks[name])
        at += 12 + size
    width, height, depth, _ = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)
    assert (height, width, depth) == (*shape[:2], 8) and not lines[:, 0].any()
    np.testing.assert_array_equal(lines[:, 1:].reshape(shape), image)


def test_png_refuses_other_arrays_and_any_image_becomes_pixels():
    for bad in (np.zeros((2, 2, 5), np.uint8), np.zeros((0, 2), np.uint8), np.zeros((2, 2))):
        with pytest.raises(ValueError):
            encode_png(bad)
    assert as_pixels(np.array([[0.0, np.nan], [1.0, 2.0]])).ravel().tolist() == [0, 0, 128, 255]
    assert as_pixels(np.zeros((2, 2, 4), np.uint8)).shape == (2, 2, 3)
    assert as_pixels(np.zeros((2, 2, 7), np.uint8)).shape == (2, 2, 1)
    small = shrink(np.full((100, 37, 3), 9, np.uint8), 16)
    assert small.shape == (16, 6, 3) and (small == 9).all()


@pytest.mark.parametrize(
    "values",
    [[], [1.0], [2.0, 2.0], [np.nan, 1.0], [1e-300, 1e300], [-1e9, 0, 5], [1] * 99 + [9e9]],
)
def test_charts_survive_odd_values(values):
    values = np.array(values, np.float64)
    flagged = np.arange(len(values)) % 2 == 0
    for text in (histogram(values, flagged, "<s>"), scatter(np.stack([values] * 2, 1), flagged)):
        Page(text)
        assert "nan" not in text and "inf" not in text and "<s>" not in text
    count = int(np.isfinite(values).sum())
    if count:
        assert f"{count} rows" in histogram(values, flagged, "score"), "no row may fall out"


@pytest.mark.parametrize("verdict", ["clean", "suspicious", "poisoned"])
@pytest.mark.parametrize("suspected", [(), (1,), (0, 1, 2)])
@pytest.mark.parametrize("image_shape", [None, (8, 8), (9, 5, 3), (200, 100, 1)])
def test_page_is_complete_and_loads_nothing(verdict, suspected, image_shape):
    text = render_html(make_report(verdict=verdict, suspected=suspected, image_shape=image_shape))
    page = Page(text)
    assert f'class="verdict {verdict}"' in text and "uncalibrated against trusted data" in text
    for tag, attrs in page.tags:
        assert tag not in {"link", "base", "iframe", "object", "embed"}
        assert not any(name.startswith("on") or name == "style" for name in attrs), (tag, attrs)
        for name in ("src", "href", "action", "srcset", "data", "poster", "xlink:href"):
            if attrs.get(name):
                assert attrs[name].startswith(("data:image/png;base64,", "#")), attrs
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = {attrs["href"][1:] for tag, attrs in page.tags if tag == "a"}
    assert links <= set(ids), "every link leads somewhere"
    # Base64 may hold two slashes, so the pictures are taken out first.
    rest = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]*", "", text)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", rest)


def test_every_kind_of_poison_is_explained():
    planted = {each.kind for each in ATTACKS.values()} - {"availability"}
    assert planted == set(_notes.KINDS)
    report = make_report(suspected=(1, 2))
    first, second = report.report["suspected_attacks"]
    for kind, meaning in _notes.KINDS.items():
        first["kind"] = second["kind"] = kind
        assert render_html(report).count(meaning) == 1
    second["kind"] = "another"
    text = render_html(report)
    assert [kind for kind, meaning in _notes.KINDS.items() if meaning in text] == [first["kind"]]


def test_policy_allows_only_our_script_and_style():
    text = render_html(make_report())
    policy = next(a["content"] for t, a in Page(text).tags
                  if a.get("http-equiv") == "Content-Security-Policy")  # fmt: skip
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag in ("script", "style"):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_hostile_names_stay_text(tmp_path):
    honest = make_report(num_classes=10, names=tuple("abcdefghij"), suspected=(0, 1, 4, 7))
    hostile = make_report(num_classes=10, names=sample.HOSTILE, suspected=(0, 1, 4, 7))
    text = render_html(hostile)
    tags = [tag for tag, _ in Page(text).tags]
    assert tags == [tag for tag, _ in Page(render_html(honest)).tags]
    assert re.search(r"[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069\u200b]", text) is None
    shown = "".join(Page(text).text)
    assert sample.HOSTILE[0] in shown and "⟨U+202E⟩" in shown and sample.HOSTILE[5] in shown
    card = hostile._repr_html_()
    assert {tag for tag, _ in Page(card).tags} <= {"div", "b", "ul", "li", "sub"}
    assert "⟨U+202E⟩" in card and len(card) < 5000
    summary = hostile.summary()
    assert all(line.isprintable() for line in summary.split("\n"))
    assert f"flagged {hostile.report['n_flagged']} of 300 rows" in summary
    hostile.write(tmp_path / "run")


@pytest.mark.parametrize("num_suspected", [2, 300])
def test_page_stays_small_whatever_the_data(num_suspected):
    report = make_report(
        n=200_000, num_classes=300, names=tuple("\u202e<&\"'" * 50 for _ in range(300)),
        num_examples=100, image_shape=(32, 32, 3), suspected=tuple(range(num_suspected)),
    )  # fmt: skip
    text = render_html(report)
    assert len(text.encode()) < 3_000_000
    Page(text)
    assert text.count("data:image/png;base64,") >= 100 - 100 * (num_suspected > 12)


def test_large_noisy_pictures_are_shrunk_until_they_fit():
    report = make_report(num_examples=100, image_shape=(300, 300, 3))
    assert len(render_html(report).encode()) < 3_000_000
