"""The names of findings: by what their rows share, and by whether they differ from others."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from sklearn.datasets import load_digits

from engine_data import stream_of
from group_data import finding
from jaxpoison import scan
from jaxpoison.attacks import poison
from jaxpoison.calibrate import kind_of_dirty, kind_of_shift
from jaxpoison.calibrate import verdict as judging
from jaxpoison.detect.common_shift import FEWEST
from jaxpoison.evaluate import planting, sets
from jaxpoison.evaluate.suites import load_suite
from jaxpoison.scanning import naming
from jaxpoison.scanning.naming import named
from test_common_shift import rows_with
from test_distinct import opinion_of, planted

NAN = float("nan")


def test_kind_of_shift():
    share, spread = judging._IN_COMMON, judging._EXACT
    assert kind_of_shift(share, 9.0) == kind_of_shift(0.0, spread) == "clean_label"
    assert kind_of_shift(0.99 * share, 1.01 * spread) == "targeted"
    assert kind_of_shift(0.0, float("inf")) == "targeted"


@pytest.mark.parametrize("kind", ["backdoor", "subpopulation", "label_flip"])
def test_kind_of_dirty(kind):
    low, high, part = judging._INDISTINCT, judging._DISTINCT, judging._DISTINCT_PART
    for close in (1.0, NAN):
        name = partial(kind_of_dirty, closeness=close)
        assert name(kind, None, distinctness=low) == "label_flip"
        assert name(kind, 2, distinctness=0.3) == "label_flip"
        assert name(kind, None, distinctness=1.01 * low) == kind
        assert name(kind, 2, distinctness=0.99 * part) == kind
        assert name(kind, None, distinctness=NAN) == kind
        trigger = "subpopulation" if kind == "subpopulation" else "backdoor"
        assert name(kind, None, distinctness=high) == name(kind, 2, distinctness=part) == trigger


def test_kind_of_copies():
    near, far = judging._COPIED, judging._NOT_COPIED
    for kind in ("backdoor", "subpopulation", "label_flip", "duplicates"):
        assert kind_of_dirty(kind, None, near, 0.3) == "duplicates"
    for close in (1.01 * near, far, NAN):
        assert kind_of_dirty("duplicates", None, close, 0.3) == "duplicates"
    assert kind_of_dirty("duplicates", None, 1.01 * far, 0.8) == "backdoor"
    assert kind_of_dirty("duplicates", None, 1.01 * far, 0.3) == "label_flip"


# Clean labels


def classes(share, few=30):
    """Two classes; the first rows of class 1 are set apart."""
    x, others = rows_with(share, r=few)
    rest = np.random.default_rng(5).normal(size=(100, x.shape[1]))
    labels = np.repeat([1, 0], [len(x) + len(others), len(rest)])
    return stream_of(np.concatenate([x, others, rest]).astype(np.float32), labels), np.arange(few)


@pytest.mark.parametrize(("share", "kind"), [(1.0, "clean_label"), (0.3, "targeted")])
def test_clean_labels(share, kind):
    stream, rows = classes(share)
    given = finding(1, rows, "clean_label"), finding(0, [450, 451])
    out = named(given, stream, None)
    assert [each.kind for each in out] == [kind, "backdoor"]
    assert all((a.rows == b.rows).all() for a, b in zip(given, out, strict=True))
    lone = finding(1, rows, "clean_label", confirmed=False)
    assert named((lone,), stream, None)[0].kind == kind


def test_too_few_rows_keep_their_name():
    stream, rows = classes(0.3)
    few = finding(1, rows[: FEWEST - 1], "clean_label")
    assert named((few,), stream, None)[0].kind == "clean_label"
    alone = np.flatnonzero(stream.labels == 1)[FEWEST - 1 :]
    assert named((finding(1, alone, "clean_label"),), stream, None)[0].kind == "clean_label"


# Dirty labels


@pytest.mark.parametrize("kind", ["backdoor", "subpopulation", "label_flip"])
@pytest.mark.parametrize("shift", [0.0, 8.0])
def test_dirty_labels(kind, shift):
    phi, labels, honest, rows = planted(shift)
    stream = stream_of(phi, labels)
    opinion = opinion_of(phi, honest, labels != honest)
    (out,) = named((finding(0, rows, kind),), stream, opinion)
    assert out.kind == (kind_of_dirty(kind, None, 1.0, 1.0) if shift else "label_flip")
    assert named((finding(0, rows, kind),), stream, None)[0].kind == kind


@pytest.mark.parametrize("kind", ["backdoor", "duplicates"])
def test_copies(kind):
    phi, labels, honest, rows = planted(0.0)
    phi[rows[1:]] = phi[rows[0]] + 0.01 * np.random.default_rng(2).normal(size=phi[1:41].shape)[1:]
    opinion = opinion_of(phi, honest, labels != honest)
    (out,) = named((finding(0, rows, kind),), stream_of(phi, labels), opinion)
    assert out.kind == "duplicates"


def test_what_is_no_copy_is_not_called_so():
    phi, labels, honest, rows = planted(0.0)
    opinion = opinion_of(phi, honest, labels != honest)
    (out,) = named((finding(0, rows, "duplicates"),), stream_of(phi, labels), opinion)
    assert out.kind == "label_flip"


def test_large_rows_are_looked_at_in_part(monkeypatch):
    monkeypatch.setattr(naming, "_MOST_BYTES", 10)
    phi, labels, honest, rows = planted(0.0)
    opinion = opinion_of(phi, honest, labels != honest)
    stream, taken = stream_of(phi, labels), []
    monkeypatch.setattr(type(stream), "take", lambda self, rows: taken.append(rows) or phi[rows])
    assert named((finding(0, rows),), stream, opinion)[0].kind == "label_flip"
    assert len(taken) == 1 and len(taken[0]) <= 4 * FEWEST


def test_features_are_made_only_where_a_name_hangs_on_them():
    phi, labels, honest, rows = planted(0.0)
    stream = stream_of(phi, labels)
    asked = []
    opinion = opinion_of(phi, honest, labels != honest)
    opinion = opinion._replace(
        space=opinion.space._replace(features=lambda: asked.append(1) or phi)
    )
    assert named((), stream, opinion) == ()
    named((finding(0, rows, "clean_label"),), stream, opinion)
    assert not asked
    named((finding(0, rows[:20]), finding(0, rows[20:])), stream, opinion)
    assert len(asked) == 1


def test_no_more_than_so_many_findings_are_looked_at(monkeypatch):
    monkeypatch.setattr(naming, "_MOST_FINDINGS", 1)
    phi, labels, honest, rows = planted(0.0)
    opinion = opinion_of(phi, honest, labels != honest)
    given = finding(0, rows[:20]), finding(0, rows[20:])
    out = named(given, stream_of(phi, labels), opinion)
    assert [each.kind for each in out] == ["label_flip", "backdoor"]


# Scans


def digits():
    bunch = load_digits()
    return bunch.images.astype(np.uint8), bunch.target.astype(np.int64)


def scanned(name, **options):
    made = poison(name, *digits(), seed=0, **options)
    flat = made.x.reshape(len(made.x), -1).astype(np.float32)
    report = scan(made.x, made.y, features=flat, detectors=("labels", "mixture", "neighbours"))
    return report.report["suspected_attacks"][0], made


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("flip_targeted", {"rate": 0.05, "target": 3}, marks=pytest.mark.slow),
        ("patch_source_specific", {"rate": 0.03, "target": 3, "source": 1}),
        ("patch_roaming", {"rate": 0.08, "target": 3}),
    ],
)
def test_a_trigger_is_told_from_a_changed_label(name, options):
    found, made = scanned(name, **options)
    assert found["kind"] == made.kind and found["target_class"] == made.target


@pytest.mark.slow
@pytest.mark.parametrize("name", ["feature collision 1 %", "bullseye polytope 1 %"])
def test_targeted_poison(name):
    suite = load_suite("full")
    spec = next(each for each in suite.sets if each.name == "digits")
    case = next(each for each in suite.cases if each.name == name)
    made, _ = planting.plant(case, sets.load(spec, seed=55), seed=55)
    report = scan(made.x, made.y, detectors=["whitening"], seed=55)
    (found,) = report.report["suspected_attacks"]
    assert found["kind"] == made.kind == "targeted" and found["target_class"] == made.target
    assert set(report.suspected_kind[report.flagged]) == {"targeted"}
    assert made.mask[report.flagged].mean() >= 0.9 and report.flagged[made.mask].mean() >= 0.9
