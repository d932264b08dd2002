"""`jaxpoison explain`: which rows the prediction of one row comes from."""

from __future__ import annotations

import argparse
from typing import Any

from jaxpoison._check import UsageError
from jaxpoison.cli import scan

MAX_TOP = 100

_EXAMPLES = """\
scores are the predicted change of the row's loss, in nats, when another row is removed:
positive for helpful rows, negative for harmful ones.

examples:
  jaxpoison explain train.npz --row 17 --out why
  jaxpoison explain images.npy --labels labels.npy --features embeddings.npy --row 17 --out why
"""


def add_parser(commands: Any) -> None:
    """Adds the subcommand to argparse's subparsers."""
    parser = commands.add_parser(
        "explain",
        help="list the rows behind one prediction",
        description="Lists the rows that most help and most harm the prediction of one row.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("data", metavar="DATA", help="the dataset: a file, a folder, or sklearn:digits")
    add("--row", metavar="I", type=_row, help="number of the row to explain, counted from 0")
    add("--out", metavar="DIR", help="new or empty folder for the explanation")
    add("--labels", metavar="FILE", help="labels, where DATA does not hold them")
    add("--features", metavar="FILE", help="one row of features for each row of DATA")
    add("--top", metavar="K", type=_top, help="rows to list of each kind (default: 8)")
    add("--seed", metavar="N", type=scan.seed, help="seed of the training (default: 0)")
    add("--budget-mb", metavar="M", type=scan.budget_mb, help="memory to use, in megabytes")
    add("--drop-nonfinite", action="store_true", help="leave out rows with NaN or infinity")
    add("--quiet", action="store_true", help="print errors only")
    add("--debug", action="store_true", help="print a traceback after an error")


def run(args: argparse.Namespace) -> int:
    """Explains one prediction; returns the exit status, 0."""
    from jaxpoison.cli import output
    from jaxpoison.cli.progress import show_progress
    from jaxpoison.report import check_out_dir

    if args.row is None:
        raise UsageError("--row is missing; give the number of the row to explain")
    if args.out is None:
        raise UsageError("--out is missing; name a folder for the explanation")
    check_out_dir(args.out)
    options = {"top": args.top, "seed": args.seed, "budget_mb": args.budget_mb}
    given = {name: value for name, value in options.items() if value is not None}
    from jaxpoison import scanning

    with show_progress(quiet=args.quiet) as progress:
        found = scanning.explain(
            args.data, args.labels, row=args.row, features=args.features,
            drop_nonfinite=args.drop_nonfinite, progress=progress, **given,
        )  # fmt: skip
    found.write(args.out)
    if not args.quiet:
        output.emit(found.summary())
        output.emit(f"explanation: {scan.html_path(args.out, 'explanation.html')}")
    return 0


def _row(text: str) -> int:
    return scan.integer(text, 0, None)


def _top(text: str) -> int:
    return scan.integer(text, 1, MAX_TOP)
