"""Small images and rows for the tests of the red team, with gaps between the labels."""

from __future__ import annotations

import jax
import numpy as np

from jaxpoison.attacks import ATTACKS

LABELS = np.array([2, 3, 7, 11])
CHEAP = [name for name, attack in ATTACKS.items() if not attack.needs_model]
NEEDS_MODEL = [name for name, attack in ATTACKS.items() if attack.needs_model]
RATE = {name: 0.5 if attack.default_rate == 0.5 else 0.05 for name, attack in ATTACKS.items()}


def images(n=240, side=12, channels=None, top=255, seed=0):
    """Each class has a block of its own; the corner pixels of the patch stay dark."""
    rng = np.random.default_rng(seed)
    y = LABELS[rng.permutation(np.arange(n) % 4)]
    shape = (n, side, side) if channels is None else (n, side, side, channels)
    x = rng.integers(0, top // 3, shape)
    for k, label in enumerate(LABELS):
        x[y == label, 2 + k : 5 + k, 3:6] = 3 * top // 4
    x[0, 5, 5] = top
    return x.astype(np.uint8), y


def rows(n=240, d=9, seed=0):
    """Gaussian classes; the columns have unlike scales and one never changes."""
    rng = np.random.default_rng(seed)
    y = LABELS[rng.permutation(np.arange(n) % 4)]
    centres = rng.normal(size=(4, d))
    x = 2.0 * centres[np.searchsorted(LABELS, y)] + rng.normal(size=(n, d))
    x *= 10.0 ** rng.integers(-2, 3, d)
    x[:, 4] = 3.0
    return x.astype(np.float32), y


def inputs_for(name):
    """Data that an attack takes: images unless it needs rows."""
    return rows() if ATTACKS[name].needs == "rows" else images()


def run(name, x, y, *, seed=0, **options):
    """An attack at the rate that fits small data."""
    options.setdefault("rate", RATE[name])
    return ATTACKS[name].fn(x, y, key=jax.random.key(seed), **options)
