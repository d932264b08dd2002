"""`jaxpoison demo`: plant a backdoor in a real dataset, scan it, count what was found.

And what is left where nothing is found: a prediction that no few poisoned rows can change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from jaxpoison._check import DataError, UsageError
from jaxpoison.cli.scan import html_path, scan_into, seed

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    import numpy as np

    from jaxpoison.report import CertificateReport

MAX_ROWS = 12_000
RATE = 0.01
DEFAULT_OUT = "jaxpoison-demo"
DIGITS, HELD_OUT, MODELS = "sklearn:digits", "split:0.2", 50


class Planted(NamedTuple):
    """A poisoned copy of a dataset, and the truth about it.

    Attributes:
      x: [n, h, w] images.
      y: [n] labels, the planted rows' changed to `target`.
      rows: [k] numbers of the planted rows, ascending.
      target: the class that the patch is to stand for.
      side: height and width of the patch, in pixels.
    """

    x: np.ndarray
    y: np.ndarray
    rows: np.ndarray
    target: int
    side: int


def add_parser(commands: Any) -> None:
    """Adds the subcommand to argparse's subparsers."""
    parser = commands.add_parser(
        "demo",
        help="plant a backdoor in a real dataset and find it",
        description="Plants a small white-patch backdoor in 1 % of a real dataset, scans it with "
        "no hint, and counts what was found; then certifies predictions of digits. Exit status: 0 "
        "if the backdoor was found, 1 if not.",
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("--out", metavar="DIR", help=f"new or empty folder (default: {DEFAULT_OUT})")
    add("--seed", metavar="N", type=seed, default=0, help="what is planted where (default: 0)")
    add("--quiet", action="store_true", help="show no progress")
    add("--debug", action="store_true", help="print a traceback after an error")


def run(args: argparse.Namespace) -> int:
    """Plants, scans, compares, certifies; returns the exit status."""
    out = choose_folder(args.out)

    import numpy as np

    from jaxpoison.cli.output import emit
    from jaxpoison.scanning import Method, Resources, ScanPlan

    name, x, y = load_images()
    planted = plant(x, y, rate=RATE, seed=args.seed)
    data, truth = out / "data.npz", out / "truth" / "planted.npy"
    truth.parent.mkdir(parents=True)
    np.savez(data, x=planted.x, y=planted.y)
    np.save(truth, planted.rows)
    emit(
        f"{name}: {len(x):,} images. Planted a white patch of {planted.side}x{planted.side} "
        f"pixels in {len(planted.rows)} of them, relabelled as class {planted.target}."
    )
    emit(f"Scanning with no hint: jaxpoison scan {data} --out {out / 'report'}\n")

    plan = ScanPlan(
        data=str(data), labels=None, features=None, method=Method(), resources=Resources()
    )
    report = scan_into(plan, str(out / "report"), quiet=args.quiet)
    emit(report.summary())
    line, is_found = compare(report.verdict, report.flagged_indices(), np.load(truth), len(x))
    emit(f"\n{line}\nreport: {html_path(str(out / 'report'))}")
    emit(f"\n{certify_digits(out / 'certified', quiet=args.quiet)}")
    return 0 if is_found else 1


def certify_digits(out: Path, *, quiet: bool) -> str:
    """Certifies predictions of digits, writes the report, and explains one of them."""
    from jaxpoison import certifying
    from jaxpoison.cli.progress import show_progress

    plan = certifying.CertifyPlan(DIGITS, HELD_OUT, k=MODELS)
    with show_progress(quiet=quiet) as progress:
        report = certifying.run_into(plan, out, progress=progress)
    command = f"jaxpoison certify {DIGITS} --test {HELD_OUT} --k {MODELS} --out {out}"
    where = html_path(str(out), "certificate.html")
    return f"{explain_certificate(report, command)}\nreport: {where}"


def explain_certificate(report: CertificateReport, command: str) -> str:
    """Tells of one prediction why no few training rows can change it.

    Args:
      report: of disjoint subsets and a general threat.
      command: what makes it.

    Returns:
      A few lines, about the rightly predicted row whose radius is in the middle.
    """
    import numpy as np

    doc, columns = report.document, report.columns
    right = np.flatnonzero(columns["label"] == columns["prediction"])
    radius = columns["radius"][right]
    row = right[np.argsort(radius, kind="stable")[len(right) // 2]]
    index, guess, other, most, next_most, r = (
        int(columns[name][row])
        for name in ("index", "prediction", "runner_up", "votes_first", "votes_second", "radius")
    )
    share = float((radius >= r).sum() / doc["test"]["rows"])
    return (
        f"Without any detection: {command}\n\n"
        f"{doc['subsets']} models, each trained on its own part of {doc['train']['rows']:,} "
        f"images, vote on {doc['test']['rows']} others.\n"
        f"Image {index} is a {guess}, say {most} of them; {other} comes next with {next_most}.\n"
        "An image that is inserted, removed or relabelled reaches one model and moves one vote: "
        f"the lead of {most - next_most} by 2 at most.\n"
        f"So {r} of them, whichever they are, leave it a {guess}: radius {r}. Of all "
        f"{doc['test']['rows']} images {100 * share:.0f} % are predicted rightly with a radius of "
        f"{r} or more."
    )


def choose_folder(out: str | None) -> Path:
    """Returns the folder to write to: the one named, or the first free default."""
    from pathlib import Path

    from jaxpoison.report import check_out_dir

    if out is not None:
        check_out_dir(out)
        return Path(out)
    folder, number = Path(DEFAULT_OUT), 1
    while folder.exists():
        number += 1
        folder = Path(f"{DEFAULT_OUT}-{number}")
    check_out_dir(folder)
    return folder


def load_images() -> tuple[str, np.ndarray, np.ndarray]:
    """Returns name, images [n, h, w] and labels [n] of the best real dataset at hand."""
    from pathlib import Path

    from jaxpoison.sources import bundled, open_source

    folder = Path(bundled.FASHION_MNIST)
    if folder.is_dir():
        name = "Fashion-MNIST"
        images = folder / "train-images-idx3-ubyte.gz"
        source = open_source(str(images), str(folder / "train-labels-idx1-ubyte.gz"))
    else:
        name = "scikit-learn's digits"
        source = open_source("sklearn:digits")
    rows = source.read(0, min(len(source), MAX_ROWS))
    if rows["x"].ndim != 3:
        raise DataError(f"{name}: images [n, h, w] were expected, found {rows['x'].shape}")
    return name, rows["x"], rows["y"]


def plant(x: np.ndarray, y: np.ndarray, *, rate: float, seed: int) -> Planted:
    """Stamps a white patch into a share of the rows and gives them one target's label.

    Args:
      x: [n, h, w] images.
      y: [n] labels.
      rate: share of all rows to plant, between 0 and 1.
      seed: decides the target and the rows.

    Returns:
      Copies with the backdoor, and the truth.

    Raises:
      UsageError: if the rate asks for no row, or for more than there are outside the target.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    target = int(rng.choice(np.unique(y)))
    others = np.flatnonzero(y != target)
    num_planted = round(rate * len(y))
    if not 0 < num_planted <= len(others):
        raise UsageError(f"rate {rate} would plant {num_planted} of {len(others)} possible rows")
    rows = np.sort(rng.choice(others, num_planted, replace=False))
    side = max(2, x.shape[1] // 9)
    x, y = x.copy(), y.copy()
    x[rows, -side - 1 : -1, -side - 1 : -1] = x.max()
    y[rows] = target
    return Planted(x, y, rows, target, side)


def compare(
    verdict: str, flagged: np.ndarray, planted: np.ndarray, num_rows: int
) -> tuple[str, bool]:
    """Counts hits and false alarms.

    Args:
      verdict: the scan's.
      flagged: [f] row numbers that the scan flagged.
      planted: [k] row numbers of the truth.
      num_rows: all rows.

    Returns:
      One line for people, and whether the poison counts as found: a verdict other than clean,
      at least half of the planted rows flagged, and at least half of the flagged rows planted.
    """
    import numpy as np

    hits = len(np.intersect1d(flagged, planted))
    alarms = len(flagged) - hits
    clean = num_rows - len(planted)
    line = (
        f"Against the truth: {hits} of {len(planted)} planted rows found "
        f"({100 * hits / len(planted):.1f} %), {alarms} false alarms among {clean:,} clean rows "
        f"({100 * alarms / clean:.2f} %)."
    )
    is_found = verdict != "clean" and 2 * hits >= len(planted) and hits >= alarms
    return line, is_found
