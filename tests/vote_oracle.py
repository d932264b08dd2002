"""What certificates are measured against: brute force over all votes, and plain Python in integers.

Written from the definitions and the published recursions, one row at a time, without arrays.
"""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np

from jaxpoison.certify._types import Design
from jaxpoison.certify.votes import Votes


def design(cells, shifts=(0,), covers="inputs"):
    return Design(cells // len(shifts), len(shifts), tuple(shifts), covers)


def votes_of_profiles(states, choices, classes, shifts=(0,)):
    """Votes of every profile at once: a test row is a profile.

    states: [v, m] index into choices; choices: orders of the classes, best first.
    """
    position = np.argsort(np.array(choices), axis=1).astype(np.uint8)
    first = np.array([c[0] for c in choices])
    ranking = position[states.T] if len(choices[0]) == classes else None
    members = states.shape[1]
    return Votes(first[states.T], np.arange(members), classes, design(members, shifts), ranking)


def all_profiles(members, classes, rankings):
    """Every profile of labels or of rankings: [len(choices) ** members, members] and choices."""
    choices = (
        list(itertools.permutations(range(classes))) if rankings else [(a,) for a in range(classes)]
    )
    grid = np.indices((len(choices),) * members, dtype=np.uint8)
    return grid.reshape(members, -1).T, choices


def exact_radii(predictions, members, choices, shifts=(0,)):
    """Fewest cells that change the prediction, less one, for every profile.

    predictions: [len(choices) ** members] of any function of the profile. A profile falls to a
    set of cells when a profile with another prediction agrees with it outside their subsets.
    """
    shape = (choices,) * members
    table = predictions.reshape(shape)
    radii = np.full(shape, members, np.int64)
    attacks = sorted(
        itertools.chain.from_iterable(
            itertools.combinations(range(members), r) for r in range(1, members + 1)
        ),
        key=len,
    )
    for touched in attacks:
        axes = tuple(sorted({(h + s) % members for h in touched for s in shifts}))
        low, high = table.min(axis=axes, keepdims=True), table.max(axis=axes, keepdims=True)
        falls = (low != table) | (high != table)
        radii = np.where(falls, np.minimum(radii, len(touched) - 1), radii)
    return radii.ravel()


def counts_of(labels, classes):
    return [labels.count(a) for a in range(classes)]


def elected(labels, classes):
    counts = counts_of(labels, classes)
    return max(range(classes), key=lambda a: (counts[a], -a))


def covered(weights, room):
    """Largest r for which the r largest weights add up to at most room; -1 for negative room."""
    if room < 0:
        return -1
    r, total = 0, 0
    for weight in sorted(weights, reverse=True):
        total += weight
        if total > room:
            break
        r += 1
    return r


def plurality_radius(labels, classes, shifts):
    """Definition over cells; with one shift this is the disjoint case."""
    m, counts, c = len(labels), counts_of(labels, classes), elected(labels, classes)
    radii = []
    for b in range(classes):
        if b != c:
            weights = [
                sum(1 + (labels[(h + s) % m] == c) - (labels[(h + s) % m] == b) for s in shifts)
                for h in range(m)
            ]
            radii.append(covered(weights, counts[c] - counts[b] - (b < c)))
    return min(radii)


@cache
def table(g1, g2):
    """Votes that bring two gaps to zero, by the published recursion."""
    g1, g2 = max(g1, 0), max(g2, 0)
    if g1 == 0 and g2 == 0:
        return 0
    return 1 + min(table(g1 - 2, g2 - 1), table(g1 - 1, g2 - 2))


def run_off_winner(rankings, classes):
    """rankings: orders of the classes, best first. Winner and the other finalist."""
    labels = [r[0] for r in rankings]
    counts = counts_of(labels, classes)
    a, b = sorted(range(classes), key=lambda x: (-counts[x], x))[:2]
    for_a = sum(r.index(a) < r.index(b) for r in rankings)
    a_wins = (for_a, -a) > (len(rankings) - for_a, -b)
    return (a, b) if a_wins else (b, a)


def run_off_parts(rankings, classes):
    counts = counts_of([r[0] for r in rankings], classes)
    c, s = run_off_winner(rankings, classes)

    def lead(a, b):
        return 0 if a == b else counts[a] - counts[b] + (b > a)

    def room(b):
        return 2 * sum(r.index(c) < r.index(b) for r in rankings) - len(rankings) + (b > c)

    return c, s, lead, room


def run_off_radius(rankings, classes):
    """Disjoint partitions, by the published recursion for the first round."""
    c, s, lead, room = run_off_parts(rankings, classes)
    rivals = [b for b in range(classes) if b != c]
    needed = [table(lead(c, a), lead(c, b)) for a, b in itertools.combinations(rivals, 2)]
    needed += [max((lead(s, b) + 1) // 2, (room(b) + 1) // 2, 0) for b in rivals]
    return min(needed) - 1


def spread_run_off_radius(rankings, classes, shifts):
    """Cells of d subsets: greedy counts in place of quotients."""
    c, s, lead, room = run_off_parts(rankings, classes)
    m, labels = len(rankings), [r[0] for r in rankings]
    rivals = [b for b in range(classes) if b != c]

    def cells(gap, weight):
        weights = [sum(weight((h + t) % m) for t in shifts) for h in range(m)]
        return covered(weights, gap - 1) + 1

    def passes(a, b):
        return cells(lead(a, b), lambda i: 1 + (labels[i] == a) - (labels[i] == b))

    def both(a, b):
        def weight(i):
            return 1 + 2 * (labels[i] == c) - (labels[i] in (a, b))

        return max(passes(c, a), passes(c, b), cells(lead(c, a) + lead(c, b), weight))

    def outruns(b):
        def weight(i):
            return 2 * (rankings[i].index(c) < rankings[i].index(b))

        return max(0 if b == s else passes(s, b), cells(room(b), weight))

    needed = [both(a, b) for a, b in itertools.combinations(rivals, 2)]
    return min(needed + [outruns(b) for b in rivals]) - 1


def exact_plurality_radius(labels, classes, shifts):
    """Every set of cells tried, each touched subset counted once."""
    m, counts, c = len(labels), counts_of(labels, classes), elected(labels, classes)
    for r in range(1, m + 1):
        for touched in itertools.combinations(range(m), r):
            subsets = {(h + s) % m for h in touched for s in shifts}
            for b in range(classes):
                moved = sum(1 + (labels[i] == c) - (labels[i] == b) for i in subsets)
                if b != c and moved > counts[c] - counts[b] - (b < c):
                    return r - 1
    return m


def top_k_radius(labels, classes, k, a, shifts):
    """Cell after cell, until some k rivals can all be brought before the class."""
    m, d, counts = len(labels), len(shifts), counts_of(labels, classes)
    held = sorted((sum(labels[(h + s) % m] == a for s in shifts) for h in range(m)), reverse=True)
    for r in range(m + 1):
        lost = min(counts[a], sum(held[:r]))
        for rivals in itertools.combinations([b for b in range(classes) if b != a], k):
            missing = [max(0, counts[a] - lost - counts[b] + (b > a)) for b in rivals]
            if sum(missing) <= min(d * r, m):
                return r - 1
    return m


def median_radius(values, low, high, shifts):
    """Cell after cell over both ends of the interval."""
    m = len(values)
    middle = (m - 1) // 2
    radii = []
    for hits, keep in (
        ([x <= high for x in values], middle),
        ([x >= low for x in values], m - 1 - middle),
    ):
        weights = [sum(hits[(h + s) % m] for s in shifts) for h in range(m)]
        radii.append(covered(weights, sum(hits) - keep - 1))
    return min(radii)
