"""User detectors by entry point: found, loaded only when asked for, and never believed blindly."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from jaxpoison._check import UsageError
from jaxpoison._types import Scores
from jaxpoison.detect import registry

MODULE = """
raise_at_import = {fails}
if raise_at_import:
    raise OSError("no licence file")
class Good:
    min_rows = 3
    def score(self, stream, *, key):
        return None
class NoRows:
    def score(self, stream, *, key):
        return None
class NoScore:
    min_rows = 3
class NoKey:
    min_rows = 3
    def score(self, stream):
        return None
class Greedy:
    min_rows = 0
    score = Good.score
class Needy:
    def __init__(self, rank):
        self.min_rows = rank
ready = Good()
"""


@pytest.fixture
def offered(tmp_path, monkeypatch):
    """Installs detectors of two modules, one of which does not import."""
    for name, fails in (("jp_fine", False), ("jp_broken", True)):
        (tmp_path / f"{name}.py").write_text(MODULE.format(fails=fails))
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        EntryPoint(name, value, registry.GROUP)
        for name, value in {
            "mine": "jp_fine:Good", "ready": "jp_fine:ready", "rowless": "jp_fine:NoRows",
            "scoreless": "jp_fine:NoScore", "keyless": "jp_fine:NoKey", "greedy": "jp_fine:Greedy",
            "needy": "jp_fine:Needy", "absent": "jp_fine:Nothing", "broken": "jp_broken:Good",
            "gone": "jp_missing:Good",
        }.items()
    ]  # fmt: skip
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    yield points
    for name in ("jp_fine", "jp_broken"):
        sys.modules.pop(name, None)


def test_asking_what_there_is_imports_nothing(offered):
    assert list(registry.available()) == sorted(point.name for point in offered)
    assert "jp_fine" not in sys.modules


def test_installed_metadata_is_read(tmp_path, monkeypatch):
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\nfrom_disk = mine.module:D\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert registry.available()["from_disk"].value == "mine.module:D"
    with pytest.raises(UsageError, match=r"mine\.module:D of mine does not load"):
        registry.load("from_disk")


@pytest.mark.parametrize("name", ["mine", "ready"])
def test_classes_and_values_are_loaded(offered, name):
    assert registry.load(name).min_rows == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other", r"no detector named 'other'.*there: absent, broken"),
        ("rowless", r"'rowless': jp_fine:NoRows is NoRows, which has no min_rows"),
        ("scoreless", r"NoScore, which has no method score"),
        ("keyless", r"NoKey, which has a score that can not be called as score\(stream, key=key\)"),
        ("greedy", r"min_rows 0, not a number of rows from 1"),
        ("needy", r"jp_fine:Needy does not load: TypeError"),
        ("absent", r"jp_fine:Nothing does not load: AttributeError"),
        ("broken", r"jp_broken:Good does not load: OSError: no licence file"),
        ("gone", r"jp_missing:Good does not load: ModuleNotFoundError"),
    ],
)
def test_what_is_no_detector_is_named(offered, name, message):
    with pytest.raises(UsageError, match=message):
        registry.load(name)


def test_two_packages_with_one_name(offered, monkeypatch):
    both = [*offered, EntryPoint("mine", "jp_fine:ready", registry.GROUP)]
    monkeypatch.setattr(registry, "entry_points", lambda group: both)
    with pytest.raises(UsageError, match=r"two packages offer a detector named 'mine'"):
        registry.available()
    monkeypatch.setattr(registry, "entry_points", lambda group: [*offered, offered[0]])
    assert "mine" in registry.available()  # the same one seen twice on the path is no conflict


def scores(**change):
    parts = {
        "values": np.arange(4.0), "statistic": [1, 2.0], "null": np.zeros((2, 3)),
        "candidates": None, "info": None,
    }  # fmt: skip
    return Scores(**{**parts, **change})


def test_good_scores_get_the_types_of_the_contract():
    out = registry.checked(scores(candidates=[True, False, True, True]), 4, 2, "mine")
    assert out.values.dtype == np.float32 and out.statistic.dtype == np.float64
    assert out.null.dtype == np.float64 and out.candidates.dtype == np.bool_
    np.testing.assert_array_equal(out.values, np.arange(4))
    assert registry.checked(scores(statistic=[np.nan, 1]), 4, 2, "mine").candidates is None


@dataclass
class Half:
    values: np.ndarray


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            None,
            r"returned NoneType without values, statistic.*; return all of values, statistic, null",
        ),
        (Half(np.zeros(4)), "Half without statistic, null, candidates, info"),
        (scores(values=np.zeros(5)), r"values has shape \(5,\).*expected numbers of shape \(4,\)"),
        (scores(values=np.zeros((4, 1))), r"values has shape \(4, 1\)"),
        (scores(values=list("abcd")), "values has shape .4,. and type <U1"),
        (scores(values=[[1], [2, 3], [4], [5]]), "values is no array"),
        (scores(values=[0, 1, np.nan, 3]), r"values\[2\] is nan"),
        (scores(values=[0, 1e300, 1, 3]), r"values\[1\] is inf"),
        (scores(statistic=np.zeros(3)), r"statistic has shape \(3,\).*\(2,\)"),
        (scores(statistic=[0, np.inf]), "statistic holds an infinite number"),
        (scores(null=np.zeros(2)), r"null has shape \(2,\).*\(2, 'any'\)"),
        (scores(candidates=[0, 1, 0, 1]), "candidates has type int64; give bool, or None"),
        (scores(candidates=np.zeros(3, bool)), r"candidates has shape \(3,\)"),
    ],
)
def test_bad_scores_name_the_detector_and_the_part(given, message):
    with pytest.raises(UsageError, match=message) as error:
        registry.checked(given, 4, 2, "mine")
    assert "'mine'" in str(error.value)
