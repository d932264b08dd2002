"""The command line: `scan`, `explain`, `certify`, `demo`, `attack`, `evaluate`, `bench`, `doctor`.

One small file a subcommand, each with `add_parser` and `run`. Nothing heavy is imported before a
subcommand runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn

from jaxpoison import __version__
from jaxpoison._check import JaxpoisonError, NothingToScan, UsageError
from jaxpoison.cli import attack, bench, certify, demo, doctor, evaluate, explain, scan

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_FAILED = 2
EXIT_NOTHING = 3
EXIT_USAGE = 4
EXIT_INTERRUPTED = 130

_EPILOG = """\
exit status:
  0  no evidence of poison       1  suspicious or poisoned (bench: slower)
  2  failed                      3  nothing could be scanned or certified
  4  wrong usage                 130  interrupted
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse's own status, 2, already means that the run failed.
        _complain(f"{message} (see {self.prog} --help)")
        self.exit(EXIT_USAGE)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of every subcommand; `run` in its result is what to call."""
    parser = _Parser(
        prog="jaxpoison",
        description="Finds poison in training data: which rows, of what kind, how sure.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"jaxpoison {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (scan, explain, certify, demo, attack, evaluate, bench, doctor):
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: the arguments, without the program's name; the process's own by default.

    Returns:
      The exit status: 0 no evidence, 1 suspicious or poisoned, 2 failed, 3 nothing scanned
      or certified, 4 wrong usage, 130 interrupted.
    """
    from jaxpoison.cli import output

    output.make_lenient()
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:  # after --help, --version and wrong usage
        output.flush()
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    return _guarded(args)


def _guarded(args: argparse.Namespace) -> int:
    """Runs a subcommand; whatever goes wrong becomes one line and an exit status."""
    try:
        status: int = args.run(args)
        return status
    except KeyboardInterrupt:
        _complain("interrupted", prefix="jaxpoison")
        return _ended(args, EXIT_INTERRUPTED)
    except Exception as error:
        if args.debug:
            import traceback

            traceback.print_exc()
        _complain(_describe(error))
        return _ended(args, _status(error))


def _ended(args: argparse.Namespace, status: int) -> int:
    """The status of a failure; a process that runs together with others ends here."""
    if str(getattr(args, "engine", "")).startswith("spmd"):
        from jaxpoison.stream import leave_others

        leave_others(status)
    return status


def _status(error: Exception) -> int:
    if isinstance(error, UsageError):
        return EXIT_USAGE
    if isinstance(error, NothingToScan):
        return EXIT_NOTHING
    return EXIT_FAILED


def _describe(error: Exception) -> str:
    if isinstance(error, JaxpoisonError):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory; a smaller --budget-mb, or fewer --detectors, need less"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    name = type(error).__name__
    return f"unexpected {name}: {error} (--debug shows where; please report it)"


def _complain(message: str, *, prefix: str = "jaxpoison: error") -> None:
    from jaxpoison.cli import output

    output.complain(f"{prefix}: {message}")
