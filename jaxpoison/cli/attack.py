"""`jaxpoison attack`: poison a dataset in a known way, and keep the truth apart."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpoison._check import JaxpoisonError, UsageError
from jaxpoison.cli.scan import seed

if TYPE_CHECKING:
    import numpy as np

    from jaxpoison.attacks import Poisoned

_ENDING = ".npz"
_OPTIONS = frozenset({"rate", "target", "source", "seed"})
_DIGITS = 10  # of a class number, at most

_EXAMPLES = """\
examples:
  jaxpoison attack --list
  jaxpoison attack patch train.npz --rate 0.01 --target 3 --out poisoned.npz
  jaxpoison attack blend sklearn:digits --set alpha=0.3 --out poisoned.npz

poisoned.npz holds x and y, what a defender sees; poisoned.truth.npz beside it holds what was done.
"""


def add_parser(commands: Any) -> None:
    """Adds the subcommand to argparse's subparsers."""
    parser = commands.add_parser(
        "attack",
        help="poison a dataset in a known way, to test defences",
        description="Writes a poisoned copy of a dataset, and apart from it which rows are "
        "poisoned. Exit status: 0 if it was written.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("name", metavar="NAME", nargs="?", help="the attack; --list tells which there are")
    add("data", metavar="DATA", nargs="?", help="the dataset: a file, a folder, or sklearn:digits")
    add("--out", metavar="FILE.npz", help="where to write; the truth goes to FILE.truth.npz")
    add("--labels", metavar="FILE", help="labels, where DATA does not hold them")
    add("--rate", metavar="R", type=rate, help="share of rows to poison (default: the attack's)")
    add("--target", metavar="T", help="class the attacker wants, number or name (default: drawn)")
    add("--source", metavar="S", help="class the attack works on (default: drawn)")
    add("--seed", metavar="N", type=seed, default=0, help="seed of everything random (default: 0)")
    add(
        "--set",
        metavar="KEY=VALUE",
        dest="settings",
        action="append",
        type=setting,
        default=[],
        help="a setting of the attack, such as size=4; may be repeated",
    )
    add("--list", action="store_true", help="print the attacks and their settings; write nothing")
    add("--json", action="store_true", help="print JSON")
    add("--force", action="store_true", help="overwrite files that exist")
    add("--quiet", action="store_true", help="print errors only")
    add("--debug", action="store_true", help="print a traceback after an error")


def run(args: argparse.Namespace) -> int:
    """Poisons and writes, or lists; returns the exit status."""
    from jaxpoison.cli.output import emit

    if args.list:
        emit(json.dumps(listing(), indent=2) if args.json else describe(listing()))
        return 0
    if args.name is None or args.data is None:
        raise UsageError("NAME or DATA is missing; name an attack (--list) and a dataset")
    out, truth = choose_files(args.out, force=args.force)

    from jaxpoison.attacks.by_name import check_settings, known_name
    from jaxpoison.sources import open_source, require_labels

    known_name(args.name)  # before a dataset is read for it
    settings = dict(args.settings)
    for each in sorted(_OPTIONS & set(settings)):
        raise UsageError(f"--set {each}={settings[each]!r}; give it as --{each}")
    check_settings(args.name, settings)
    source = open_source(args.data, args.labels)
    y, names = require_labels(source), source.schema.class_names
    args.target = class_number("--target", args.target, names)
    args.source = class_number("--source", args.source, names)
    x = source.read(0, len(source))["x"]
    poisoned = attack(args, x, y)
    facts = {
        "attack": args.name,
        "kind": poisoned.kind,
        "target": poisoned.target,
        "source": poisoned.source,
        "class_names": names,
        "params": poisoned.params,
    }
    save(poisoned, facts, out, truth)
    summary = summarise(poisoned, facts, out, truth) | {"unchanged": unchanged(poisoned, x)}
    if args.json:
        emit(json.dumps(summary, indent=2))
    elif not args.quiet:
        emit(sentence(summary))
    return 0


def attack(args: argparse.Namespace, x: np.ndarray, y: np.ndarray) -> Poisoned:
    """Runs the attack that was asked for, with progress shown where it trains a network."""
    from jaxpoison.attacks import poison
    from jaxpoison.cli.progress import show_progress

    options = {"rate": args.rate, "target": args.target, "source": args.source}
    settings = dict(args.settings)
    try:
        with show_progress(quiet=args.quiet or args.json) as progress:
            return poison(args.name, x, y, **options, seed=args.seed, progress=progress, **settings)
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, JaxpoisonError) or not settings:
            raise
        given = ", ".join(f"{key}={value!r}" for key, value in settings.items())
        raise UsageError(
            f"--set {given}: of a wrong type or value ({error}); --list shows the defaults"
        ) from error


