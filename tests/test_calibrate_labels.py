"""Which label errors are an attack: counts, gates and findings on hand-made depths."""

from __future__ import annotations

import numpy as np
import pytest

from flow_data import (
    CLASSES,
    FDR,
    ROWS,
    attack_of,
    carried,
    depths,
    findings_of,
    is_open,
    seen_of,
    to_pair,
    to_target,
)
from jaxpoison.calibrate import flow, label_attack, label_findings
from jaxpoison.calibrate import labels as labelling
from jaxpoison.calibrate.groups import MIN_ROWS

# Counts


def test_rows_are_counted_by_pair_and_depth():
    depth = np.array([-3.0, 0.0, 0.1, 0.25, 0.3, 0.6, 1.0, 1.01, 9.0, 0.2])
    other = np.array([1, 1, 1, 1, 1, 1, 1, 1, 2, 0])
    labels = np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 2])
    seen = flow(depth, other, labels, 3)
    assert seen.pairs.shape == (3, 3, 5) and seen.counts.tolist() == [9, 0, 1]
    assert seen.pairs[0, 1].tolist() == [2, 1, 1, 1, 1]  # a depth belongs to the cell it ends
    assert seen.pairs[0, 2].tolist() == [0, 0, 0, 0, 1]
    assert seen.pairs[2, 0].tolist() == [1, 0, 0, 0, 0]
    assert seen.pairs.sum() == 8  # rows on their own side are none


def test_counts_do_not_depend_on_row_order():
    made = depths(flips=0.1)
    order = np.random.default_rng(1).permutation(len(made[0]))
    one, two = seen_of(made), flow(*(each[order] for each in made[:3]), CLASSES)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.05, 0.15, 0.3])
def test_share_of_wrong_labels_spread_evenly(seed, share):
    seen = seen_of(depths(seed, flips=share))
    # twice the deep ones of half of the pairs
    sigma = share * np.sqrt(4.0 / (share * CLASSES * ROWS))
    assert abs(seen.uniform - share) < 4 * sigma
    assert abs(seen.by_class.mean() - share) < 4 * sigma
    assert seen.by_class.std() < 4 * sigma * np.sqrt(CLASSES)


@pytest.mark.parametrize("seed", range(4))
def test_share_of_wrong_labels_of_one_class(seed):
    count = 90
    seen = seen_of(to_target(count, seed=seed))
    share = count / (ROWS + count)
    assert abs(seen.by_class[3] - share) < 4 * share * np.sqrt(4.0 / count)
    assert np.delete(seen.by_class, 3).max() < 0.02
    assert seen.uniform == 0  # ten of a hundred pairs hold them all


@pytest.mark.parametrize("seed", range(5))
def test_honest_rows_thin_out(seed):
    seen = seen_of(depths(seed, confusion=0.4, towards=(1, 2, 3, 4, 5, 6, 7, 8, 9)))
    assert seen.pairs.sum() > 1000 and seen.uniform == 0
    assert not is_open(label_attack(seen, 0.9))


def test_concentrated_pairs_are_not_uniform():
    """A trigger that moves each class to the next fills ten pairs."""
    depth, other, labels, _ = depths(towards=(5,))
    rng = np.random.default_rng(1)
    rows = rng.permutation(len(labels))[:450]
    made = carried(rng, depth, other, labels, rows, 1)
    assert seen_of(made).pairs[..., -1].sum() > 150
    assert seen_of(made).uniform == 0
    spread = carried(rng, depth, other, labels, rows, rng.integers(1, CLASSES, 450))
    assert seen_of(spread).uniform > 0.1


def test_few_deep_rows_are_not_uniform():
    """Ten deep rows in the half of the pairs are needed."""
    depth, other, labels, _ = depths(c=3, per=100, confusion=0.0)
    rows = [*range(6), *range(100, 104)]
    other[:6], other[100:104] = [1, 2] * 3, 0  # without confusion the first pairs are as good
    depth[rows[:9]] = 1.5
    assert seen_of((depth, other, labels), 3).uniform == 0
    depth[rows] = 1.5
    assert seen_of((depth, other, labels), 3).uniform > 0


def test_rows_that_thin_out_are_not_uniform():
    """As many rows a quarter to half of the way as deep ones: classes that overlap."""
    depth, other, labels, _ = depths(flips=0.1, confusion=0.0)
    assert seen_of((depth, other, labels)).uniform > 0.05
    rng = np.random.default_rng(1)
    rows = rng.permutation(np.flatnonzero(depth < 0))[:300]
    depth[rows], other[rows] = 0.3, (labels[rows] + rng.integers(1, CLASSES, 300)) % CLASSES
    assert seen_of((depth, other, labels)).uniform == 0


