"""The names of findings: by what their rows share, and by whether they differ from others."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from engine_data import stream_of
from group_data import finding
from jaxpoison import scan
from jaxpoison.attacks import poison
from jaxpoison.calibrate import kind_of_dirty, kind_of_shift
from jaxpoison.calibrate import verdict as judging
from jaxpoison.detect import common_shift as shifts
from jaxpoison.detect._inputs import inputs_of
from jaxpoison.evaluate import planting, sets
from jaxpoison.evaluate.suites import load_suite
from jaxpoison.scanning import naming
from jaxpoison.scanning.naming import _CLEAN, named
from jaxpoison.scanning.spaces import input_space, plain_inputs
from jaxpoison.sources import open_source
from jaxpoison.stream import Stream, make_mesh
from scan_data import digits, flat
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


def called(findings, stream, opinion=None):
    flagged = np.zeros(len(stream), np.bool_)
    for found in findings:
        flagged[found.rows] = True
    return named(tuple(findings), flagged, stream, opinion)


def name_of(found, stream, opinion=None):
    (out,) = called([found], stream, opinion)
    assert out.rows is found.rows and out.log_odds is found.log_odds
    return out.kind


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
    assert [each.kind for each in called(given, stream)] == [kind, "backdoor"]
    assert name_of(finding(1, rows, "clean_label", confirmed=False), stream) == kind


def test_too_few_rows_keep_their_name():
    stream, rows = classes(0.3)
    assert name_of(finding(1, rows[: shifts.FEWEST - 1], "clean_label"), stream) == "clean_label"
    alone = np.flatnonzero(stream.labels == 1)[shifts.FEWEST - 1 :]
    assert name_of(finding(1, alone, "clean_label"), stream) == "clean_label"
    assert name_of(finding(1, rows[:0], "clean_label"), stream) == "clean_label"


# Dirty labels


def dirty(shift=0.0, **options):
    phi, labels, honest, rows = planted(shift, **options)
    return stream_of(phi, labels), opinion_of(phi, honest, labels != honest), rows


@pytest.mark.parametrize("kind", ["backdoor", "subpopulation", "label_flip"])
@pytest.mark.parametrize("shift", [0.0, 8.0])
def test_dirty_labels(kind, shift):
    stream, opinion, rows = dirty(shift)
    trigger = "subpopulation" if kind == "subpopulation" else "backdoor"
    assert name_of(finding(0, rows, kind), stream, opinion) == (trigger if shift else "label_flip")
    assert name_of(finding(0, rows, kind), stream) == kind
    for few in (0, 1, 4):
        assert name_of(finding(0, rows[:few], kind), stream, opinion) == kind


@pytest.mark.parametrize("kind", ["backdoor", "duplicates"])
@pytest.mark.parametrize(("bases", "times"), [(1, 40), (200, 5)])
def test_copies(kind, bases, times):
    """Of however many rows, in any order."""
    phi, labels, honest, rows = planted(0.0, r=bases * times, n=3000)
    rng = np.random.default_rng(2)
    rows = rng.permutation(rows)
    first, copies = rows[:bases], rows[bases:]
    of = np.arange(len(copies)) % bases
    phi[copies] = phi[first[of]] + 0.01 * rng.normal(size=(len(copies), phi.shape[1]))
    honest[copies] = honest[first[of]]
    opinion = opinion_of(phi, honest, labels != honest)
    found = finding(0, np.sort(rows), kind)
    assert name_of(found, stream_of(phi, labels), opinion) == "duplicates"


def test_what_is_no_copy_is_not_called_so(monkeypatch):
    stream, opinion, rows = dirty()
    assert name_of(finding(0, rows, "duplicates"), stream, opinion) == "label_flip"
    monkeypatch.setattr(naming, "_MOST_CLOSE", 20)  # of a part of them nothing is said
    assert name_of(finding(0, rows, "duplicates"), stream, opinion) == "duplicates"


@pytest.mark.parametrize(("room", "most"), [(0, 0), (11, 22)])
def test_large_rows_are_looked_at_in_part(room, most, monkeypatch):
    stream, opinion, rows = dirty()
    monkeypatch.setattr(naming, "_MOST_BYTES", 2 * room * stream.take(rows[:1]).nbytes)
    taken, take = [], type(stream).take
    monkeypatch.setattr(
        type(stream), "take", lambda self, rows: taken.append(len(rows)) or take(self, rows)
    )
    assert name_of(finding(0, rows), stream, opinion) == "label_flip"
    assert sum(taken) == most


def test_rows_are_read_once(monkeypatch):
    stream, opinion, rows = dirty()
    own = np.flatnonzero(stream.labels == 1)[:20]
    taken, take = [], type(stream).take
    monkeypatch.setattr(
        type(stream), "take", lambda self, rows: taken.append(rows) or take(self, rows)
    )
    monkeypatch.setattr(naming, "_PART_BYTES", 1)
    out = called([finding(0, rows), finding(1, own, "clean_label")], stream, opinion)
    assert [each.kind for each in out] == ["label_flip", "targeted"]
    assert len(taken) == 1 and (np.diff(taken[0]) > 0).all()


def test_features_are_made_only_where_a_name_hangs_on_them():
    stream, opinion, rows = dirty()
    phi, made = opinion.space.phi, []
    space = opinion.space._replace(features=lambda: made.append(1) or phi)
    opinion = opinion._replace(space=space)
    assert called([], stream, opinion) == ()
    called([finding(0, rows, "clean_label")], stream, opinion)
    assert not made
    called([finding(0, rows[:20]), finding(0, rows[20:])], stream, opinion)
    assert len(made) == 1


@pytest.mark.parametrize(("limit", "kind"), [("_MOST_FINDINGS", None), ("_MOST_CLEAN", _CLEAN)])
def test_no_more_than_so_many_findings_are_looked_at(limit, kind, monkeypatch):
    monkeypatch.setattr(naming, limit, 1)
    stream, opinion, rows = dirty()
    halves = [finding(0, half, kind or "backdoor") for half in (rows[:20], rows[20:])]
    first, second = called(halves, stream, opinion)
    assert first.kind != halves[0].kind and second.kind == halves[1].kind


def test_flagged_rows_are_no_example_of_honest_ones():
    stream, rows = classes(1.0)
    flagged = np.isin(np.arange(len(stream)), rows)
    flagged[stream.labels == 1] = True  # by their q-values, say
    found = finding(1, rows, "clean_label")
    assert named((found,), flagged, stream, None) == (found,)


@pytest.mark.parametrize(("channels", "d"), [(3, 24 * 24 * 3), (9, 1024)])
def test_small_triggers_are_not_spread(channels, d):
    images = np.random.default_rng(0).integers(0, 256, (8, 24, 24, channels)).astype(np.uint8)
    source = open_source(images, np.arange(8) % 2)
    stream = Stream(source, np.arange(8, dtype=np.int32) % 2, 2, make_mesh(1))
    seen = inputs_of(plain_inputs(input_space(stream, source, 0), source), np.arange(8))
    assert seen.shape == (8, d)
    if channels == 3:
        assert np.allclose(seen, images.reshape(8, -1) / 255.0, atol=1e-6)


# Scans


def scanned(name, **options):
    made = poison(name, *digits(), seed=0, **options)
    report = scan(
        made.x, made.y, features=flat(made.x), detectors=("labels", "mixture", "neighbours")
    )
    return report.report["suspected_attacks"][0], made


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("patch_source_specific", {"rate": 0.03, "target": 3, "source": 1}),
        ("patch_roaming", {"rate": 0.08, "target": 3}),
    ],
)
def test_a_trigger_is_told_from_a_changed_label(name, options):
    found, made = scanned(name, **options)
    assert found["kind"] == made.kind and found["target_class"] == made.target


@pytest.mark.slow
def test_targeted_poison():
    suite = load_suite("full")
    spec = next(each for each in suite.sets if each.name == "digits")
    case = next(each for each in suite.cases if each.name == "bullseye polytope 1 %")
    made, _ = planting.plant(case, sets.load(spec, seed=55), seed=55)
    report = scan(made.x, made.y, detectors=["whitening"], seed=55)
    (found,) = report.report["suspected_attacks"]
    assert found["kind"] == made.kind == "targeted" and found["target_class"] == made.target
    assert set(report.suspected_kind[report.flagged]) == {"targeted"}
    assert made.mask[report.flagged].mean() >= 0.9 and report.flagged[made.mask].mean() >= 0.9
