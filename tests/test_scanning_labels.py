"""Scans of wrong labels, of labels that mean nothing, and of poison that keeps its labels."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from group_data import finding
from jaxpoison import scan
from jaxpoison.attacks import poison
from jaxpoison.calibrate.labels import LabelAttack
from jaxpoison.scanning import labelling
from jaxpoison.sources import open_source
from jaxpoison.sources.bundled import FASHION_MNIST
from scan_data import UNTRAINED

TARGET = 3
COPIES = (
    ("flood_duplicates", ("duplicates", "labels")),
    {"rate": 60 / 1797, "target": TARGET, "seeds": 3},
)


def digits():
    bunch = load_digits()
    return bunch.images.astype(np.uint8), bunch.target.astype(np.int64)


def flat(x):
    return x.reshape(len(x), -1).astype(np.float32)


@cache
def scanned(name, detectors=UNTRAINED, **options):
    """A scan of digits with an attack of this name, without training."""
    made = poison(name, *digits(), seed=0, **options)
    return scan(made.x, made.y, features=flat(made.x), detectors=detectors), made


def attacks_of(report):
    return report.report["suspected_attacks"]


def check_clean(report):
    assert report.verdict == "clean" and not report.flagged.any()
    assert attacks_of(report) == [] and report.report["p_poisoned"] == 0
    assert np.isfinite(report.suspicion).all()


@pytest.mark.slow
def test_uniform_flips():
    report, made = scanned("flip_uniform", rate=0.15)
    assert report.verdict == "poisoned"
    assert {a["kind"] for a in attacks_of(report)} == {"label_flip"}
    assert {a["source_class"] for a in attacks_of(report)} == {None}
    assert len(attacks_of(report)) >= 8
    assert roc_auc_score(made.mask, report.suspicion) >= 0.98
    assert made.mask[report.flagged].mean() >= 0.9 and report.flagged[made.mask].mean() >= 0.4
    assert abs(report.report["estimated_rate"] - report.flagged.mean()) < 0.02


@pytest.mark.parametrize(
    ("share", "is_drawn", "num_rows", "kind"),
    [
        (0.2, True, 60, "label_flip"),
        (0.2, True, 130, "backdoor"),  # more than wrong labels explain
        (0.2, False, 130, "label_flip"),  # a cut takes as many rows as it takes
        (0.0, False, 130, "backdoor"),
    ],
)
def test_what_wrong_labels_all_over_explain(share, is_drawn, num_rows, kind):
    rows = np.arange(num_rows)
    found = finding(0, rows, log_odds=1.0)
    attack = LabelAttack(share, np.zeros(5, np.bool_), np.zeros((5, 5), np.bool_))
    said = labelling._by_labels(found, is_drawn, None, np.repeat(np.arange(5), 300), attack)
    assert said.kind == kind and np.array_equal(said.rows, rows)


def test_labels_that_mean_nothing():
    """Of no row it can be said that its label is wrong where no label can be learnt."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1200, 12)).astype(np.float32)
    check_clean(scan(x, rng.integers(0, 4, 1200), features=x, detectors=("labels", "neighbours")))


def test_two_names_of_one_class():
    """Half of the rows of either are taken for the other, deep inside, and none is wrong."""
    rng = np.random.default_rng(0)
    y = np.arange(1500) % 5
    means = 3.0 * rng.normal(size=(5, 12))
    means[4] = means[3]
    x = (means[y] + rng.normal(size=(1500, 12))).astype(np.float32)
    report = scan(x, y, features=x, detectors=("labels", "neighbours"))
    check_clean(report)
    same = y >= 3
    assert np.median(report.suspicion[same]) > np.quantile(report.suspicion[~same], 0.9)


def test_copies_under_another_label():
    report, made = scanned(*COPIES[0], **COPIES[1])
    assert made.mask.sum() == 60 and report.verdict == "poisoned"
    (found,) = attacks_of(report)
    assert found["kind"] == "duplicates" and found["target_class"] == TARGET
    assert found["evidence"] and made.mask[report.flagged].mean() >= 0.9


def test_every_copy_is_flagged():
    report, made = scanned(*COPIES[0], **COPIES[1])
    assert report.flagged[made.mask].mean() >= 0.9


def test_a_sinusoid_on_half_of_a_class():
    report, made = scanned("sig", ("whitening", "labels"), rate=0.5, target=TARGET)
    assert report.verdict == "poisoned" and (made.y == made.y_true).all()
    (found,) = attacks_of(report)
    assert found["kind"] == "clean_label" and found["target_class"] == TARGET
    assert found["source_class"] is None
    assert report.flagged[made.mask].mean() >= 0.9 and made.mask[report.flagged].mean() >= 0.9


def test_one_class_under_the_label_of_another():
    """Rows of one class under another label, and nothing else, lead the ranking."""
    report, made = scanned("flip_pair", ("labels", "neighbours"), rate=0.03, source=0, target=6)
    assert report.verdict == "poisoned"
    (found,) = attacks_of(report)
    assert found["kind"] == "label_flip"
    assert (found["target_class"], found["source_class"]) == (6, 0)
    assert roc_auc_score(made.mask, report.suspicion) >= 0.99
    assert made.mask[report.flagged].mean() >= 0.9


@pytest.mark.slow
@pytest.mark.skipif(not Path(FASHION_MNIST).is_dir(), reason="dataset-fashion-mnist is missing")
@pytest.mark.parametrize("share", [0.0, 0.05])
def test_flips_where_classes_overlap(share):
    """Images of four pixels: a third of the honest rows is taken for another class, or more."""
    source = open_source(f"idx:{FASHION_MNIST}#train")
    block = source.read(0, 12_000)
    x = block["x"].reshape(-1, 2, 14, 2, 14).mean(axis=(2, 4)).reshape(-1, 4).astype(np.float32)
    honest = block["y"].astype(np.int64)
    rng = np.random.default_rng(1)
    rows = rng.permutation(len(honest))[: round(share * len(honest))]
    y = honest.copy()
    y[rows] = (y[rows] + rng.integers(1, 10, len(rows))) % 10
    report = scan(x, y, features=x, detectors=("labels", "neighbours"))
    if not share:
        check_clean(report)
        return
    assert report.verdict == "poisoned"
    assert {a["kind"] for a in attacks_of(report)} == {"label_flip"}
    wrong = (y != honest)[report.flagged]
    assert wrong.mean() >= 0.85 and wrong.sum() >= 100
    assert roc_auc_score(y != honest, report.suspicion) >= 0.85