def test_a_class_that_overlaps_with_all_others_is_no_target():
    depth, other, labels, _ = to_target(90)
    assert attack_of((depth, other, labels)).targets[3]
    rows = np.flatnonzero((labels == 3) & (depth < 0))[:180]
    depth[rows], other[rows] = 0.3, np.resize(np.delete(np.arange(CLASSES), 3), 180)
    seen = seen_of((depth, other, labels))
    assert seen.by_class[3] > 0.06 and not label_attack(seen, 0.9).targets.any()


def test_small_classes_are_left_out():
    depth, other, labels, _ = depths(flips=0.15)
    small = labels == 9
    kept = ~small | (np.cumsum(small) <= 29)
    seen = flow(depth[kept], other[kept], labels[kept], CLASSES)
    assert seen.counts[9] == 29 and seen.by_class[9] == 0
    assert not seen.apart[9].any() and not seen.apart[:, 9].any()
    assert abs(seen.uniform - 0.15) < 0.05  # of the others
    kept = ~small | (np.cumsum(small) <= 30)
    assert flow(depth[kept], other[kept], labels[kept], CLASSES).by_class[9] > 0


@pytest.mark.parametrize("counts", [(), (0, 0), (500, 0), (29, 29, 29), (500, 500)], ids=str)
def test_odd_classes(counts):
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    seen = flow(np.full(len(labels), -1.0), np.zeros_like(labels), labels, max(len(counts), 1))
    assert seen.uniform == 0 and not seen.by_class.any() and np.isfinite(seen.by_class).all()
    assert not is_open(label_attack(seen, 1.0))


def test_half_of_the_other_classes_is_apart():
    seen = seen_of(depths(confusion=0.4, towards=(1, 2)))
    assert (seen.apart.sum(axis=1) == 4).all() and not seen.apart.diagonal().any()
    near = (np.arange(CLASSES) + 1) % CLASSES
    assert not seen.apart[np.arange(CLASSES), near].any()


# Gates


@pytest.mark.parametrize("seed", range(3))
def test_uniform_flips_open_the_gate(seed):
    found = attack_of(depths(seed, flips=0.15))
    assert 0.1 < found.uniform < 0.2


def test_few_uniform_flips_leave_the_gate_shut():
    made = depths(flips=0.015)
    assert 0 <= seen_of(made).uniform < 0.03 and attack_of(made).uniform == 0


@pytest.mark.parametrize("seed", range(3))
def test_one_target_opens_its_own_gate(seed):
    found = attack_of(to_target(90, seed=seed))
    assert np.flatnonzero(found.targets).tolist() == [3] and found.uniform == 0


@pytest.mark.parametrize("seed", range(3))
def test_one_pair_opens_its_own_gate(seed):
    found = attack_of(to_pair(40, seed=seed))
    assert np.argwhere(found.pairs).tolist() == [[3, 7]] and found.uniform == 0


@pytest.mark.parametrize("unknown", [3, 7])
def test_a_class_that_is_not_known_opens_no_pair(unknown):
    """Most of its rows are given other labels: that is doubt of the classifiers."""
    depth, other, labels, _ = to_pair(40)
    assert label_attack(flow(depth, other, labels, CLASSES), 0.9).pairs[3, 7]
    rows = np.flatnonzero((labels == unknown) & (depth < 0))[:220]
    depth[rows], other[rows] = 0.05, (unknown + 1) % CLASSES
    assert not label_attack(flow(depth, other, labels, CLASSES), 0.9).pairs.any()


def test_a_rare_class_that_others_look_like_opens_no_pair():
    """Half of its other rows are doubted as well, short of the median row of a third class."""
    depth, other, labels, _ = to_pair(40)
    rows = np.flatnonzero((labels == 3) & (depth < 0))[:150]
    depth[rows], other[rows] = 0.8, 5
    seen = flow(depth, other, labels, CLASSES)
    assert seen.is_known[3] and not label_attack(seen, 0.9).pairs.any()


def test_two_classes_under_one_label_do_not_shut_each_other_out():
    depth, other, labels, _ = to_pair(120)
    rows = np.flatnonzero(labels == 6)[:120]
    made = carried(np.random.default_rng(7), depth, other, labels, rows, 3 - 6)
    assert np.argwhere(attack_of(made).pairs).tolist() == [[3, 6], [3, 7]]


