"""What confirms a group: units of the features, scatter of many classes, traits of one."""

from __future__ import annotations

import numpy as np
import pytest

from group_data import DIRTY, HONEST, NAN, displaced, finding, group, trait
from jaxpoison import calibrate
from jaxpoison.calibrate import groups as grouping


def test_rare_honest_values_in_tables_of_unlike_units_prove_nothing():
    own = {"own_units": True}
    mode = group("whitening", range(40), separation=33.0, **own)
    assert not grouping.is_confirmed(mode, HONEST, 10) and not grouping.is_lone(mode)
    assert grouping.is_confirmed(mode, DIRTY, 10)  # but rows that a classifier gives elsewhere
    assert not grouping.is_confirmed(mode._replace(separation=11.0), DIRTY._replace(home=1.0), 10)
    assert grouping.is_confirmed(mode._replace(own_units=False), HONEST, 10)
    near = DIRTY._replace(home=1.5)
    assert grouping.is_confirmed(group(), near, 10)
    assert not grouping.is_confirmed(group(**own), near, 10)
    assert not grouping.is_confirmed(trait(separation=8.0)._replace(**own), displaced(2.0), 10)
    few = {"num_features": 18, **own}  # where few features decide, units change nothing
    assert grouping.is_confirmed(group("whitening", separation=30.0, **few), HONEST, 10)


@pytest.mark.parametrize(
    ("gain", "error", "expected"),
    [
        (0.7, 0.16, True),
        (0.7, 0.3, False),
        (0.1, 0.01, False),
        (-2.0, 0.1, False),
        (NAN, NAN, False),
    ],
)
def test_rows_that_scatter_like_many_classes_are_theirs(gain, error, expected):
    near = DIRTY._replace(
        home=1.0, diversity=0.8, expected=0.4, agreement=0.0, mixture=gain, mixture_error=error
    )
    assert grouping.is_confirmed(group(), near, 100) is expected
    statistic, value, least = grouping.decisive(group(), near)
    if expected:
        assert statistic == "nats a row gained as rows of other classes"
        assert value == gain and least == pytest.approx(3 * error)
        assert not grouping.is_confirmed(group(), near._replace(diversity=0.3), 100)
        assert not grouping.is_confirmed(group(), near._replace(agreement=0.2), 100)


def test_a_trait_of_rows_that_scatter_like_one_class_must_speak_for_itself():
    one = HONEST._replace(mixture=-4.0, mixture_error=0.2, home=1.2)
    assert not grouping.is_confirmed(trait(num_rows=497, separation=4.0, depth=0.75), one, 10)
    assert not grouping.is_confirmed(trait(num_rows=126, separation=19.6, depth=0.36), one, 10)
    assert grouping.is_confirmed(trait(num_rows=126, separation=10.0, depth=0.9), one, 10)
    inside = one._replace(depth=0.9, agreement=0.03)  # warped rows of a few classes
    assert grouping.is_confirmed(trait(num_rows=184, separation=5.1, depth=0.7), inside, 10)
    assert not grouping.is_confirmed(trait(num_rows=184, separation=4.0, depth=0.3), inside, 10)
    assert not grouping.is_confirmed(trait(num_rows=93, separation=4.0, depth=0.7), inside, 10)
    near = one._replace(home=0.96)
    assert not grouping.is_confirmed(trait(num_rows=126, separation=10.0, depth=0.9), near, 10)
    partly = inside._replace(agreement=0.15)
    assert not grouping.is_confirmed(trait(num_rows=184, separation=5.1, depth=0.7), partly, 10)
    unknown = one._replace(mixture=NAN, mixture_error=NAN)
    assert grouping.is_confirmed(trait(num_rows=497, separation=4.0, depth=0.75), unknown, 10)
    many = one._replace(mixture=1.0, mixture_error=0.1)
    assert grouping.is_confirmed(trait(separation=4.0, depth=0.3), many, 10)
    few = {"num_features": 18}
    assert not grouping.is_confirmed(trait(separation=4.0, depth=0.3, **few), many, 10)
    assert not grouping.is_confirmed(trait(separation=20.0, depth=0.9, **few), one, 10)
    assert grouping.is_confirmed(trait(separation=20.0, depth=0.9, **few), inside, 10)


@pytest.mark.parametrize(
    ("options", "gain", "is_poison"),
    [
        ({"separation": 10.7}, -4.0, False),  # 24 with the displacement: a corner of its class
        ({"separation": 18.0}, -4.0, True),
        ({"separation": 10.7}, 0.5, True),  # rows of many classes
        ({"separation": 10.7}, NAN, True),  # two classes: their scatter tells nothing
        ({"separation": NAN}, -4.0, False),
        ({"separation": 10.7, "num_features": 64}, -4.0, True),
    ],
)
def test_displaced_rows_of_few_features_that_scatter_like_one_class_lie_far_apart(
    options, gain, is_poison
):
    check = DIRTY._replace(home=2.25, mixture=gain, mixture_error=0.1)
    found = group(**{"num_features": 18, **options})
    assert grouping.is_confirmed(found, check, 7) is is_poison
    assert grouping.is_confirmed(found, check._replace(depth=0.9), 7)


