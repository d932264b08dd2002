"""The verdict on hand-made groups, and boundaries that are drawn anew."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jaxpoison._types import Exclusion, Refined
from jaxpoison.calibrate import groups as grouping
from jaxpoison.calibrate import redraw
from jaxpoison.calibrate import verdict as judging

FDR = 0.05


def group(target=1, rows=range(20), log_odds=None, separation=30.0, **options):
    rows = np.asarray(list(rows))
    odds = np.full(len(rows), 8.0) if log_odds is None else np.asarray(log_odds, float)
    known = {"detector": "mixture", "space": "input", "z": 9.0, "num_features": 64, **options}
    return grouping.Group(target=target, rows=rows, log_odds=odds, separation=separation, **known)


def poison(n=20, **options):
    """What verification says of relabelled rows of all classes, far from home."""
    said = {
        "num_rows": n, "agreement": 0.02, "expected": 0.95, "log10_p": -30.0, "diversity": 0.95,
        "transplant": 1.0, "home": 3.0, "source": 4, "source_share": 0.3,
    }  # fmt: skip
    return Exclusion(**{**said, **options})


HONEST = poison(agreement=0.9, log10_p=-0.5, diversity=0.3, transplant=1.6, home=1.0)


def decide(groups, checks, num_rows=500, num_classes=10, fdr=FDR):
    found = judging.find(groups, checks, num_classes=num_classes, fdr=fdr)
    return judging.decide(found, num_rows)


def test_nothing_found_is_clean():
    out = decide([], [])
    assert out.verdict == "clean" and out.p_poisoned == 0 and out.findings == ()
    assert out.estimated_rate == 0 and out.expected_fdr == 0
    assert not out.flagged.any() and np.isneginf(out.log_odds).all()


def test_confirmed_group_is_poisoned():
    out = decide([group()], [poison()])
    assert out.verdict == "poisoned" and out.p_poisoned > 0.8
    (found,) = out.findings
    assert found.kind == "backdoor" and found.confirmed and found.source is None
    assert np.flatnonzero(out.flagged).tolist() == list(range(20)) == found.rows.tolist()
    assert (out.log_odds[:20] == 8.0).all() and np.isneginf(out.log_odds[20:]).all()
    assert out.expected_fdr < FDR
    np.testing.assert_allclose(out.estimated_rate, found.confidence * 20 / 500)


def test_honest_group_is_clean():
    out = decide([group(separation=12.0, z=2.0)], [HONEST])
    assert out.verdict == "clean" and not out.flagged.any()


@pytest.mark.parametrize(
    "said",
    [
        {"agreement": 0.95},
        {"log10_p": -0.1},
        {"transplant": 50.0},
        {"agreement": 0.9, "expected": 0.0},
        {"home": 0.5},
    ],
    ids=str,
)
def test_each_part_of_the_evidence_is_needed(said):
    assert decide([group(z=0.0)], [poison()]).verdict == "poisoned"
    assert decide([group(z=0.0)], [poison(**said)]).verdict == "clean"


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ({}, "poisoned"),
        ({"depth": 0.2}, "clean"),
        ({"depth": float("nan")}, "clean"),
        ({"diversity": 0.3}, "clean"),
        ({"expected": 0.2, "agreement": 0.0}, "clean"),
        ({"agreement": 0.3}, "clean"),
        ({"log10_p": -4.0}, "clean"),
        ({"transplant": 1.5}, "clean"),
    ],
    ids=str,
)
def test_rows_deep_in_many_classes_need_not_be_far_from_home(said, verdict):
    """Where classes are many all distances are alike: home says nothing, depth does."""
    near = {"home": 1.1, "depth": 0.9, **said}
    assert decide([group(z=0.0)], [poison(**near)]).verdict == verdict


def test_what_decided_is_named_with_its_own_threshold():
    """A report shows no value short of the threshold beside a verdict that it gave."""
    near = {"home": 1.1, "depth": 0.9}
    mode = group(detector="whitening", separation=20.0)
    trait = group(detector="trait", separation=6.0, depth=0.9)
    cases = [
        (group(), poison(), "distance"),
        (group(), poison(**near), "depth in"),
        (mode, poison(home=1.0), "separation of two modes"),
        (trait, poison(home=1.0), "separation of a trait"),
    ]
    for each, check, name in cases:
        assert grouping.is_confirmed(each, check, 10)
        statistic, value, threshold = grouping.decisive(each, check)
        assert statistic.startswith(name) and value >= threshold
    statistic, value, threshold = grouping.decisive(group(), HONEST)
    assert statistic.startswith("distance") and value < threshold


def test_depth_proves_nothing_of_few_rows_or_features():
    deep = poison(home=1.1, depth=0.9)
    assert decide([group(rows=range(9), z=0.0)], [deep]).verdict == "clean"
    assert decide([group(num_features=12, z=0.0)], [deep]).verdict == "clean"


def test_too_few_rows_prove_nothing():
    few = group(rows=range(grouping.MIN_ROWS - 1), z=0.0)
    assert decide([few], [poison(len(few.rows))]).verdict == "clean"


def test_source_is_named_when_one_class_dominates():
    single = poison(source=4, source_share=0.95, transplant=1.0)
    assert decide([group()], [single]).findings[0].source == 4
    two = decide([group()], [poison(source=0, source_share=1.0)], num_classes=2)
    assert two.verdict == "poisoned" and two.findings[0].source == 0


def test_a_far_cluster_is_suspicious_without_confirmation():
    far = group(rows=range(60), separation=1e4, z=100.0, num_features=512)
    out = decide([far], [HONEST])
    assert out.verdict == "suspicious" and out.findings[0].kind == "clean_label"
    assert not out.findings[0].confirmed and 0 < out.p_poisoned < 1
    both = decide([far, group(target=2, rows=range(100, 130))], [HONEST, poison(30)])
    assert both.verdict == "poisoned" and len(both.findings) == 2


def test_false_discovery_rate_keeps_the_surest_rows():
    odds = np.r_[np.full(20, 6.0), np.full(30, -1.0)]
    mixed = group(rows=range(50), log_odds=odds)
    strict = decide([mixed], [poison(50)])
    assert set(range(20)) <= set(np.flatnonzero(strict.flagged)) and strict.flagged.sum() < 25
    assert strict.expected_fdr <= FDR
    loose = decide([mixed], [poison(50)], fdr=0.9)
    assert loose.flagged.sum() == 50 and loose.expected_fdr > FDR
    last = 0
    for fdr in (0.001, 0.01, 0.1, 0.3, 0.5, 0.9):
        flagged = decide([mixed], [poison(50)], fdr=fdr).flagged.sum()
        assert flagged >= last
        last = flagged


def test_two_classes_are_two_findings():
    groups = [group(target=5, rows=range(30)), group(target=2, rows=range(100, 140))]
    out = decide(groups, [poison(30), poison(40, agreement=0.0)])
    assert {f.target for f in out.findings} == {2, 5}
    confidences = [f.confidence for f in out.findings]
    assert confidences == sorted(confidences, reverse=True)
    np.testing.assert_allclose(out.p_poisoned, 1 - np.prod([1 - c for c in confidences]))
    assert out.flagged.sum() == 70


def test_groups_of_one_class_are_joined():
    groups = [
        group(rows=range(30), log_odds=np.linspace(4, 9, 30)),
        group(rows=range(10, 40), log_odds=np.linspace(9, 4, 30), space="layer2"),
    ]
    out = decide(groups, [poison(30), poison(30)])
    assert len(out.findings) == 1 and out.flagged.sum() == 40
    assert out.findings[0].groups == (0, 1)
    assert out.log_odds[10] == 9.0  # the larger of the two odds
    support = out.findings[0].support
    assert (support[10:30] == 1.0).all() and (support[[0, 39]] == 0.5).all()


def test_order_of_groups_does_not_matter():
    groups = [group(target=5, rows=range(30)), group(target=2, rows=range(100, 140)),
              group(target=5, rows=range(20, 60), separation=40.0)]  # fmt: skip
    checks = [poison(30), HONEST, poison(40)]
    one, two = decide(groups, checks), decide(groups[::-1], checks[::-1])
    assert np.array_equal(one.flagged, two.flagged) and one.verdict == two.verdict
    assert one.p_poisoned == two.p_poisoned and np.array_equal(one.log_odds, two.log_odds)


def redrawn(**options):
    (found,) = decide([group()], [poison()]).findings
    rows = np.arange(5, 105)  # the class; of the finding's rows it holds 5..19
    found = found._replace(rows=found.rows[5:], log_odds=found.log_odds[5:],
                           support=found.support[5:])  # fmt: skip
    log_odds = np.where((rows >= 12) & (rows < 30), 12.0, -7.0)
    known = {"separation": 1e3, "overlap": 1.0, **options}
    return found, redraw(found, Refined(rows, log_odds, **known), FDR)


def test_redrawn_boundary():
    before, after = redrawn()
    # rows that all groups hold stay, whatever the new boundary says of them
    assert after.rows.tolist() == list(range(5, 30)) and (after.log_odds > 0).all()
    assert sorted([*after.rows, *after.near]) == list(range(5, 105))
    assert (after.near_odds <= 0).all() and after.target == before.target
    verdict = judging.decide([after], 200)
    assert np.flatnonzero(verdict.flagged).tolist() == after.rows.tolist()
    assert np.isfinite(verdict.log_odds[5:105]).all() and np.isneginf(verdict.log_odds[:5]).all()


@pytest.mark.parametrize("doubt", [{"separation": 0.1}, {"overlap": 0.01}], ids=str)
def test_a_boundary_in_doubt_is_not_redrawn(doubt):
    before, after = redrawn(**doubt)
    assert after is before


def test_values_are_plain_numbers():
    second = group(target=3, rows=range(40, 70), log_odds=None)
    out = decide([group(), second], [poison(), poison(log10_p=-300.0)])
    found = out.findings[0]
    json.dumps([out.verdict, out.p_poisoned, out.estimated_rate, out.expected_fdr,
                found.kind, found.confidence, found.source, found.confirmed])  # fmt: skip
    assert 0 <= out.p_poisoned <= 1
