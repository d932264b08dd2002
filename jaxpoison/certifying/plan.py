"""What is to be certified, and how: a plan that JSON can hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from jaxpoison._check import MAX_SEED, UsageError

SCHEMES = {
    "dpa": "disjoint subsets, most votes (Levine and Feizi 2021)",
    "fa": "every row in D subsets, most votes (Wang, Levine and Feizi 2022)",
    "roe": "disjoint subsets, run-off election (Rezaei et al. 2023)",
    "fa+roe": "every row in D subsets, run-off election",
}
LEARNERS = ("kernel-ridge", "ridge", "class-mean", "neighbours", "mlp", "cnn")
FEATURES = (
    "auto", "pixels", "deskew", "scattering", "deskew+scattering", "hog", "deskew+hog",
)  # fmt: skip
THREATS = {
    "general": "rows inserted, deleted, relabelled and changed, in one attack",
    "flip": "labels changed, inputs trusted",
    "keys": "all rows of some keys, without limit (needs --key)",
}
DEFAULT_SPREAD = 16
SPLIT = "split:"

_LADDER = (10, 20, 50)
_ROWS_A_SUBSET = 30
_MOST_SALT = 64


@dataclass(frozen=True)
class CertifyPlan:
    """A run of certified prediction.

    Attributes:
        data: Training rows, as typed.
        test: Rows to predict, as typed, or ``split:SHARE`` of data.
        labels: Where the labels of data are, if not in it.
        test_labels: Where those of test are, if not in it.
        scheme: One of ``SCHEMES``.
        k: Partitions; None takes ``default_k`` of the number of training rows.
        spread: Subsets that a row lies in; None is 1, or ``DEFAULT_SPREAD`` for Finite Aggregation.
        learner: One of ``LEARNERS``.
        features: One of ``FEATURES``.
        key: Column that gives a row its cell, in place of its content.
        window: Length of a time window of the key column.
        decimals: Digits that rows of floats are rounded to before they are hashed.
        threat: One of ``THREATS``; None is "keys" with a key and "general" without.
        classes: Number of classes; None takes it from the labels of data.
        salt: Key of the hash.
        seed: Of the split and of learners that start at random.

    Raises:
        UsageError: Values that make no sense, alone or together.
    """

    data: str
    test: str
    labels: str | None = None
    test_labels: str | None = None
    scheme: str = "dpa"
    k: int | None = None
    spread: int | None = None
    learner: str = "kernel-ridge"
    features: str = "auto"
    key: str | None = None
    window: float | None = None
    decimals: int | None = None
    threat: str | None = None
    classes: int | None = None
    salt: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks what can be checked without the data."""
        for name, known in (
            ("scheme", SCHEMES), ("learner", LEARNERS), ("features", FEATURES),
            ("threat", THREATS),
        ):  # fmt: skip
            value = getattr(self, name)
            if value not in known and not (name == "threat" and value is None):
                raise UsageError(f"{name}: {value!r}; known: {', '.join(known)}")
        for name, least in (("k", 1), ("spread", 2), ("classes", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name}: {value}; give at least {least}")
        if not 0 <= self.seed <= MAX_SEED:
            raise UsageError(f"seed: {self.seed}; give 0 to {MAX_SEED}")
        if len(self.salt.encode()) > _MOST_SALT:
            raise UsageError(f"salt: {len(self.salt.encode())} bytes; give at most {_MOST_SALT}")
        self._check_pairs()

    def _check_pairs(self) -> None:
        if self.spread is not None and not self.is_spread:
            raise UsageError(
                f"spread: scheme {self.scheme!r} has disjoint subsets; leave it out, or take "
                f"{'fa+roe' if self.scheme == 'roe' else 'fa'}"
            )
        if self.key is None and (self.threat == "keys" or self.window is not None):
            what = "threat: 'keys'" if self.threat == "keys" else "window:"
            raise UsageError(f"{what} needs a key column; give it (--key, key=)")
        if self.window is not None and not 0 < self.window < float("inf"):
            raise UsageError(f"window: {self.window}; give the length of a window, above 0")
        if self.decimals is not None and self.key is not None:
            raise UsageError("decimals: rows are not hashed where a key column is; leave one out")
        if self.test.startswith(SPLIT):
            if self.test_labels is not None:
                raise UsageError(f"test_labels: {self.test} has the labels of data; leave it out")
            _share_of(self.test)

    @property
    def is_spread(self) -> bool:
        """Whether rows lie in several subsets."""
        return self.scheme.startswith("fa")

    @property
    def rule(self) -> str:
        """How votes are counted, as ``certify`` calls it."""
        return "run_off" if self.scheme.endswith("roe") else "plurality"

    @property
    def d(self) -> int:
        """Subsets that a row lies in."""
        return (self.spread or DEFAULT_SPREAD) if self.is_spread else 1

    @property
    def share(self) -> float | None:
        """Of the rows of data that are held out, None where test is a data set."""
        return _share_of(self.test) if self.test.startswith(SPLIT) else None

    def as_dict(self) -> dict[str, Any]:
        """The plan as reports hold it: of the salt only whether there is one."""
        return {**asdict(self), "salt": bool(self.salt)}


def default_k(rows: int) -> int:
    """Partitions where none are given: the largest of 10, 20, 50, 100, ... with 30 rows a subset.

    It hangs on the number of rows, and an attacker who inserts many can move it: a certificate
    speaks of the k it was made with.
    """
    most, scale, best = max(2, rows // _ROWS_A_SUBSET), 1, 2
    while _LADDER[0] * scale <= most:
        best = max(step * scale for step in _LADDER if step * scale <= most)
        scale *= 10
    return best


def _share_of(test: str) -> float:
    try:
        value = float(test.removeprefix(SPLIT))
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise UsageError(f"test: {test!r}; give split: and a share between 0 and 1, as split:0.2")
    return value