def test_a_wide_mode_of_few_features_is_not_one_class_alone():
    mode = group("whitening", separation=7.4, spread_ratio=1.7, num_features=18)
    assert grouping.is_confirmed(mode, HONEST, 7)
    assert not grouping.is_confirmed(mode, HONEST._replace(mixture=-7.0), 7)
    assert grouping.is_confirmed(mode._replace(separation=13.0), HONEST._replace(mixture=-7.0), 7)


def test_a_mode_of_a_few_rows_that_are_known_by_others_proves_nothing():
    few = group("whitening", range(14), separation=14.2)
    assert not grouping.is_confirmed(few, HONEST, 10)
    assert grouping.is_confirmed(few, DIRTY._replace(home=1.0), 10)
    assert grouping.is_confirmed(group("whitening", range(20), separation=14.2), HONEST, 10)


@pytest.mark.parametrize(
    ("num_features", "share", "separation", "is_poison"),
    [
        (64, 0.17, 10.6, False),  # as crossed sevens are
        (64, 0.45, 7.9, True),
        (64, 0.17, 17.0, True),
        (784, 0.17, 10.6, True),
    ],
)
def test_a_style_of_an_honest_class_is_no_poison(num_features, share, separation, is_poison):
    mode = group(
        "whitening", range(24), separation=separation, num_features=num_features, share=share
    )
    check = DIRTY._replace(home=1.2)
    assert grouping.is_confirmed(mode, check, 10) is is_poison
    assert grouping.is_lone(mode) is is_poison


@pytest.mark.parametrize(
    ("found", "check", "statistic", "limit"),
    [
        (
            group(separation=10.7, num_features=18),
            DIRTY._replace(home=2.25, mixture=-4.0),
            "separation times displacement",
            34.0,
        ),
        (trait(separation=4.5, depth=0.2), HONEST._replace(mixture=0.9), "nats a row", 0.2),
        (trait(), HONEST._replace(mixture=-4.0, home=1.3), "separation of a trait", 5.0),
        (trait(), HONEST._replace(mixture=-4.0, depth=0.8), "separation of a trait", 3.0),
        (group("whitening", separation=20.0, share=0.1), HONEST, "separation of two modes", 16.0),
        (group("whitening", separation=20.0, share=0.4), HONEST, "separation of two modes", 7.0),
    ],
)
def test_the_report_names_what_decided(found, check, statistic, limit):
    said, value, least = grouping.decisive(found, check)
    assert said.startswith(statistic) and least == limit and np.isfinite(value)


@pytest.mark.parametrize(
    ("num_rows", "gain", "is_poison"), [(24, -2.7, False), (60, -2.7, True), (24, NAN, True)]
)
def test_few_rows_that_scatter_like_one_class_are_not_deep_in_others(num_rows, gain, is_poison):
    deep = DIRTY._replace(
        home=1.1, diversity=0.51, agreement=0.04, expected=0.97, depth=1.1, mixture=gain
    )
    assert grouping.is_confirmed(group(rows=range(num_rows)), deep, 10) is is_poison


def test_a_finding_does_not_take_in_its_whole_class():
    """Where half of a class has a trigger, classifiers dispute the honest half as well."""
    rest, found = np.arange(100, 200), finding(1, range(100), log_odds=1.0)
    null = np.linspace(0.8, 1.2, 200)
    far, some = np.full(100, 2.0), np.full(40, 2.0)
    assert calibrate.extend(found, rest, far, null, 200) is found
    joined = calibrate.extend(found, rest[:40], some, null, 200)
    np.testing.assert_array_equal(joined.rows, np.arange(140))


@pytest.mark.parametrize("second", ["mixture", "whitening"])
def test_of_two_halves_of_a_class_one_is_flagged(second):
    """Either half is odd to some detector; a mode names the side, or the one farther from home."""
    first = group(rows=range(100), share=0.5)
    other = group(second, rows=range(100, 200), share=0.5)
    checks = [DIRTY, DIRTY._replace(home=2.0)]
    assert all(grouping.is_confirmed(g, c, 10) for g, c in zip([first, other], checks, strict=True))
    (found,) = calibrate.find([first, other], checks, num_classes=10, fdr=0.05)
    expected = other.rows if second == "whitening" else first.rows
    np.testing.assert_array_equal(found.rows, expected)
    small = [group(rows=range(40), share=0.2), group(second, rows=range(100, 140), share=0.2)]
    (found,) = calibrate.find(small, checks, num_classes=10, fdr=0.05)
    assert len(found.rows) == 80


def test_a_part_of_the_poison_does_not_hide_the_rest_of_it():
    """Two thirds of a class: one detector finds all of it, one the part that is farthest off."""
    parts = [
        group(rows=range(134), share=0.67),
        group(rows=range(40), share=0.2),
        group(rows=range(134, 164), share=0.15),
    ]
    checks = [DIRTY, DIRTY._replace(home=3.0), DIRTY]
    (found,) = calibrate.find(parts, checks, num_classes=10, fdr=0.05)
    np.testing.assert_array_equal(found.rows, np.arange(134))


def test_copies_are_on_either_side():
    copies = group("duplicates", rows=range(10), share=0.05, hint="duplicates", log_odds=None)
    mode = group("whitening", rows=range(40, 195), share=0.775)
    checks = [DIRTY._replace(home=9.0), DIRTY]
    (found,) = calibrate.find([copies, mode], checks, num_classes=10, fdr=0.05)
    np.testing.assert_array_equal(found.rows, [*range(10), *range(40, 195)])
