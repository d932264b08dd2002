"""Which detectors a scan runs, and those of other packages."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxpoison import scan
from jaxpoison._check import UsageError
from jaxpoison._types import DEFAULT_DETECTORS, DETECTOR_NAMES, NEEDS, OF_GRADIENTS, Scores
from jaxpoison.detect import registry
from jaxpoison.scanning import Method, ScanPlan, forecast
from scan_data import OF_TRAINING, check_consistent, digits, quick, small


def test_all_detectors():
    x, y = small()
    report = quick(x, y, detectors=["all"])
    assert list(report.report["detectors"]) == list(DETECTOR_NAMES)
    silent = {name for name, run in report.report["detectors"].items() if not run["ran"]}
    need_a_network = {*OF_TRAINING, "strip", "gradient_direction", "gradient_norm"}
    assert silent == need_a_network | set(NEEDS)
    assert "only features" in report.report["detectors"]["strip"]["reason"]
    assert report.report["plan"]["method"]["detectors"] == ["all"]
    check_consistent(report)


@pytest.mark.slow
def test_all_detectors_with_a_network():
    report = scan(*digits(), detectors=["all"])
    assert set(report.scores) == set(DETECTOR_NAMES) - set(NEEDS)
    assert report.verdict == "clean"
    check_consistent(report)


def test_gradients_run_unnamed_only_where_a_network_is_trained():
    x, y = small()
    runs = quick(x, y, detectors=None).report["detectors"]
    for name in OF_GRADIENTS:
        assert not runs[name]["ran"] and "no network was trained" in runs[name]["reason"]
    assert "name it" in runs["self_influence"]["reason"]
    named = quick(x, y, detectors=["mixture", "self_influence"]).report["detectors"]
    assert named["self_influence"]["ran"]


def test_which_detectors_a_method_names():
    assert Method().names == DEFAULT_DETECTORS
    assert Method(detectors=("mixture", "spectral", "mixture")).names == ("spectral", "mixture")
    named = Method(detectors=("user:b", "all", "user:a", "user:b", "strip")).names
    assert named == (*DETECTOR_NAMES, "user:b", "user:a")


def test_a_forecast_knows_which_detectors_are_there():
    plan = ScanPlan("sklearn:wine", method=Method(detectors=("spectral", "user:nowhere")))
    with pytest.raises(UsageError, match="nowhere"):
        forecast(plan)


@dataclasses.dataclass(frozen=True)
class Mine:
    """A detector of another package: how large the first feature is."""

    min_rows: int = 5
    fault: str = ""

    def score(self, stream, *, key):
        if self.fault == "raises":
            raise RuntimeError("no licence")
        values = stream.take(np.arange(len(stream)))[:, 0].astype(np.float64)
        if self.fault == "nan":
            values[3] = np.nan
        loud = np.full(stream.num_classes, 1e9)
        return Scores(values, loud, np.zeros((len(loud), 0)), values > 0, ())


@pytest.fixture
def offered(monkeypatch):
    """Offers a detector under the name "mine"."""
    given = {"mine": Mine()}
    monkeypatch.setattr(registry, "load", lambda name: given[name])
    return given


def test_a_detector_of_another_package_ranks_rows(offered):
    x, y = small()
    report = quick(x, y, detectors=["mixture", "user:mine"])
    assert list(report.scores) == ["mixture", "user:mine"]
    assert report.report["detectors"]["user:mine"]["ran"]
    assert report.report["detectors"]["user:mine"]["reason"] == "looked at input"
    order = np.argsort(x[y == 1, 0])
    assert (np.diff(report.scores["user:mine"][y == 1][order]) >= 0).all()
    alone = quick(x, y)  # its statistic opens no gate
    assert np.array_equal(report.flagged, alone.flagged)
    assert report.report["suspected_attacks"] == alone.report["suspected_attacks"]
    check_consistent(report)


@pytest.mark.parametrize(
    ("fault", "words"),
    [("raises", ["user:mine", "RuntimeError: no licence"]), ("nan", ["user:mine", "values[3]"])],
)
def test_a_failing_detector_of_another_package_is_named(offered, fault, words):
    offered["mine"] = Mine(fault=fault)
    with pytest.raises(UsageError) as caught:
        quick(*small(), detectors=["user:mine"])
    assert all(word in str(caught.value) for word in words)
