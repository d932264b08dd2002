"""`jaxpoison certify`: predictions that a bounded attack on the training data can not change."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from jaxpoison._check import UsageError
from jaxpoison.certifying.plan import DEFAULT_SPREAD, FEATURES, LEARNERS, SCHEMES, THREATS
from jaxpoison.cli import scan

if TYPE_CHECKING:
    from jaxpoison.certifying import CertifyPlan

EXIT_NOTHING = 3
MAX_DECIMALS = 15

_EXAMPLES = """\
examples:
  jaxpoison certify sklearn:digits --test split:0.2 --k 50 --out certified
  jaxpoison certify mnist.npz#train --test mnist.npz#test --k 1200 --out certified
  jaxpoison certify rows.parquet --test new.parquet --key client --k 100 --out certified
  jaxpoison certify train.npz --test split:0.2 --plan
"""


def add_parser(commands: Any) -> None:
    """Adds the subcommand to argparse's subparsers."""
    parser = commands.add_parser(
        "certify",
        help="predict with certificates against poisoned training data",
        description="Trains one small model on each of many parts of the data, lets them vote on\n"
        "test rows, and says for each how much of the data may be poison without changing\n"
        "the prediction. Exit status: 0 done, 2 failed, 3 nothing could be certified,\n"
        "4 wrong usage, 130 interrupted.",
        epilog=f"{_lines('schemes', SCHEMES)}\n{_lines('threats', THREATS)}\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("data", metavar="DATA", help="the training rows: a file, a folder, or sklearn:digits")
    add("--test", metavar="TEST", help="rows to predict, as DATA, or split:SHARE of DATA")
    add("--out", metavar="DIR", help="new or empty folder for the report")
    add("--labels", metavar="FILE", help="labels, where DATA does not hold them")
    add("--test-labels", metavar="FILE", help="labels of TEST, where it does not hold them")
    add("--scheme", choices=SCHEMES, default="dpa", help="see below (default: dpa)")
    add("--k", metavar="K", type=_at_least(1), help="partitions (default: by the number of rows)")
    add("--spread", metavar="D", type=_at_least(2), help=f"of fa (default: {DEFAULT_SPREAD})")
    add("--learner", metavar="L", choices=LEARNERS, default=LEARNERS[0], help=_one_of(LEARNERS))
    add("--features", metavar="F", choices=FEATURES, default=FEATURES[0], help=_one_of(FEATURES))
    add("--key", metavar="COLUMN", help="partition by this column of DATA, or by a .npy file")
    add("--window", metavar="W", type=_positive, help="the key is a time: windows of this length")
    add("--decimals", metavar="N", type=_decimals, help="round rows of floats to N digits to hash")
    add("--threat", choices=THREATS, help="see below (default: general, with --key keys)")
    add("--classes", metavar="C", type=_at_least(2), help="number of classes (default: of DATA)")
    add("--salt", metavar="TEXT", default="", help="secret key of the hash")
    add("--seed", metavar="N", type=scan.seed, default=0, help="of the split, mlp and cnn")
    add("--verify", action="store_true", help="refit some subsets and compare every bit")
    add("--engine", metavar="E", default="local", help="local (default), ray, ray://HOST:PORT")
    add("--resume", action="store_true", help="go on with a run that was cut off in DIR")
    add("--plan", action="store_true", help="print models, memory, time and radii to expect")
    add("--quiet", action="store_true", help="print errors only")
    add("--debug", action="store_true", help="print a traceback after an error")


def run(args: argparse.Namespace) -> int:
    """Certifies, or prints the forecast; returns the exit status."""
    from jaxpoison import certifying
    from jaxpoison.cli import output
    from jaxpoison.cli.progress import show_progress
    from jaxpoison.report import check_out_dir

    if args.test is None:
        raise UsageError("--test is missing; name the rows to predict, or give split:0.2")
    plan = make_plan(args)
    if args.plan:
        with show_progress(quiet=args.quiet) as progress:
            found = certifying.forecast(plan, progress=progress)
        output.emit(describe_forecast(found))
        return 0
    if args.out is None:
        raise UsageError("--out is missing; name a folder for the report, or add --plan")
    check_out_dir(args.out, resume=args.resume)
    try:
        with show_progress(quiet=args.quiet) as progress:
            report = certifying.run_into(
                plan,
                args.out,
                resume=args.resume,
                check=args.verify,
                progress=progress,
                engine=args.engine,
            )
    except KeyboardInterrupt:
        scan.tell_of_work(args.out)
        raise
    if not args.quiet:
        output.emit(report.summary())
        output.emit(f"report: {scan.html_path(args.out, 'certificate.html')}")
    if not report.document["certified"]:
        output.complain(
            "jaxpoison: nothing could be certified: no row has a radius of 1 or more; see the "
            "report, and try another k or learner"
        )
        return EXIT_NOTHING
    return 0


def make_plan(args: argparse.Namespace) -> CertifyPlan:
    """Builds the plan out of what was given."""
    from jaxpoison.certifying import CertifyPlan

    return CertifyPlan(
        data=args.data, test=args.test, labels=args.labels, test_labels=args.test_labels,
        scheme=args.scheme, k=args.k, spread=args.spread, learner=args.learner,
        features=args.features, key=args.key, window=args.window, decimals=args.decimals,
        threat=args.threat, classes=args.classes, salt=args.salt, seed=args.seed,
    )  # fmt: skip


def describe_forecast(found: dict[str, Any]) -> str:
    """Lays out a forecast as lines of name and value, and a line a k."""
    from jaxpoison.report._text import count, percent, seconds, visible

    took = "unknown" if found["seconds"] is None else seconds(found["seconds"])
    rows = [
        ("training rows", count(found["rows"])),
        ("test rows", count(found["tests"])),
        ("models", f"{count(found['subsets'])} (k = {count(found['k'])})"),
        ("rows of a model", f"{count(found['smallest'])} to {count(found['largest'])}"),
        ("memory, about", f"{found['bytes'] / 2**20:,.1f} MiB"),
        ("time, about", took),
    ]
    lines = [f"{name:<22}{value}" for name, value in rows]
    if found["profile"] is None:
        return "\n".join([*lines, f"no radii foretold: {visible(found['left_out'], 200)}"])
    lines.append("to expect, without spread or run-off:")
    lines += [
        f"  k = {each['k']:<6,} accuracy {percent(each['clean'])}, median radius {each['median']}, "
        + ", ".join(f"{percent(share)} at {radius}" for radius, share in each["radii"].items())
        for each in found["profile"]
    ]
    lines.append("choose k on rows you trust, or fix it beforehand: no certificate covers a choice")
    return "\n".join(lines)


def _lines(title: str, known: dict[str, str]) -> str:
    width = max(map(len, known)) + 2
    return "\n".join([f"{title}:", *(f"  {n:<{width}}{what}" for n, what in known.items()), ""])


def _one_of(names: tuple[str, ...]) -> str:
    return f"{', '.join(names)} (default: {names[0]})"


def _at_least(low: int) -> Any:
    return lambda text: scan.integer(text, low, None)


def _decimals(text: str) -> int:
    return scan.integer(text, 0, MAX_DECIMALS)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0; got {text!r}")
    return value
