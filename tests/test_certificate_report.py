"""The certificate's page, text and JSON: escaped, complete, valid, and never half-written."""

from __future__ import annotations

import copy
import os
import re
import xml.etree.ElementTree as ET

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxpoison.report import CertificateReport, Example, Pictures, load_certificate_schema, svg
from jaxpoison.report._promises import cost_rows, not_promised, one_change, promised
from jaxpoison.report.certificate import radius_rows

HOSTILE = '<script>alert(1)</script>"&\u202e\x1b[31m'
GENERAL = {"insert": 1, "delete": 1, "flip": 1, "modify": 2}


def make(*, labelled=True, image=True, name=HOSTILE, rows=5, rule="plurality"):
    rng = np.random.default_rng(0)
    radii = list(range(12))
    share = np.linspace(1, 0, 12).tolist()
    entry = {
        "label_name": name if labelled else None, "prediction": 1, "prediction_name": name,
        "runner_up": 0, "runner_up_name": "0", "votes_first": 11, "votes_second": 9,
    }  # fmt: skip
    least = [
        {"index": i, "label": i % 2 if labelled else None, "radius": i - 1, **entry}
        for i in range(rows)
    ]
    document = {
        "schema": "jaxpoison.certificate/1", "version": "0.1.0",
        "train": {"name": name, "fingerprint": "ab" * 16, "rows": 100, "kind": "images",
                  "shape": [6, 6], "dtype": "uint8"},
        "test": {"name": name, "fingerprint": "cd" * 16, "rows": rows, "labelled": labelled},
        "n_classes": 2, "scheme": "dpa", "rule": rule, "k": 20, "spread": 1, "subsets": 20,
        "covers": "inputs",
        "threat": {"name": "general", "unit": "touched cells", "costs": GENERAL},
        "accuracy": {"clean": 0.8, "base": 0.6} if labelled else None,
        "median": 4 if labelled else None, "certified": 3, "largest": 10,
        "curve": {"radius": radii, "accuracy": [0.8 * s for s in share] if labelled else None,
                  "share": share},
        "least_certain": least, "notes": [f"note {name}"], "verified": None,
        "manifest": {
            "versions": {"python": "3"}, "device": None, "precision": {}, "partition": {},
            "ladder": [16], "learner": {"name": name, "digest": "00", "settings": {}},
            "subsets": {"count": 20, "empty": 0, "empty_votes_for": 0, "rows": 100, "smallest": 3,
                        "largest": 9},
            "data": None,
        },
        "manifest_digest": "0" * 32, "timing": {"total": 1.5}, "pieces_reused": 0,
        "plan": {"data": name, "salt": True},
    }  # fmt: skip
    examples = tuple(
        Example(
            i, 1, 0.0, 1.0, 1.0, False, "",
            rng.integers(0, 255, (6, 6), dtype=np.uint8) if image else None,
            None if image else rng.normal(size=8),
        )
        for i in range(rows)
    )  # fmt: skip
    columns = {
        "index": np.arange(rows), "label": np.ma.masked_array(np.arange(rows), np.arange(rows) > 2),
        "prediction": np.ones(rows, np.int64), "radius": np.arange(rows) - 1,
    }  # fmt: skip
    return CertificateReport(document, columns, Pictures((), (), examples, ("0", name)))


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("image", [True, False])
def test_the_page_escapes_and_loads_nothing(labelled, image):
    report = make(labelled=labelled, image=image)
    jsonschema.validate(report.document, load_certificate_schema())
    page = report.html()
    assert "<script" not in page and "\u202e" not in page and "\x1b" not in page
    assert "⟨U+202E⟩" in page and "&lt;script&gt;" in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert "default-src 'none'" in page and " style=" not in page and " onclick" not in page
    assert page.count("<img ") == (5 if image else 0) and page.count('class="strip"') == (
        0 if image else 5
    )
    assert ("Clean accuracy" in page) is labelled and ("Right and certified" in page) is labelled
    assert "Not promised" in page and "wrong:" in page if labelled else "wrong:" not in page


def test_the_page_is_well_formed():
    page = make().html()
    body = page[page.index("<body>") : page.index("</body>") + 7]
    for tag in ("section", "table", "ul", "li", "dl", "div", "main", "svg", "figure", "tr", "p"):
        opened = len(re.findall(rf"<{tag}[ >]", body))
        assert opened == body.count(f"</{tag}>"), tag
    assert body.count("<section") == 5


