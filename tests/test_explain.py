"""Explanations of one prediction: against retraining, planted flips, hostile names, bad input."""

from __future__ import annotations

import errno
import functools
import json
import os
import re

import jsonschema
import numpy as np
import pytest

import jaxpoison
from head_oracle import compared, left_out, losses_of, minimum
from jaxpoison import explain
from jaxpoison._check import DataError, UsageError
from jaxpoison.cli import explain as command
from jaxpoison.detect import _head
from jaxpoison.report import OutputError, files, load_explanation_schema
from jaxpoison.scanning import explaining
from scan_data import X, Y, broken, digits, flat

HOSTILE = ["<script>alert(1)</script>", "a\u202eb\x1b[31m", '"><img src=x onerror=y>']


@functools.cache
def first(row=17):
    return explain(X, Y, features=X, row=row)


def check_document(doc):
    jsonschema.validate(doc, load_explanation_schema())
    json.loads(json.dumps(doc, allow_nan=False))
    for name, sign in (("helpful", -1), ("harmful", 1)):
        scores = [sign * entry["score"] for entry in doc[name]]
        assert scores == sorted(scores) and all(score < 0 for score in scores)
        assert doc["row"]["index"] not in [entry["index"] for entry in doc[name]]


def test_scores_predict_what_retraining_without_a_row_does():
    x, y = digits()
    x, y, row = flat(x)[:250], y[:250], 5
    found = explain(x, y, features=x, row=row)
    assert found.document["method"]["form"] == "leave-one-out"
    head = _head.fit_head(x, y, 10)  # a head brings features to a unit of its own
    rows = head.rows.astype(np.float64)
    start = head.weights.astype(np.float64)
    weights = minimum(rows, y, len(y), start, head.damping)
    asked = rows[[row]], y[[row]]
    loss = losses_of(*asked, weights)[0]
    assert found.document["row"]["loss"] == pytest.approx(loss, rel=1e-3)
    removed = [*np.argsort(-np.abs(found.scores))[:10], *range(0, 250, 25)]
    changes, _ = left_out([*removed, row], rows, y, weights, head.damping, *asked)
    pearson, slope = compared(found.scores[removed], changes[:-1])
    assert pearson >= 0.99 and abs(slope - 1) <= 0.05
    assert found.document["row"]["self_influence"] == pytest.approx(changes[-1, 0], rel=0.1)


def test_wrong_labels_nearby_are_harmful():
    """Copies of a row, slightly moved, under another label: nothing can say more against it."""
    x, y = digits()
    x, row = flat(x), 40
    near = np.argsort(((x - x[row]) ** 2).sum(axis=1))
    flips = [k for k in near[1:] if y[k] == y[row]][:6]
    right = y[row]
    y[flips] = (right + 1) % 10
    found = explain(x, y, features=x, row=row, top=6)
    harmful = [entry["index"] for entry in found.document["harmful"]]
    assert np.isin(harmful, flips).mean() >= 0.8
    helpful = [entry["label"] for entry in found.document["helpful"]]
    assert np.mean(np.equal(helpful, right)) >= 0.8
    by_class = {entry["label"]: entry for entry in found.document["classes"]}
    assert by_class[int(right)]["score"] > 0 > by_class[int((right + 1) % 10)]["score"]


def test_the_document_and_the_arrays():
    found = first()
    check_document(found.document)
    doc = found.document
    assert doc["row"]["index"] == 17 and doc["row"]["label"] == Y[17]
    assert len(doc["helpful"]) == len(doc["harmful"]) == 8
    assert found.scores.shape == found.index.shape == (600,) and found.scores[17] == 0
    assert doc["helpful"][0]["index"] == found.scores.argmax()
    assert doc["harmful"][0]["index"] == found.scores.argmin()
    total = sum(entry["score"] for entry in doc["classes"])
    assert total == pytest.approx(found.scores.sum(dtype=np.float64), rel=1e-6)
    assert doc["plan"] == {
        "data": "<array>", "labels": "<array>", "features": "<array>", "row": 17, "top": 8,
        "seed": 0, "drop_nonfinite": False,
    }  # fmt: skip
    again = explain(X, Y, features=X, row=17)
    assert np.array_equal(again.scores, found.scores)
    assert without_time(again.html()) == without_time(found.html())


def without_time(page):
    return re.sub(r"[^ ]+ m?s in all, training [^ ]+ m?s", "", page)


def test_row_order():
    order = np.random.default_rng(0).permutation(600)
    turned = explain(X[order], Y[order], features=X[order], row=int(np.flatnonzero(order == 17)[0]))
    scale = np.abs(first().scores).max()
    # the linear systems are solved to 1e-4 of their right-hand sides
    np.testing.assert_allclose(turned.scores, first().scores[order], rtol=1e-3, atol=1e-3 * scale)
    best = [order[entry["index"]] for entry in turned.document["helpful"][:3]]
    assert best == [entry["index"] for entry in first().document["helpful"][:3]]


