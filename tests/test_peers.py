"""What benchmarks/peers.py makes of other tools' answers; the tools themselves are not needed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    held = {name: sys.modules.pop(name, None) for name in ("common", "peer_tools", "peers")}
    yield importlib.import_module("peers")
    for name, module in held.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


@pytest.fixture
def given(peers):
    """Three classes far from 0; the last tenth of the rows is planted, the row before is cover."""
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    x = rng.normal(size=(300, 8)) * np.arange(8, 0, -1) + 20.0 * (y[:, None] + 1)
    truth = np.arange(300) >= 270
    judged = np.arange(300) != 269
    return peers.Given(x, y, x.astype(np.float32), np.zeros(0), truth, judged, 0, {})


def test_ranks_leave_cover_rows_out_and_flags_count_them(peers, given):
    scores = given.truth.astype(float)
    scores[269] = 2.0  # a cover row at the top
    flags = scores > 0
    out = peers.judged(peers.Answer(scores, flags), given)
    assert out["AUROC"] == 1.0 and out["flagged of the poisoned"] == 1.0
    assert out["flagged of the others"] == pytest.approx(1 / 270, abs=1e-4)


def test_clean_data_have_flags_only(peers, given):
    clean = given._replace(truth=np.zeros(300, np.bool_))
    flags = np.arange(300) < 30
    assert peers.judged(peers.Answer(np.zeros(300), flags), clean) == {"flagged of the others": 0.1}
    assert peers.judged(peers.Answer(np.zeros(300)), clean) == {}


def test_centred_rows_have_no_class_means(given):
    means = [given.centred[given.y == c].mean(axis=0) for c in range(3)]
    np.testing.assert_allclose(means, 0.0, atol=1e-5)


def test_a_tool_that_is_not_installed_says_so(peers, given, monkeypatch):
    tools = sys.modules["peer_tools"]

    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(tools, "import_module", absent)
    monkeypatch.setattr(peers, "CONTENDERS", [peers.OURS["spectral"], peers.ART["spectral"]])
    ours, art = peers.run(given, [""])
    assert 0 <= ours["AUROC"] <= 1 and ours["s"] >= 0
    assert art["AUROC"].startswith("not installed (No module named 'art.defences") and not art["s"]


def test_our_spectral_scores_are_squares_of_centred_projections(peers, given):
    """What the speed table calls the same; ART's own formula, in float64, on rows with means."""

    def projections(x):
        out = np.zeros(len(x))
        for c in range(3):
            rows = x[given.y == c].astype(np.float64)
            first = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[2][0]
            out[given.y == c] = np.abs(rows @ first)
        return out

    ours = peers.OURS["spectral"].make(given)()
    told = peers._same_projections(ours, peers.Answer(projections(given.centred)), given)
    assert float(told.rsplit(" ", 1)[1]) < 1e-4
    told = peers._same_projections(ours, peers.Answer(projections(given.features)), given)
    assert float(told.rsplit(" ", 1)[1]) > 0.1


def test_margins_are_positive_on_the_side_of_the_smaller_cluster(peers):
    tools = sys.modules["peer_tools"]
    y = np.array([0, 1, 0, 0, 1, 1])
    made = SimpleNamespace(
        clusters_by_class=[np.array([0, 0, 1]), np.array([1, 0, 1])],
        red_activations_by_class=[np.array([[0.0], [1.0], [9.0]]), np.array([[5.0], [0.0], [5.0]])],
    )
    np.testing.assert_array_equal(tools._margins(made, y) > 0, [0, 0, 0, 1, 1, 0])


def test_equal_clusters_have_equal_losses(peers, given):
    scores = np.where(given.features[:, 0] > 40, 1.0, -1.0)
    told = peers._same_clusters(peers.Answer(scores), peers.Answer(scores), given)
    assert told.startswith("100.0% of rows alike") and told.endswith("1.0000")
