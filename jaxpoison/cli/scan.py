"""`jaxpoison scan`: look for poison in a dataset."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from jaxpoison._check import MAX_SEED, UsageError
from jaxpoison._types import (
    ALL_DETECTORS,
    DEFAULT_DETECTORS,
    DETECTOR_NAMES,
    DETECTORS,
    USER_PREFIX,
)

if TYPE_CHECKING:
    from jaxpoison.report import Report
    from jaxpoison.scanning import ScanPlan

_WIDEST = max(map(len, DETECTORS)) + 2
_USER_LINE = f"    {'user:NAME':<{_WIDEST}}installed by another package under jaxpoison.detectors"

MIN_BUDGET_MB = 64

_EXAMPLES = """\
examples:
  jaxpoison scan train.npz --out report
  jaxpoison scan images.npy --labels labels.npy --features embeddings.npy --out report
  jaxpoison scan train.npz --trusted honest_rows.txt --out report
  jaxpoison scan train.npz --target odd_predictions.npz --out report
  jaxpoison scan train.parquet --plan
  jaxpoison scan train.npz --out report --resume
  jaxpoison scan /shared/train.npy --labels /shared/y.npy --out /shared/report --engine spmd
  jaxpoison scan /shared/train.npy --labels /shared/y.npy --out report --engine ray://head:10001
