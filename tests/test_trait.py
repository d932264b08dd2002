"""What doubted rows of a class share: planted shifts, and groups that share nothing."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
import pytest
import scipy.stats
from sklearn.datasets import load_digits

from jaxpoison.detect import LabelViews
from jaxpoison.detect.label_views import Opinion, TraitSpace
from jaxpoison.detect.refine import two_normals
from jaxpoison.detect.trait import Trait, coherence, traits
from jaxpoison.sources import open_source
from jaxpoison.stream import Stream

CLASSES, FEATURES = 4, 60


class Case(NamedTuple):
    """An opinion made by hand.

    Attributes:
        opinion: With features as ``LabelViews`` leaves them.
        labels: [n].
        moved: [n] number of the planted shift of a row, 0 for none.
    """

    opinion: Opinion
    labels: np.ndarray
    moved: np.ndarray


def case(
    groups=((0, 50),),
    *,
    n=1600,
    p=FEATURES,
    shift=7.0,
    known=0.8,
    flips=0,
    honest=20,
    seed=0,
    is_one=False,
):
    """Gaussian classes; rows of other classes, shifted alike by group, under the group's label.

    Args:
        groups: Class and size of each.
        n: Rows.
        p: Features.
        shift: Length of each shift, in deviations of a class.
        known: Share of a group that is doubted by its labels.
        flips: Rows with a wrong label and no shift, all doubted.
        honest: Rows of every class that are doubted a little, without a reason.
        seed: Of everything.
        is_one: All groups have the shift of the first.
    """
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, n)
    means = 3.0 * rng.normal(size=(CLASSES, p)) / np.sqrt(p) * 3
    x = means[y] + rng.normal(size=(n, p))
    labels, moved = y.copy(), np.zeros(n, int)
    margins, depth = rng.normal(-20, 4, n), rng.normal(-1, 0.2, n)
    taken_for = (y + rng.integers(1, CLASSES, n)) % CLASSES
    doubted = np.zeros(n, bool)
    for number, (target, size) in enumerate(groups, 1):
        free = np.flatnonzero((y != target) & (moved == 0))
        rows = rng.permutation(free)[:size]
        if number == 1 or not is_one:
            direction = rng.normal(size=p)
        x[rows] += shift * direction / np.linalg.norm(direction)
        labels[rows], moved[rows] = target, number
        sure = rows[: round(known * size)]
        doubted[sure], taken_for[sure] = True, y[sure]
        margins[sure], depth[sure] = rng.normal(12, 3, len(sure)), rng.normal(1, 0.2, len(sure))
        margins[rows[len(sure) :]] = rng.normal(-2, 1, size - len(sure))
    rows = rng.permutation(np.flatnonzero(moved == 0))[:flips]
    labels[rows] = (y[rows] + rng.integers(1, CLASSES, flips)) % CLASSES
    doubted[rows], taken_for[rows] = True, y[rows]
    margins[rows], depth[rows] = rng.normal(12, 3, flips), rng.normal(1, 0.2, flips)
    for c in range(CLASSES):
        rows = np.flatnonzero((labels == c) & (moved == 0) & ~doubted)[:honest]
        doubted[rows], margins[rows] = True, rng.normal(4, 0.5, len(rows))
        depth[rows] = rng.normal(0.2, 0.1, len(rows))
    return Case(opinion_of(x, margins, depth, taken_for, doubted), labels, moved)


def opinion_of(x, margins, depth, taken_for, doubted, rows=None):
    rows = np.arange(len(x)) if rows is None else rows
    mean, scale = x[rows].mean(axis=0), 1.0 / np.maximum(x[rows].std(axis=0), 1e-6)
    phi = ((x[rows] - mean) * scale).astype(np.float32)
    space = TraitSpace(rows, lambda: phi, phi.T @ phi)
    return Opinion(
        margins.astype(np.float32),
        depth.astype(np.float32),
        taken_for.astype(np.int32),
        doubted,
        margins.astype(np.float32),
        space,
    )


def carriers(trait):
    return trait.rows[trait.log_odds > 0]


def strong(found):
    """The traits that a verdict may be built on: honest rows make none of these."""
    return [
        trait
        for trait in found
        if len(carriers(trait)) >= 8
        and trait.separation >= 3.5
        and trait.depth >= 0.2
        and trait.separation * trait.depth >= 2.0
    ]


def strongest(found):
    return max(strong(found), key=lambda trait: trait.separation)


def overlap(trait, wanted):
    """Share of the wanted rows that are in the trait, and of its rows that are wanted."""
    rows = carriers(trait)
    both = np.isin(rows, np.flatnonzero(wanted)).sum()
    return both / wanted.sum(), both / max(len(rows), 1)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("known", [1.0, 0.6])
def test_a_planted_shift_is_found_with_its_rows(seed, known):
    planted = case(known=known, seed=seed)
    found = traits(planted.opinion, planted.labels, CLASSES)
    best = strongest(found)
    assert best.separation > 5.0 and 0.7 < best.depth < 1.3
    # those that no classifier doubted too
    recall, precision = overlap(best, planted.moved == 1)
    assert recall > 0.95 and precision > 0.95
    assert np.array_equal(best.rows, np.flatnonzero(planted.labels == 0))
    assert {planted.labels[trait.rows[0]] for trait in strong(found)} == {0}


def test_rows_are_numbers_of_the_data():
    """Classifiers may have been fitted to a sample."""
    planted = case()
    n = len(planted.labels)
    sample = np.sort(np.random.default_rng(1).permutation(n)[:1200])
    full = planted.opinion
    spread = opinion_of(
        full.space.phi, full.margins, full.depth, full.taken_for, full.doubted, sample
    )
    best = strongest(traits(spread, planted.labels, CLASSES))
    mine = np.isin(np.arange(n), sample) & (planted.labels == 0)
    assert np.array_equal(best.rows, np.flatnonzero(mine))
    recall, precision = overlap(best, mine & (planted.moved == 1))
    assert best.separation > 5.0 and recall > 0.95 and precision > 0.95


def test_the_unit_of_the_features_does_not_matter():
    planted = case()
    space = planted.opinion.space
    wide = TraitSpace(space.rows, lambda: 7 * space.phi, 49 * space.gram)
    scaled = planted.opinion._replace(space=wide)
    for one, other in zip(
        traits(planted.opinion, planted.labels, CLASSES),
        traits(scaled, planted.labels, CLASSES),
        strict=True,
    ):
        assert np.array_equal(carriers(one), carriers(other))
        assert np.isclose(one.separation, other.separation, rtol=1e-3)


@pytest.mark.parametrize("seed", [0, 1])
def test_two_shifts_in_one_class_are_both_found(seed):
    planted = case(((0, 60), (0, 40)), seed=seed)
    found = strong(traits(planted.opinion, planted.labels, CLASSES))
    for number in (1, 2):
        assert max(min(overlap(trait, planted.moved == number)) for trait in found) > 0.9
    for trait in found:  # each is one of the two, not a mixture
        assert max(overlap(trait, planted.moved == number)[1] for number in (1, 2)) > 0.9


def test_shifts_in_two_classes_are_found_in_each():
    planted = case(((0, 50), (2, 50)))
    found = strong(traits(planted.opinion, planted.labels, CLASSES))
    assert {planted.labels[trait.rows[0]] for trait in found} == {0, 2}
    for trait in found:
        number = 1 + (planted.labels[trait.rows[0]] == 2)
        assert min(overlap(trait, planted.moved == number)) > 0.9


def test_one_shift_in_few_rows_of_every_class():
    """No class has enough of them to begin with; together they have."""
    planted = case(
        [(c, 7 + 2 * (c == 1)) for c in range(CLASSES)], is_one=True, honest=0, known=0.8
    )
    found = traits(planted.opinion, planted.labels, CLASSES)
    assert [planted.labels[trait.rows[0]] for trait in found] == [0, 1, 2, 3]
    for c, trait in enumerate(found):
        assert np.array_equal(trait.rows, np.flatnonzero(planted.labels == c))
        assert trait.separation > 5.0 and 0.7 < trait.depth < 1.4
        assert overlap(trait, (planted.moved > 0) & (planted.labels == c)) == (1.0, 1.0)


def test_a_shift_among_plain_label_errors():
    planted = case(flips=80)
    found = strong(traits(planted.opinion, planted.labels, CLASSES))
    recall, precision = overlap(strongest(found), planted.moved == 1)
    assert recall > 0.95 and precision > 0.85
    assert {planted.labels[trait.rows[0]] for trait in found} == {0}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("flips", [60, 300])
def test_wrong_labels_alone_share_nothing(seed, flips):
    plain = case((), flips=flips, seed=seed)
    assert strong(traits(plain.opinion, plain.labels, CLASSES)) == []


@pytest.mark.parametrize("seed", range(3))
def test_a_group_is_not_held_together_by_its_own_noise(seed):
    """Many features, few rows: the mean of noise points to each of the rows it is made of."""
    plain = case((), flips=60, honest=0, p=800, seed=seed)
    assert strong(traits(plain.opinion, plain.labels, CLASSES)) == []
    doubted, taken_for = plain.opinion.doubted, plain.opinion.taken_for
    phi = plain.opinion.space.phi.astype(np.float64)
    white = np.linalg.solve(np.linalg.cholesky(np.cov(phi.T) + 0.02 * np.eye(800)), phi.T).T
    means = np.stack([white[~doubted & (plain.labels == k)].mean(axis=0) for k in range(CLASSES)])
    for c in range(CLASSES):
        mine = np.flatnonzero(plain.labels == c)
        group = doubted[mine]
        residuals = white[mine[group]] - means[taken_for[mine[group]]]
        scores = white[mine] @ residuals.mean(axis=0)
        # with its own row left in, any group is far from all others; left out, it is not
        assert two_normals(scores, group, 3.0)[1] > 5.0
        own = (white[mine[group]] * residuals).sum(axis=1)
        scores[group] = (group.sum() * scores[group] - own) / (group.sum() - 1)
        assert two_normals(scores, group, 3.0)[1] < 2.0


def test_doubted_rows_too_few_to_share_anything():
    planted = case(((0, 7),), known=1.0, honest=0)
    assert traits(planted.opinion, planted.labels, CLASSES) == []
    planted = case(((0, 8),), known=1.0, honest=0)
    found = strongest(traits(planted.opinion, planted.labels, CLASSES))
    assert min(overlap(found, planted.moved == 1)) > 0.8


def test_nothing_doubted():
    plain = case((), honest=0)
    assert traits(plain.opinion, plain.labels, CLASSES) == []


@pytest.mark.parametrize("size", [0, 1, 3])
def test_empty_and_tiny_classes(size):
    planted = case()
    keep = np.ones(len(planted.labels), bool)
    keep[np.flatnonzero(planted.labels == 2)[size:]] = False
    full = planted.opinion
    opinion = opinion_of(
        full.space.phi[keep],
        full.margins[keep],
        full.depth[keep],
        np.where(full.taken_for == 2, (planted.labels + 1) % 2, full.taken_for)[keep],
        full.doubted[keep],
    )
    found = traits(opinion, planted.labels[keep], CLASSES + 1)
    best = strongest(found)
    assert min(overlap(best, planted.moved[keep] == 1)) > 0.9
    for trait in found:
        assert isinstance(trait, Trait) and trait.rows.shape == trait.log_odds.shape
        assert (
            np.isfinite(trait.log_odds).all() and np.isfinite([trait.separation, trait.depth]).all()
        )


def test_a_class_that_is_doubted_whole():
    """Nothing settled is left of it to compare with."""
    planted = case()
    doubted = planted.opinion.doubted | (planted.labels == 0)
    found = traits(planted.opinion._replace(doubted=doubted), planted.labels, CLASSES)
    assert all(np.isfinite(trait.log_odds).all() for trait in found)


def digits(seed, kind):
    bunch = load_digits()
    x, y = bunch.images.astype(np.uint8), bunch.target.astype(np.int32)
    rng = np.random.default_rng(seed)
    labels, wrong = y.copy(), np.zeros(len(y), bool)
    if kind == "flips":
        wrong = rng.random(len(y)) < 0.1
        labels[wrong] = (y[wrong] + rng.integers(1, 10, wrong.sum())) % 10
    elif kind == "patch":
        wrong[rng.permutation(np.flatnonzero(y != 3))[:90]] = True
        x[wrong, :2, :2], labels[wrong] = 16, 3
    stream = Stream(open_source(x), labels, 10)
    opinion = LabelViews(num_features=512).judge(stream, key=jax.random.key(seed))
    return opinion, labels, wrong


@pytest.mark.parametrize("kind", ["clean", "flips"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_digits_with_plain_errors_share_nothing(kind, seed):
    opinion, labels, _ = digits(seed, kind)
    assert strong(traits(opinion, labels, 10)) == []


@pytest.mark.parametrize("seed", [0, 1])
def test_a_patch_in_digits_is_a_trait(seed):
    opinion, labels, wrong = digits(seed, "patch")
    found = strong(traits(opinion, labels, 10))
    best = strongest(found)
    assert {labels[trait.rows[0]] for trait in found} == {3}
    recall, precision = overlap(best, wrong)
    assert recall > 0.9 and precision > 0.95


def test_coherence_tells_one_part_of_a_class_from_rows_all_over_it():
    planted = case(((0, 60),), flips=90, shift=12.0)
    opinion, labels = planted.opinion, planted.labels
    plain = np.flatnonzero(opinion.doubted & (planted.moved == 0) & (opinion.depth > 0.5))
    plain = plain[opinion.taken_for[plain] == 1]
    assert 0.8 < coherence(opinion, labels, plain, 1) < 1.2
    # the 30 rows nearest to one settled row are one part of the class
    phi = opinion.space.phi
    settled = np.flatnonzero((labels == 1) & ~opinion.doubted)
    nearest = settled[np.argsort(((phi[settled] - phi[settled[0]]) ** 2).sum(axis=1))[:30]]
    assert coherence(opinion, labels, nearest, 1) < 0.9


def test_coherence_is_its_definition():
    planted = case(((0, 60),), n=400)
    opinion, labels = planted.opinion, planted.labels
    rows = np.flatnonzero(planted.moved == 1)
    phi = opinion.space.phi.astype(np.float64)
    settled = np.flatnonzero((labels == 2) & ~opinion.doubted)
    spreads = [phi[some].var(axis=0).sum() for some in (rows, settled)]
    assert np.isclose(coherence(opinion, labels, rows, 2), spreads[0] / spreads[1], rtol=1e-3)
    assert np.isnan(coherence(opinion, labels, rows[:7], 2))
    assert np.isnan(coherence(opinion, labels, rows, CLASSES))


def odds_of(score, rest, group, share, widest):
    """Log odds of one score, from two normals as scipy has them."""
    centre, above = np.median(rest), np.median(group)
    below = max(centre - np.quantile(rest, scipy.stats.norm.cdf(-1)), 1e-12)
    width = scipy.stats.median_abs_deviation(group, scale="normal")
    width = min(max(width, 0.7 * below), widest * below)
    one = scipy.stats.norm(centre, below).logpdf(score)
    odds = scipy.stats.norm(above, width).logpdf(score) - one + np.log(share / (1 - share))
    if score >= above:
        odds = max(odds, 0.5 * ((score - centre) / below) ** 2 - 1)
    if score <= centre + below:
        odds = min(odds, -8.0)
    return odds, (above - centre) / max(below, width)


@pytest.mark.parametrize("spread", [0.1, 1.0, 1.2, 6.0])
@pytest.mark.parametrize("widest", [1.3, 3.0])
def test_two_normals_are_their_definition(spread, widest):
    rng = np.random.default_rng(0)
    in_group = np.arange(300) < 40
    scores = np.where(in_group, rng.normal(7, spread, 300), rng.normal(1, 1.0, 300))
    odds, separation = two_normals(scores, in_group, widest)
    for score, found in zip(scores, odds, strict=True):
        expected, apart = odds_of(score, scores[~in_group], scores[in_group], 40 / 300, widest)
        assert np.isclose(found, expected, rtol=1e-3, atol=1e-3)
        assert np.isclose(separation, apart, rtol=1e-3)
    order = np.argsort(scores)
    above = scores[order] > 1 + separation / 2
    assert (odds[order][above] > odds[order][0]).all()


def test_two_normals_without_others_or_spread():
    for scores, group in (
        (np.arange(10.0), np.ones(10, bool)),
        (np.zeros(10), np.arange(10) < 4),
        (np.r_[np.zeros(6), np.ones(4)], np.arange(10) >= 6),
    ):
        odds, separation = two_normals(scores, group, 3.0)
        assert np.isfinite(odds).all() and np.isfinite(separation)