def choose_files(out: str | None, *, force: bool) -> tuple[Path, Path]:
    """Where the data and the truth go; changes nothing on disk.

    Args:
      out: the file asked for.
      force: whether files may be overwritten.

    Returns:
      The two paths.

    Raises:
      UsageError: if it is missing, has another ending, exists, or its folder does not.
    """
    if not out:
        raise UsageError("--out is missing; name a file such as poisoned.npz")
    path = Path(out)
    if path.suffix != _ENDING or path.stem.endswith(".truth"):
        raise UsageError(f"--out is {out!r}; give a name that ends with .npz, not .truth.npz")
    if not path.parent.is_dir():
        raise UsageError(f"--out is {out!r}; the folder {str(path.parent)!r} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"--out is {out!r}; the folder {str(path.parent)!r} can not be written to")
    truth = path.with_name(f"{path.stem}.truth{_ENDING}")
    for each in (path, truth):
        if each.is_dir():
            raise UsageError(f"{str(each)!r} is a folder; choose another --out")
        if each.exists() and not force:
            raise UsageError(f"{str(each)!r} exists; choose another --out, or add --force")
    return path, truth


def class_number(option: str, given: str | None, names: tuple[str, ...] | None) -> int | None:
    """The number of a class that was named by its number, or by its name where the data has names.

    Raises:
      UsageError: it is neither.
    """
    if given is None:
        return None
    is_number = given.isascii() and given.isdigit() and len(given) < _DIGITS
    named = names.index(given) if names is not None and given in names else None
    if is_number and named is not None and named != int(given):
        raise UsageError(
            f"{option} is {given!r}, which is the name of class {named} and the number of another; "
            f"give {option} {named} with labels that are numbers"
        )
    if named is not None:
        return named
    if is_number:
        return int(given)
    from jaxpoison.sources.base import listing as shown

    known = f", or one of {shown(list(names))}" if names is not None else ""
    raise UsageError(f"{option} is {given!r}; give a class number from 0{known}")


def save(poisoned: Poisoned, facts: dict[str, Any], out: Path, truth: Path) -> None:
    """Writes both files under temporary names and renames them, the truth first.

    Raises:
      OutputError: if they can not be written there.
    """
    import numpy as np

    from jaxpoison.report.files import OutputError

    arrays = {
        truth: {
            "mask": poisoned.mask,
            "cover": poisoned.cover,
            "origin": poisoned.origin,
            "y_true": poisoned.y_true,
            "params": np.array(json.dumps(facts)),  # text: an object would be a pickle
        },
        out: {"x": poisoned.x, "y": poisoned.y},
    }
    written: list[tuple[Path, Path]] = []
    try:
        for path, content in arrays.items():
            part = path.with_name(f".{path.name}.{os.getpid()}.part")
            written.append((part, path))
            with open(part, "wb") as file:
                np.savez(file, **content)  # type: ignore[arg-type]
        for part, path in written:
            os.replace(part, path)
    except OSError as error:
        raise OutputError(
            f"--out is {str(out)!r}: it can not be written ({error.strerror or error}); choose "
            "another place"
        ) from error
    finally:
        for part, _ in written:
            with contextlib.suppress(FileNotFoundError):
                part.unlink()


def summarise(poisoned: Poisoned, facts: dict[str, Any], out: Path, truth: Path) -> dict[str, Any]:
    """What was done, as JSON has it."""
    return {
        **facts,
        "rows": len(poisoned.y),
        "poisoned": int(poisoned.mask.sum()),
        "cover": int(poisoned.cover.sum()),
        "out": str(out),
        "truth": str(truth),
    }


def unchanged(poisoned: Poisoned, x: np.ndarray) -> int:
    """Poisoned rows that are what they were: no detector can find them."""
    from jaxpoison.attacks._checks import num_same

    rows = poisoned.mask & (poisoned.y == poisoned.y_true)
    return num_same(x[poisoned.origin[rows]], poisoned.x[rows])


def sentence(summary: dict[str, Any]) -> str:
    """A summary for people."""
    from jaxpoison.report._text import visible

    rows, bad = summary["rows"], summary["poisoned"]
    parts = [f"{summary['attack']}: {bad:,} of {rows:,} rows poisoned ({100 * bad / rows:.2f} %)"]
    same = summary["unchanged"]
    parts += [f"{same:,} of them as they were, label and inputs"] if same else []
    parts += [f"{summary['cover']:,} cover rows"] if summary["cover"] else []
    names = summary["class_names"] or ()
    for key in ("target", "source"):
        if summary[key] is not None:
            name = f" ({visible(names[summary[key]], 40)})" if names else ""
            parts.append(f"{key} {summary[key]}{name}")
    paths = [f"{key}: {visible(Path(summary[key]), 1000)}" for key in ("out", "truth")]
    return "\n".join([", ".join(parts), *paths])


def listing() -> list[dict[str, Any]]:
    """Every attack with its settings, as JSON has it."""
    from jaxpoison.attacks import ATTACKS, settings_of

    return [
        {
            "name": each.name,
            "kind": each.kind,
            "needs": each.needs,
            "needs_model": each.needs_model,
            "default_rate": each.default_rate,
            "about": each.about,
            "settings": settings_of(each.name),
        }
        for each in ATTACKS.values()
    ]


def describe(attacks: list[dict[str, Any]]) -> str:
    """A table for people."""
    lines = [f"{'NAME':<23}{'KIND':<15}{'INPUTS':<8}{'RATE':<7}WHAT IT DOES"]
    for each in attacks:
        about = each["about"] + (" (trains a network)" if each["needs_model"] else "")
        known = ", ".join(f"{key}={_text(value)}" for key, value in each["settings"].items())
        lines.append(
            f"{each['name']:<23}{each['kind']:<15}{each['needs']:<8}{each['default_rate']:<7}{about}"
        )
        lines += [f"{'':<23}--set {known}"] if known else []
    return "\n".join(lines)


def rate(text: str) -> float:
    """Parses --rate."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(
            f"must be a number above 0 and at most 1, such as 0.01; got {text!r}"
        )
    return value


def setting(text: str) -> tuple[str, Any]:
    """Parses --set: a value is JSON where it can be read so, and text where not."""
    key, equals, value = text.partition("=")
    if not (equals and key.strip().isidentifier()):
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE, such as size=4; got {text!r}")
    try:
        return key.strip(), json.loads(value)
    except ValueError:
        return key.strip(), value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