"""


def add_parser(commands: Any) -> None:
    """Adds the subcommand to argparse's subparsers."""
    parser = commands.add_parser(
        "scan",
        help="look for poison in a dataset",
        description="Looks for poisoned rows and writes a report.",
        epilog=f"{_detector_lines()}\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("data", metavar="DATA", help="the dataset: a file, a folder, or sklearn:digits")
    add("--out", metavar="DIR", help="new or empty folder for the report")
    add("--labels", metavar="FILE", help="labels, where DATA does not hold them")
    add("--features", metavar="FILE", help="one row of features for each row of DATA")
    add(
        "--detectors",
        metavar="A,B",
        type=detector_names,
        help="only these of the list below, all, or user:NAME (default: those marked *)",
    )
    add("--trusted", metavar="FILE", help="numbers of rows known to be honest, or a mask of them")
    add("--target", metavar="FILE", help="predictions to trace: .npz of inputs x and labels y")
    add("--seed", metavar="N", type=seed, help="seed of everything random (default: 0)")
    add("--fdr", metavar="Q", type=fdr, help="share of false alarms among the flagged rows")
    add("--budget-mb", metavar="M", type=budget_mb, help="memory the scan may use, in megabytes")
    add("--drop-nonfinite", action="store_true", help="leave out rows with NaN or infinity")
    add("--resume", action="store_true", help="go on with a scan that was cut off in DIR")
    add(
        "--engine", metavar="E", default="local", help="local (default), spmd, ray, ray://HOST:PORT"
    )
    add("--coordinator", metavar="HOST:PORT", help="of --engine spmd, where no cluster tells")
    add("--processes", metavar="N", type=_count, help="of --engine spmd, so many in all")
    add("--process", metavar="I", type=_number, help="of --engine spmd, this one, from 0")
    add("--plan", action="store_true", help="print rows, passes, memory and time; run nothing")
    add("--exit-zero", action="store_true", help="exit with 0 even if there is evidence of poison")
    add("--quiet", action="store_true", help="print errors only")
    add("--debug", action="store_true", help="print a traceback after an error")


def _detector_lines() -> str:
    lines = [
        f"  {'*' if name in DEFAULT_DETECTORS else ' '} {name:<{_WIDEST}}{what}"
        for name, what in DETECTORS.items()
    ]
    return "\n".join(["detectors (* runs by default):", *lines, _USER_LINE, ""])


def run(args: argparse.Namespace) -> int:
    """Scans, or prints the plan; returns the exit status."""
    from jaxpoison.cli import output
    from jaxpoison.cores import use_cores
    from jaxpoison.heap import keep_little
    from jaxpoison.report import check_out_dir

    engine = engine_name(args)
    if args.plan:
        from jaxpoison.scanning import forecast

        output.emit(describe_forecast(forecast(make_plan(args))))
        return 0
    if args.out is None:
        raise UsageError("--out is missing; name a folder for the report, or add --plan")
    is_one = not engine.startswith("spmd")
    if is_one:  # of several, the first one may be faster
        check_out_dir(args.out, resume=args.resume)
    keep_little()
    if engine == "local":  # where more processes run, each has a device
        use_cores()
    try:
        quiet = args.quiet or not (is_one or args.process == 0)
        plan = make_plan(args)
        report = scan_into(plan, args.out, quiet=quiet, resume=args.resume, engine=engine)
    except BaseException:  # an interrupt and a full disk alike
        if not args.resume:
            tell_of_work(args.out)
        raise
    if not args.quiet and (is_one or _is_first()):
        output.emit(report.summary())
        output.emit(f"report: {html_path(args.out)}")
    return 0 if report.verdict == "clean" or args.exit_zero else 1


def make_plan(args: argparse.Namespace) -> ScanPlan:
    """Builds the plan out of what was given; what was not keeps the scan's own default."""
    from jaxpoison.scanning import Method, Resources, ScanPlan

    method = {"detectors": args.detectors, "seed": args.seed, "fdr": args.fdr}
    if args.drop_nonfinite:
        method["drop_nonfinite"] = True
    return ScanPlan(
        data=args.data,
        labels=args.labels,
        features=args.features,
        trusted=args.trusted,
        target=args.target,
        method=Method(**_given(method)),
        resources=Resources(**_given({"budget_mb": args.budget_mb})),
    )


def scan_into(
    plan: ScanPlan, out: str, *, quiet: bool, resume: bool = False, engine: str = "local"
) -> Report:
    """Scans with progress shown, and writes the report into a folder."""
    from jaxpoison import scanning
    from jaxpoison.cli.progress import show_progress

    with show_progress(quiet=quiet) as progress:
        return scanning.run(plan, progress=progress, out=out, resume=resume, engine=engine)


def engine_name(args: argparse.Namespace) -> str:
    """The engine as ``scanning`` takes it, out of the options that say how processes meet.

    Raises:
        UsageError: Some of these options without the others, or without the engine they are of.
    """
    name: str = args.engine
    meeting = {"--coordinator": args.coordinator, "--processes": args.processes,
               "--process": args.process}  # fmt: skip
    given = [option for option, value in meeting.items() if value is not None]
    if not given:
        return name
    if name != "spmd" or len(given) < len(meeting):
        missing = [option for option in meeting if option not in given] or ["--engine spmd"]
        raise UsageError(f"{given[0]} needs {' and '.join(missing)} beside it; give all of them")
    if args.process >= args.processes:
        raise UsageError(
            f"--process: {args.process}; give 0 to {args.processes - 1}, of --processes "
            f"{args.processes}"
        )
    return f"spmd:{args.coordinator},{args.processes},{args.process}"


def tell_of_work(out: str) -> None:
    """Says that a run that was cut off can go on, if it can."""
    from pathlib import Path

    from jaxpoison.cli import output
    from jaxpoison.report.files import WORK_NAME

    if (Path(out) / WORK_NAME).is_dir():
        output.complain("jaxpoison: what was done is kept; add --resume to go on with it")


def _is_first() -> bool:
    from jaxpoison.stream import is_first_process

    return is_first_process()


def _count(text: str) -> int:
    return integer(text, 1, None)


def _number(text: str) -> int:
    return integer(text, 0, None)


def html_path(out: str, name: str = "report.html") -> str:
    """Returns the path of the page to open, fit to be printed."""
    from pathlib import Path

    from jaxpoison.report._text import visible

    return visible(Path(out) / name, 1000)


def describe_forecast(forecast: dict[str, Any]) -> str:
    """Lays out a forecast as lines of name and value."""
    from jaxpoison.report._text import count, seconds

    rows = [
        ("rows", count(forecast["rows"])),
        ("passes over the data", count(forecast["passes"])),
        ("device memory", f"{forecast['device_bytes'] / 2**20:,.1f} MiB"),
        ("time, about", seconds(forecast["seconds"])),
    ]
    return "\n".join(f"{name:<22}{value}" for name, value in rows)


def detector_names(text: str) -> tuple[str, ...]:
    """Parses --detectors; an unknown name is answered with the closest known one."""
    known = (*DETECTOR_NAMES, ALL_DETECTORS)
    listed = f"known: {', '.join(known)}, {USER_PREFIX}NAME"
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError(f"no name in {text!r}; {listed}")
    for name in names:
        is_user = name.startswith(USER_PREFIX) and name != USER_PREFIX
        if not is_user and name not in known:
            import difflib

            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise argparse.ArgumentTypeError(f"unknown detector {name!r}; {hint}{listed}")
    return tuple(dict.fromkeys(names))


def seed(text: str) -> int:
    """Parses --seed."""
    return integer(text, 0, MAX_SEED)


def budget_mb(text: str) -> int:
    """Parses --budget-mb."""
    return integer(text, MIN_BUDGET_MB, None)


def fdr(text: str) -> float:
    """Parses --fdr."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(
            f"must be a number between 0 and 1, both excluded, such as 0.05; got {text!r}"
        )
    return value


def integer(text: str, low: int, high: int | None) -> int:
    """Parses a whole number from low to high; None is no limit."""
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if value < low or (high is not None and value > high):
        most = "" if high is None else f", at most {high}"
        raise argparse.ArgumentTypeError(
            f"must be a whole number, at least {low}{most}; got {text!r}"
        )
    return value


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