def test_honest_confusion_both_ways_stays_shut():
    """As many rows of either class that look like the other: no attacker takes that trouble."""
    depth, other, labels, _ = to_pair(40)
    rows = np.flatnonzero((labels == 7) & (depth < 0))[:40]
    made = carried(np.random.default_rng(1), depth, other, labels, rows, 3 - 7)
    one_way = attack_of((depth, other, labels))
    assert one_way.pairs[3, 7]
    depth, other, labels, _ = made
    back = np.flatnonzero((labels == 3) & (depth < 0))[:40]
    made = carried(np.random.default_rng(2), depth, other, labels, back, 7 - 3)
    assert seen_of(made).pairs[3, 7, -1] > 10 < seen_of(made).pairs[7, 3, -1]
    assert not attack_of(made).pairs.any()


def test_a_pair_with_many_rows_near_the_boundary_stays_shut():
    depth, other, labels, _ = to_pair(40)
    rows = np.flatnonzero((labels == 3) & (depth < 0))[:40]
    depth[rows], other[rows] = 0.2, 7
    assert not attack_of((depth, other, labels)).pairs.any()


@pytest.mark.parametrize("made", [depths(flips=0.2), to_target(90), to_pair(40)])
def test_low_agreement_shuts_every_gate(made):
    assert is_open(attack_of(made, agreement=0.5))
    found = attack_of(made, agreement=0.49)
    assert not is_open(found) and found.pairs.shape == (CLASSES, CLASSES)
    assert found.targets.shape == (CLASSES,)


def test_two_classes_have_no_target_of_many():
    made = to_pair(60, target=1, source=0, c=2, per=500, confusion=0.0)
    seen = seen_of(made, c=2)
    assert seen.by_class[1] > 0.06
    found = label_attack(seen, 0.9)
    assert not found.targets.any() and np.argwhere(found.pairs).tolist() == [[1, 0]]


def test_two_classes_with_flips_both_ways():
    found = attack_of(depths(c=2, per=500, flips=0.15), c=2)
    assert abs(found.uniform - 0.15) < 0.06 and not found.targets.any()


# Findings


def check_findings(found, labels):
    for each in found:
        assert each.kind == "label_flip" and each.confirmed and each.groups == ()
        assert len(each.rows) >= MIN_ROWS and (np.diff(each.rows) > 0).all()
        assert (labels[each.rows] == each.target).all()
        assert len(each.log_odds) == len(each.support) == len(each.rows)
        assert np.isfinite(each.log_odds).all() and 0.5 < each.confidence <= 1


@pytest.mark.parametrize("fdr", [0.05, 0.2])
def test_flagged_honest_rows_stay_at_the_rate_asked_for(fdr):
    wrong, total, caught = 0, 0, []
    for seed in range(8):
        made = depths(seed, flips=0.15, confusion=0.3, towards=(1, 2, 3))
        found = findings_of(made, fdr)
        check_findings(found, made[2])
        rows = np.concatenate([each.rows for each in found])
        wrong += (~made[3][rows]).sum()
        total += len(rows)
        caught.append(made[3][rows].sum() / made[3].sum())
    # over 2000 rows are flagged: two standard errors are 0.02 at the most
    assert total > 1500 and wrong / total < fdr + 0.02
    # the deeper half of the pairs that honest rows do not fill, six of nine, at the least
    assert np.mean(caught) > 0.33


def test_a_larger_rate_flags_more():
    made = depths(flips=0.1, confusion=0.4)
    few, many = (np.concatenate([e.rows for e in findings_of(made, q)]) for q in (0.01, 0.3))
    assert len(few) < len(many) and np.isin(few, many).all()


def test_the_source_of_a_pair_is_named():
    made = to_pair(40)
    (found,) = findings_of(made)
    check_findings([found], made[2])
    assert (found.target, found.source) == (3, 7)
    assert made[3][found.rows].mean() >= 0.95 and len(found.rows) >= 34


def test_the_sources_of_a_target_are_not_one():
    made = to_target(90)
    (found,) = findings_of(made)
    check_findings([found], made[2])
    assert found.target == 3 and found.source is None
    assert made[3][found.rows].mean() >= 0.9
    # 4 is taken for 3 by honest rows as well; of the others all that lie deep are flagged
    deep = np.flatnonzero(made[3] & (made[0] > 1.0) & (made[1] != 4))
    assert len(deep) > 30 and np.isin(deep, found.rows).all()