def test_features_need_no_network_and_a_network_is_trained_else():
    found = explain(X[:300], Y[:300], row=2, top=3, seed=1)
    assert found.document["method"]["space"] == "layer2" and found.document["timing"]["train"] > 0
    assert first().document["method"]["space"] == "features"
    assert first().document["timing"]["train"] == 0
    check_document(found.document)


def test_wide_heads(monkeypatch):
    monkeypatch.setattr(_head, "MAX_CORRECTED", 5)
    plain = explain(X, Y, features=X, row=17)
    assert plain.document["method"]["form"] == "influence"
    check_document(plain.document)
    assert np.corrcoef(plain.scores, first().scores)[0, 1] > 0.97
    assert plain.document["row"]["self_influence"] > 0 == plain.scores[17]
    for module in (_head, explaining):
        monkeypatch.setattr(module, "MAX_SOLVED", 18)
    narrow = explain(X, Y, features=X, row=17)
    assert narrow.document["method"]["features"] == 8
    assert narrow.document["method"]["directions"] == 5
    assert "projected on 5 random directions" in narrow.html()
    check_document(narrow.document)


def test_more_classes_than_a_head_can_have(monkeypatch):
    monkeypatch.setattr(explaining, "MAX_SOLVED", 5)
    with pytest.raises(DataError, match=r"3 classes; .* at most 2"):
        explain(X, Y, features=X, row=17)


def test_files_are_written_together_or_not_at_all(tmp_path, monkeypatch):
    out = tmp_path / "new" / "why"
    assert first().write(out) == out
    assert sorted(os.listdir(out)) == ["explanation.html", "explanation.json"]
    doc = json.loads((out / "explanation.json").read_text(encoding="ascii"))
    assert doc == first().document
    with pytest.raises(UsageError, match="already holds an earlier report"):
        first().write(out)

    def full(*_):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(files, "_move_into_place", full)
    with pytest.raises(OutputError, match="no space left"):
        first().write(tmp_path / "other")
    assert sorted(os.listdir(tmp_path)) == ["new"]


@pytest.mark.parametrize("images", [True, False])
def test_hostile_names_stay_text(images):
    names = np.array(HOSTILE)[Y]
    x = (np.abs(X).repeat(2, axis=1) * 10).astype(np.uint8).reshape(-1, 4, 4) if images else X
    found = explain(x, names, features=X, row=3)
    page, text = found.html(), found.summary()
    assert "<script" not in page and "<img src=x" not in page
    assert "&lt;script&gt;" in page
    for hidden in ("\u202e", "\x1b"):
        assert hidden not in page and hidden not in text
    assert ("data:image/png;base64," in page) == images
    assert ('class="strip"' in page) != images
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", page)  # nothing is loaded
    json.dumps(found.document, ensure_ascii=True).encode("ascii")
    check_document(found.document)


def test_the_page_holds_every_row_it_names():
    doc, page = first().document, first().html()
    for entry in (*doc["helpful"], *doc["harmful"]):
        assert f"#{entry['index']}<" in page
    assert "prefers-color-scheme: dark" in page and page.startswith("<!doctype html>")
    assert page.count("<li") == 1 + 16


def test_rows_are_numbered_as_in_the_input():
    x = broken(np.nan, row=4)
    found = explain(x, Y, features=X, row=17, drop_nonfinite=True)
    check_document(found.document)
    assert found.document["n_dropped"] == 1 and 4 not in found.index
    assert found.document["row"]["index"] == 17 and len(found.scores) == 599
    assert "1 row with values that are not finite" in found.html()
    with pytest.raises(DataError, match="row: 4 holds NaN"):
        explain(x, Y, features=X, row=4, drop_nonfinite=True)
    with pytest.raises(DataError, match="1 of 600 rows hold NaN"):
        explain(x, Y, features=X, row=17)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"row": 600}, DataError, "numbered from 0 to 599"),
        ({"row": -1}, UsageError, "row: -1"),
        ({"row": 1.0}, UsageError, "row: 1.0"),
        ({"row": True}, UsageError, "row: True"),
        ({"row": 1, "top": 0}, UsageError, "top: 0"),
        ({"row": 1, "top": 101}, UsageError, "from 1 to 100"),
        ({"row": 1, "seed": -1}, UsageError, "seed"),
        ({"row": 1, "features": X[:5]}, DataError, "one row of features"),
        ({"row": 1, "budget_mb": 0}, UsageError, "budget_mb"),
    ],
)
def test_arguments_that_make_no_sense(options, kind, words):
    with pytest.raises(kind, match=words):
        explain(X, Y, **{"features": X, **options})


def test_labels_of_one_class():
    with pytest.raises(DataError, match="only one class"):
        explain(X, np.zeros(600, np.int64), features=X, row=0)


def test_public_names():
    assert jaxpoison.explain is explain and "explain" in jaxpoison.__all__
    assert command.MAX_TOP == explaining.MAX_TOP
