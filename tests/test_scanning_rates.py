"""What the forecast is made of: every detector has a rate, and more work is never cheaper."""

from __future__ import annotations

import pytest

from jaxpoison._types import DEFAULT_DETECTORS, DETECTOR_NAMES, OF_GRADIENTS
from jaxpoison.scanning.rates import RATES, score_seconds, train_seconds


def test_every_detector_has_a_rate():
    assert set(RATES) == set(DETECTOR_NAMES)
    assert all(rate.fixed > 0 and rate.row >= 0 and rate.pair >= 0 for rate in RATES.values())


def test_more_work_takes_longer():
    sizes = (0, 100, 10_000, 60_000, 10**6, 10**7)
    times = [score_seconds(DEFAULT_DETECTORS, n) for n in sizes]
    assert times == sorted(times) and times[0] > 0
    for names in ((), ("mixture",), DEFAULT_DETECTORS):
        assert score_seconds([*names, "user:mine"], 1000) > score_seconds(names, 1000)
    assert score_seconds(DETECTOR_NAMES, 1000) > score_seconds(DEFAULT_DETECTORS, 1000)
    # neighbours are sought among 65,536 rows at the most: from there on time grows with the rows
    assert times[-1] < 11 * times[-2]


@pytest.mark.parametrize(
    ("rows", "measured"), [(2000, 28.5), (12_000, 34.0), (20_000, 39.4), (60_000, 92.1)]
)
def test_the_rates_tell_what_was_measured(rows, measured):
    run = [name for name in DEFAULT_DETECTORS if name not in OF_GRADIENTS]  # of features
    assert score_seconds(run, rows) == pytest.approx(measured, rel=0.15)


def test_training():
    images = train_seconds(100_000, "images", 784)
    assert images == pytest.approx(23.0)
    assert train_seconds(100_000, "images", 3072) > images > train_seconds(100_000, "rows", 784)
    assert train_seconds(0, "rows", 5) == train_seconds(0, "images", 784)
