"""`jaxpoison evaluate`: measure every detector against attacks with known truth."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from jaxpoison._check import MAX_SEED, UsageError

if TYPE_CHECKING:
    from jaxpoison.evaluate.measure import Task

FAILED, NOTHING = 2, 3
_MOST_SEEDS = 1000

_EXAMPLES = """\
examples:
  jaxpoison evaluate --suite quick --out evaluation
  jaxpoison evaluate --suite full --sets digits --attacks patch,clean --seeds 0-4 --out evaluation
  jaxpoison evaluate --suite full --data train.npz --seeds 0 --out evaluation
  jaxpoison evaluate --suite full --out evaluation --isolate --docs docs/evaluation.md

A run that was stopped is taken up by the same command: what has a record in DIR is not run again.
"""


def add_parser(commands: Any) -> None:
    """Adds the subcommand to argparse's subparsers."""
    parser = commands.add_parser(
        "evaluate",
        help="measure the detectors against known attacks",
        description="Poisons real data sets in known ways, scans them with no hint, and measures "
        "what was found, what was flagged wrongly, and what retraining without the flags brings. "
        "Exit status: 0 if cases were measured, 2 if one failed, 3 if all were refused.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("--suite", metavar="NAME", default="quick", help="quick (default), full, or a JSON file")
    add(
        "--data", metavar="DATA", help="your own dataset in place of the suite's, named as for scan"
    )
    add("--labels", metavar="FILE", help="labels of --data, where it does not hold them")
    add("--out", metavar="DIR", help="folder of the records and tables; may hold an earlier run")
    add("--sets", metavar="A,B", type=names, help="only these sets of the suite")
    add("--attacks", metavar="A,B", type=names, help="only these attacks or cases; clean for none")
    add("--seeds", metavar="N", type=seeds, help="in place of the suite's: 0,1,2 or 0-4")
    add("--rows", metavar="N", type=rows, help="training rows of each set, at most")
    add("--no-retrain", action="store_true", help="train no network on what the flags leave")
    add("--isolate", action="store_true", help="one process a case: tells its peak memory")
    add("--render", action="store_true", help="run nothing; write the tables of what is there")
    add("--docs", metavar="FILE", help="write the tables there too, as Markdown")
    add("--quiet", action="store_true", help="print errors only")
    add("--debug", action="store_true", help="print a traceback after an error")


def run(args: argparse.Namespace) -> int:
    """Runs what has no record yet and writes the tables; returns the exit status."""
    from jaxpoison.cli import output

    if args.out is None:
        raise UsageError("--out is missing; name a folder for the records and the tables")

    from jaxpoison.evaluate import run_suite
    from jaxpoison.report._text import visible

    document = run_suite(
        args.suite,
        args.out,
        data=args.data,
        labels=args.labels,
        set_names=args.sets,
        attacks=args.attacks,
        seeds=args.seeds,
        rows=args.rows,
        retrain=not args.no_retrain,
        isolate=args.isolate,
        render_only=args.render,
        docs=args.docs,
        progress=None if args.quiet else Teller(),
    )
    failed = [each for each in document["not_done"] if each["status"] == "failed"]
    for each in failed:
        output.complain(
            f"jaxpoison: failed: {each['set']}, {each['case']}, seeds {each['seeds']}: "
            f"{each['reason']}"
        )
    if not args.quiet:
        output.emit(f"tables: {visible(args.out, 1000)}/evaluation.html")
    if not document["clean"] and not document["poisoned"] and not failed:
        output.complain("jaxpoison: nothing was measured: every case was refused")
        return NOTHING
    return FAILED if failed else 0


class Teller:
    """One plain line on standard error as each case ends, with the time that is left."""

    def __init__(self) -> None:
        self._ran, self._started = 0, time.monotonic()

    def __call__(self, done: int, total: int, task: Task, record: dict[str, Any] | None) -> None:
        """Takes in the start of a case (no record) or its end."""
        from jaxpoison.cli.output import complain
        from jaxpoison.cli.progress import clock_time

        if record is None:
            return
        self._ran += 1
        left = (time.monotonic() - self._started) / self._ran * (total - done)
        what = f"{task.spec.name}, {task.case.name}, seed {task.seed}"
        complain(
            f"jaxpoison: {done} of {total}: {what}: {outcome(record)}"
            + (f", {clock_time(left)} left" if total > done else "")
        )


def outcome(record: dict[str, Any]) -> str:
    """A record in a few words."""
    if record["status"] != "done":
        return f"{record['status']} ({record['reason']})"
    fused = record["scores"].get("fused")
    words = [record["verdict"]]
    words += [f"AUROC {fused['auroc']:.3f}"] if fused else []
    words += [f"{record['flags']['fpr']:.2%} false alarms"] if record["flags"]["fpr"] else []
    return ", ".join([*words, f"{sum(s for s in record['seconds'].values() if s):.0f} s"])


def names(text: str) -> tuple[str, ...]:
    """Parses --sets and --attacks."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"no name in {text!r}")
    return tuple(dict.fromkeys(found))


def seeds(text: str) -> tuple[int, ...]:
    """Parses --seeds: numbers and ranges, such as 0,1,2 or 0-4."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            low, high = int(first), int(last if dash else first)
        except ValueError:
            low, high = 0, -1
        if not 0 <= low <= high <= MAX_SEED or high - low >= _MOST_SEEDS:
            raise argparse.ArgumentTypeError(
                f"must be whole numbers from 0 on, such as 0,1,2 or 0-4; got {text!r}"
            )
        found += range(low, high + 1)
    return tuple(dict.fromkeys(found))


def rows(text: str) -> int:
    """Parses --rows."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1; got {text!r}")
    return value
