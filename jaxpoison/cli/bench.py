"""`jaxpoison bench`: how fast every kernel runs here, beside what this machine can do."""

from __future__ import annotations

import argparse
from typing import Any

REGRESSION = 1
FAILED = 2

_EXAMPLES = """\
examples:
  jaxpoison bench
  jaxpoison bench --size medium --out now.json --markdown kernels.md
  jaxpoison bench --only kmeans,silhouette --seconds 5
  jaxpoison bench --compare before.json
"""


def add_parser(commands: Any) -> None:
    """Adds the subcommand to argparse's subparsers."""
    parser = commands.add_parser(
        "bench",
        help="measure the throughput of the kernels",
        description="Times every public kernel, compilation apart, and measures in the same run "
        "how fast this machine copies memory and multiplies matrices. Prints a Markdown table. "
        "Exit status: 0, or 1 if --compare finds a kernel slower, 2 if a kernel failed.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("--size", choices=("small", "medium", "large"), default="small", help="of the workloads")
    add("--only", metavar="A,B", type=names, help="only these kernels")
    add("--seconds", metavar="N", type=seconds, default=1.0, help="of timed calls a kernel (1)")
    add("--out", metavar="FILE", help="write the figures there, as JSON")
    add("--markdown", metavar="FILE", help="write the table there too")
    add("--compare", metavar="FILE", help="JSON of an earlier run: what is slower now?")
    add("--quiet", action="store_true", help="no progress")
    add("--debug", action="store_true", help="print a traceback after an error")


def run(args: argparse.Namespace) -> int:
    """Measures, writes and compares; returns the exit status."""
    from jaxpoison.bench import files
    from jaxpoison.bench.compare import check_comparable, compare
    from jaxpoison.bench.run import run_bench
    from jaxpoison.bench.tables import render, render_comparison
    from jaxpoison.cli import output

    for name, path in (("--out", args.out), ("--markdown", args.markdown)):
        if path is not None:
            files.check_target(name, path)
    old = None if args.compare is None else files.load(args.compare)
    if old is not None:
        check_comparable(old, args.size)
    document = run_bench(
        size=args.size,
        only=args.only,
        seconds=args.seconds,
        baseline=old,
        progress=None if args.quiet else tell,
    )
    if args.out is not None:
        files.write(document, args.out)
    text, slower = render(document), 0
    if old is not None:
        comparison = compare(old, document, only=args.only)
        text += "\n" + render_comparison(comparison, level=2)
        slower = comparison["regressions"]
    if args.markdown is not None:
        files.write_text(text, args.markdown)
    output.emit(text.rstrip("\n"))
    failed = [record for record in document["kernels"] if record["status"] == "failed"]
    for record in failed:
        output.complain(f"jaxpoison: failed: {record['kernel']}: {record['reason']}")
    return FAILED if failed else REGRESSION if slower else 0


def tell(done: int, total: int, record: dict[str, Any]) -> None:
    """One plain line on standard error as each kernel ends."""
    from jaxpoison.bench.tables import duration
    from jaxpoison.cli.output import complain

    if record["status"] == "failed":
        what = f"failed ({record['reason']})"
    else:
        compiling = duration(record["trace_seconds"] + record["compile_seconds"])
        median = duration(record["wall"]["median"])
        what = f"{median} x {record['repeats']}, compiled in {compiling}"
    complain(f"jaxpoison: {done} of {total}: {record['kernel']}: {what}")


def names(text: str) -> tuple[str, ...]:
    """Parses --only."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"no name in {text!r}")
    return tuple(dict.fromkeys(found))


def seconds(text: str) -> float:
    """Parses --seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 3600; got {text!r}")
    return value