def test_the_table_is_that_of_the_curve():
    doc = make().document
    rows = radius_rows(doc)
    assert [row["radius"] for row in rows] == list(range(12))
    long = copy.deepcopy(doc)
    long["curve"] = {
        "radius": list(range(1001)), "accuracy": None, "share": np.linspace(1, 0, 1001).tolist(),
    }  # fmt: skip
    rows = radius_rows(long)
    assert rows[0]["radius"] == 0 and len(rows) <= 12 and rows[-1]["radius"] >= 900
    for row in rows:
        assert row["share"] == long["curve"]["share"][row["radius"]] == row["shown"]
        assert row["right"] is None


def test_the_drawing_falls_behind_the_radius():
    image = svg.steps([0, 1, 2], [("right", [1.0, 1.0, 0.0])], "cells", "rows<")
    root = ET.fromstring(str(image))
    (path,) = [p for p in root.iter("path") if p.get("class") == "step lead" and "V" in p.get("d")]
    start, *corners = re.findall(r"[\d.]+ [\d.]+|H[\d.]+V[\d.]+", path.get("d"))
    left, top = map(float, start.split())
    drop, last = corners
    across, down = map(float, re.findall(r"[\d.]+", drop))
    end, bottom = map(float, re.findall(r"[\d.]+", last))
    assert left < across < end and (across - left) == pytest.approx((end - left) / 2, abs=0.2)
    assert top < down == bottom  # all rows hold at 1, none at 2
    assert "rows&lt;" in str(image) and svg.steps([], [], "a", "b") == ""


def test_the_text_for_a_terminal():
    text = make().summary()
    assert "\x1b" not in text and "\u202e" not in text
    assert "accuracy 80 % (one model alone 60 %), median radius 4" in text
    assert "against a row inserted, a row deleted or a label changed: 3 rows (60 %)" in text
    assert "a row changed in any way 2" in text
    assert "accuracy" not in make(labelled=False, name="x").summary()


def test_what_changes_count():
    tolerated = {row["change"]: row["tolerated"] for row in cost_rows(GENERAL, 9)}
    assert tolerated["a row changed in any way"] == "4" and tolerated["a label changed"] == "9"
    assert {row["tolerated"] for row in cost_rows(GENERAL, -1)} == {"none"}
    assert one_change({"flip": 2}) == "one touched cell"


def test_what_is_promised_follows_the_threat():
    doc = {"threat": {"name": "general"}, "covers": "inputs"}
    assert not any("key" in line for line in promised(doc) + not_promised(doc))
    flips = {"threat": {"name": "label flip"}, "covers": "inputs"}
    assert any("inputs that were inserted" in line for line in not_promised(flips))
    keys = {"threat": {"name": "keys"}, "covers": "key column"}
    assert any("corrupted key" in line for line in promised(keys))
    assert any("write keys at will" in line for line in not_promised(keys))


def test_a_run_off_says_that_fewer_votes_can_win():
    assert "in the second the class with fewer" in make(rule="run_off").html()
    assert "in the second the class with fewer" not in make().html()


def test_all_files_or_none(tmp_path, monkeypatch):
    make().write(tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == [
        "certificate.html", "certificate.json", "predictions.parquet",
    ]  # fmt: skip
    table = pq.read_table(tmp_path / "out" / "predictions.parquet")
    assert table["label"].to_pylist() == [0, 1, 2, None, None]
    assert not table.schema.field("radius").nullable
    with pytest.raises(ValueError, match="an earlier report"):
        make().write(tmp_path / "out")

    def broken(*paths):
        raise OSError(5, "Input/output error")

    report = make()
    monkeypatch.setattr("os.rename", broken)
    with pytest.raises(ValueError, match="cannot be written"):
        report.write(tmp_path / "other")
    assert sorted(os.listdir(tmp_path)) == ["out"]


@pytest.mark.parametrize(
    ("place", "value"),
    [("median", -2), ("scheme", "x"), ("manifest_digest", "x"), ("certified", -1), ("k", 0)],
)
def test_the_schema_refuses(place, value):
    doc = make().document
    doc[place] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(doc, load_certificate_schema())


def test_a_large_page_stays_small():
    page = make(rows=24).html()
    assert len(page.encode()) < 200_000