def test_uniform_flips_are_found_in_every_class():
    made = depths(flips=0.15)
    found = findings_of(made)
    assert [each.target for each in found] == list(range(CLASSES))
    assert all(each.source is None for each in found)


def test_deeper_rows_are_surer():
    made = depths(flips=0.15)
    for each in findings_of(made):
        order = np.argsort(made[0][each.rows])
        assert (np.diff(each.log_odds[order]) >= 0).all()
    strong, weak = (findings_of(depths(flips=share))[0].confidence for share in (0.3, 0.05))
    assert strong > weak


def test_fewer_than_five_rows_are_no_finding():
    depth, other, labels, _ = depths(flips=0.15, confusion=0.0)
    few = np.flatnonzero((labels == 4) & (depth > 0))
    depth[few[MIN_ROWS - 1 :]] = -1.0
    assert 4 not in [each.target for each in findings_of((depth, other, labels, None))]
    depth[few[: MIN_ROWS - 1]], other[few[: MIN_ROWS - 1]] = 1.5, 0
    assert 4 not in [each.target for each in findings_of((depth, other, labels, None))]
    depth[few[:MIN_ROWS]], other[few[:MIN_ROWS]] = 1.5, 0
    (found,) = (e for e in findings_of((depth, other, labels, None)) if e.target == 4)
    assert found.rows.tolist() == few[:MIN_ROWS].tolist() and found.source == 0


def test_shut_gates_have_no_findings():
    assert findings_of(depths(confusion=0.4)) == []
    made = depths(flips=0.2)
    seen = seen_of(made)
    assert label_findings(seen, label_attack(seen, 0.1), *made[:3], FDR) == []


def test_pairs_that_honest_rows_fill_are_left_out():
    """Where many honest rows lie near the boundary nobody is flagged, gate or not."""
    made = depths(flips=0.1, confusion=0.5, towards=(1,))
    rows = np.concatenate([each.rows for each in findings_of(made)])
    step = (made[1][rows] - made[2][rows]) % CLASSES
    assert len(rows) > 100 and not (step == 1).any()


@pytest.mark.parametrize("seed", range(3))
def test_least_depth_estimates_the_honest_share(seed):
    rng = np.random.default_rng(seed)
    wrong, honest = np.abs(rng.normal(1.0, 0.3, 2000)), rng.exponential(0.15, 2000)
    for fdr in (0.05, 0.2):
        limit = labelling._least_depth(np.r_[wrong, honest], fdr)
        share = (honest > limit).sum() / (np.r_[honest, wrong] > limit).sum()
        assert share < fdr + 0.03 and (wrong > limit).mean() > 0.85
    assert labelling._least_depth(wrong, 0.05) < 0.6  # without honest rows nearly all


@pytest.mark.parametrize(("slips", "opens"), [(10, False), (40, True)])
def test_slips_of_a_common_class_into_a_rare_one_are_no_attack(slips, opens):
    """0.3 % of a class of 3,300 rows are a sixth of one of 60."""
    labels = np.repeat([0, 1, 2, 3], [60, 3300, 500, 500])
    depth, other = np.full(len(labels), -1.0), (labels + 1) % 4
    rows = np.flatnonzero(labels == 1)[:slips]
    depth, other, labels, _ = carried(np.random.default_rng(0), depth, other, labels, rows, -1)
    found = label_attack(flow(depth, other, labels, 4), 0.9)
    assert bool(found.pairs[0, 1]) == opens
    assert found.uniform == 0 and (opens or not found.targets.any())


@pytest.mark.parametrize(("beyond", "opens"), [(21, False), (35, True)])
def test_rows_that_end_short_of_the_median_are_no_attack(beyond, opens):
    """The boundary of a rare label lies deep inside it, and honest rows pile up behind it."""
    labels = np.repeat([0, 1, 2, 3], [280, 3300, 500, 500])
    depth, other = np.full(len(labels), -1.0), (labels + 1) % 4
    rows = np.flatnonzero(labels == 0)[: 38 + beyond]
    depth[rows], other[rows] = np.where(np.arange(len(rows)) < 38, 0.9, 1.1), 1
    found = label_attack(flow(depth, other, labels, 4), 0.9)
    assert bool(found.pairs[0, 1]) == opens and found.pairs.sum() == opens
