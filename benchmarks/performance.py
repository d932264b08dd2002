"""The tables of docs/performance.md: the kernels' throughput, and beside their peers.

    python benchmarks/performance.py --torch-python a/bin/python --peers-python b/bin/python
    python benchmarks/performance.py --only norms,ekfac --threads 1 --records records.jsonl
    python benchmarks/performance.py --bench bench.json --render records.jsonl

Runs ``gradient_norms.py``, ``ekfac.py``, ``influence.py`` and ``lds.py`` in turn, keeps their
records, and writes every goal with the figure that was measured, reached or not. The peers need
environments of their own: torch, opacus, kronfluence and captum in one; dattri, pydvl and traker in
another. The first part of the page is the table of a run of ``jaxpoison bench --size medium --out
bench.json`` (``docs/bench.md``); without --bench the page keeps the one it has.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import table

_HERE = Path(__file__).resolve().parent
_SCRIPTS = {
    "norms": ("gradient_norms.py", "--torch-python"),
    "ekfac": ("ekfac.py", "--torch-python"),
    "influence": ("influence.py", "--peers-python"),
    "lds": ("lds.py", "--peers-python"),
}
_PARTS = ("mlp", "cnn", "cnn_max", "block", "tracin")
_TITLES = {
    ("gradient norms", "mlp"): "Gradient norms, MLP 784-512-512-10, 256 rows",
    ("gradient norms", "cnn"): "Gradient norms, two convolutions with mean pooling, 64 rows",
    ("gradient norms", "cnn_max"): "Gradient norms, two convolutions with max pooling, 64 rows",
    ("EK-FAC and TracIn", "mlp"): "EK-FAC, MLP 784-512-512-10, 4,096 rows",
    ("EK-FAC and TracIn", "block"): "EK-FAC, 64 positions, 256-1024-256, 512 rows",
    ("EK-FAC and TracIn", "tracin"): "TracIn self-influence, MLP, 2,048 rows",
}
_HEAD = """\
# Performance

"""
_PEERS = """\
## Gradient kernels beside their peers

Made by `python benchmarks/performance.py`. Both sides run in one process tree with the same number
of threads and float32; turns alternate, medians are compared. *CPU* is seconds of processor time,
which says more than the wall clock on a shared machine. A goal that was not reached says NO.
"""


def run(args: argparse.Namespace, records: Path) -> None:
    """Every benchmark asked for, each appending its records."""
    for name in args.only.split(","):
        script, option = _SCRIPTS[name]
        python = args.torch_python if option == "--torch-python" else args.peers_python
        command = [sys.executable, str(_HERE / script), "--threads", str(args.threads)]
        command += ["--out", str(records), *([option, python] if python else [])]
        print(" ".join(command), flush=True)
        subprocess.run(command, check=True)


def sections(record: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Titles and results of one record: influence has one a record, the others one a network."""
    if "title" in record:
        return [(record["title"], record)]
    named = [part for part in _PARTS if part in record]
    return [(_TITLES[record["benchmark"], part], record[part]) for part in named]


def kernels_part(bench: str | None, page: Path) -> str:
    """The table of a run of ``jaxpoison bench``, or the one that the page has."""
    if bench is not None:
        from jaxpoison.bench.files import load
        from jaxpoison.bench.tables import render as render_kernels

        note = "\nHow to read the table, and what is not counted: [bench.md](bench.md).\n\n"
        return render_kernels(load(bench), level=2) + note
    old = page.read_text(encoding="utf-8") if page.exists() else ""
    start, end = old.find("## Kernels\n"), old.find(_PEERS.splitlines()[0])
    return old[start:end] if 0 <= start < end else ""


def render(records: list[dict[str, Any]], kernels: str = "") -> str:
    """The page; the last record of a title counts."""
    parts: dict[str, str] = {}
    for record in records:
        machine = record["machine"]
        for title, found in sections(record):
            lines = [f"## {title}", ""]
            if "errors" in found:
                difference = max(found["errors"].values())
                lines += [f"Largest relative difference of the results: {difference:.1e}.", ""]
            else:
                lines += [table(found["rows"]), ""]
            if found["goals"]:
                goals = [{**each, "value": f"{each['value']:.3g}"} for each in found["goals"]]
                lines += [table(goals), ""]
            if found.get("missing"):
                lines += [f"Not installed: {', '.join(found['missing'])}.", ""]
            lines += [note for note in found.get("notes", ())]
            lines += ["" if found.get("notes") else None]
            threads = record.get("threads", machine["threads"].get("OMP_NUM_THREADS"))
            lines += [
                f"{machine['cpu']}, {machine['cores']} cores, load {machine['load']}, "
                f"{threads} thread(s) a side, jax {machine['libraries']['jax']}.",
                "",
            ]
            parts[title] = "\n".join(line for line in lines if line is not None)
    return "\n".join([_HEAD + kernels + _PEERS, *parts.values()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--only", default="norms,ekfac,influence,lds")
    parser.add_argument("--threads", type=int, default=2, help="of each side")
    parser.add_argument("--torch-python", help="has torch, opacus, kronfluence and captum")
    parser.add_argument("--peers-python", help="has torch, dattri, pydvl and traker")
    parser.add_argument("--records", default="performance.jsonl", help="appended to")
    parser.add_argument("--render", metavar="FILE", help="run nothing; the records are there")
    parser.add_argument("--bench", metavar="FILE", help="JSON of jaxpoison bench: the first part")
    parser.add_argument("--docs", default=str(_HERE.parent / "docs" / "performance.md"))
    args = parser.parse_args()
    records = Path(args.render or args.records)
    if not args.render:
        run(args, records)
    held = [json.loads(line) for line in records.read_text().splitlines()]
    docs = Path(args.docs)
    docs.write_text(render(held, kernels_part(args.bench, docs)), encoding="utf-8")


if __name__ == "__main__":
    main()
