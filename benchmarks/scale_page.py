"""The page of scale figures, made of records alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from common import goal, table

_WIDTH, _HEIGHT, _PAD = 460, 300, 48
_AXES = {"n": (0, "rows"), "d": (1, "features"), "classes": (2, "classes")}
_GROWTH_BAR = 1.05

_TRIED = """\
## What was tried for speed

For a thousand classes, on two cores, one million rows of 512 features. Gains of single steps
were measured by hand when the step was made and are in no record:

- *Spectral*, 2.5 s aimed at: new directions projected and factorised alone instead of with the
  whole basis (eight times as fast), one CPU device a core (a pass is a loop over small tiles, one
  thread each), tiles of 16 rows instead of 8 (an eighth more padding, half the steps), bases held
  in place: 9.7 s to 5.4 s. Tiles of 32 gain no more, for a quarter of padding. Before: a start from
  the shared coordinates, larger shards, the next step started before the host adds the values of
  the last one (no gain, not kept). Left are six passes of .4 s, and 1.3 s of sums and bases.
- *The whole scan*, 120 s aimed at: products of a class's rows on the host beyond 128 classes
  (five times less processor time than the compiled loop over tiles), neighbours in cells of a
  draw, bounded banks for density, 128 codes in place of 1,000 scores for labels, one sort in
  place of a comparison a class; then rows scaled on the host by one product (a ninth of the time),
  Arrow pieces read without a copy, cosines and largest values in vectors (8 ns to 1 ns a value;
  half), one device a core: 493 s and 704 s of processor time. Then half as many passes (means and
  covariances that follow from others, both bases by one projection, classes that are few of all
  read once and held), labels asked again of the rows alone that a known backdoor touches, a
  quarter of the rows to teach verification, judged rows 512 at a time (a third faster than 2,048:
  what is made of them stays in the cache) and cells searched by 16,384 rows (53 s to 35 s): 335 s
  and 505 s; what saved memory after that: 304 s and 460 s. Then rows put into their tiles by pieces
  of 16 MB as they are read (half the time of one copy in the order of the tiles) and the heap kept
  small gave the figures above, on another processor. Bounds on what cells can hold, tried to skip
  distances, cost more than they save.
  What is left are dense products (labels 45 s of processor time at the peak of the cores, cells
  35, verification 40), which want an accelerator, and fourteen passes.
- *Found*: where 10,000 classes have twenty rows each, two of them are planted, and nothing tells
  them from honest ones. Of two classes, the planted tenth of one looks much like a second honest
  mode of it: only the rows that stand out most are flagged, without a false alarm.
- *Busy*, 90 % aimed at: a piece is put into its tiles while the next one is read, yet light passes
  (a sum, a projection) are done before the reader is: two cores read, sort and compute at once.
  The first pass waits longest, 2.3 s, for memory that the system had never handed out; without it
  the share would be 90. (61 % in earlier records counted the reader's own waits for its sorter.)
  Pieces of 1 to 4 MB are read a quarter faster, but make formats with large compressed chunks
  unpack them again and again: not kept.
- *Memory*, 3 GB aimed at: neighbours of millions of rows in half the bytes, coordinates in both
  bases as two views of one array, edges of copies by parts, classifiers' features copied once and
  8,192 rows at a time, directions of a class given to some tiles at a time in place of all tiles
  of a shard (1 GB a shard to .26, and half the time of that pass). Of a peak of 6 GB that had been
  recorded, 1.7 were the watch on the reader itself: a cycle kept blocks alive. The rest, 4.3 GB,
  became 3.2 by giving freed memory back around each pass, dropping what only detectors share once
  they have spoken, and making the 50,000 rows of 2,560 features that labels are judged by again
  when traits are sought; 2.9 by reading by pieces, with pages of their own for pieces of 8 MB and
  more (without these, smaller reads leave holes in the heap that cost more than they save). What
  is left are the coordinates of all rows, and blocks of two devices and the ones being read. Two
  classes of half a million rows took 7.7 GB in the mixture, until its 256 starts were screened on
  65,536 rows of a class. Ten million rows took 10.4 GB before all but the first three of these
  steps; they ran on one core that other work shared, so that their wall time says little."""


def render(path: Path, docs: Path) -> None:
    """Writes ``scale.md`` and its plots; of records of one kind and shape the last one counts."""
    records: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if record.get("benchmark") == "scale":
            place = f"{record['part']}-{record.get('shape')}-{record.get('devices')}"
            records[place] = record
    by_part: dict[str, list[dict[str, Any]]] = {}
    for record in records.values():
        by_part.setdefault(record["part"], []).append(record)
    folder = docs / "scale"
    folder.mkdir(exist_ok=True)
    sections = [_head(by_part), _spectral(by_part), _scans(by_part), _overlap(by_part)]
    sections += [_growth(by_part, folder), _devices(by_part), _TRIED]
    text = "\n\n".join(section for section in sections if section)
    (docs / "scale.md").write_text(text + "\n")


def _head(parts: dict[str, list[dict[str, Any]]]) -> str:
    text = (
        "# The engine at size\n\n"
        "Made by `python benchmarks/scale.py --out FILE` and `--render FILE`; FILE is "
        "`docs/scale/records.jsonl`, in which\nwhat is marked as rounded was taken from an "
        "earlier page. Data are synthetic features on disk:\nclass means, a covariance that all "
        "classes share, two directions of each class, noise; a tenth of class 0 are rows\nof other "
        "classes plus one shift. Each figure comes from a fresh process. *CPU* is seconds of "
        "processor time. A goal\nthat was not reached says NO."
    )
    for record in parts.get("ceilings", [])[-1:]:
        text += (
            f"\n\nCeilings of the machine, measured in the same run: copy "
            f"{record['copy_gb_s']:.1f} GB/s (read and written), float32 GEMM "
            f"{record['gemm_gflop_s']:.0f} GFLOP/s."
        )
    return text


def _shape(record: dict[str, Any]) -> str:
    n, d, c = record["shape"]
    return f"{n:,} x {d}, {c:,} classes"


def _machine(record: dict[str, Any]) -> str:
    facts = record["machine"]
    libraries = facts["libraries"]
    return f"{facts['cpu']}, {facts['cores']} cores, load {facts['load']}, jax {libraries['jax']}."


def _machines(records: list[dict[str, Any]]) -> str:
    """Where they were measured, once if it was one place."""
    places = {r["machine"]["cpu"] for r in records}
    if len(places) == 1:
        return _machine(records[-1])
    return "\n".join(f"- {_shape(r)}: {_machine(r)}" for r in records)


def _spectral(parts: dict[str, list[dict[str, Any]]]) -> str:
    records = parts.get("spectral", [])
    if not records:
        return ""
    ceiling = next(iter(parts.get("ceilings", [])), None)
    rows, goals = [], []
    for r in records:
        row = {"data": _shape(r), "load s": r["load"], "wall s": r["wall"], "CPU s": r["cpu"]}
        row |= {"passes": r["passes"], "rows/s": r["rows_s"], "GB/s": r["gb_s"]}
        row |= {"peak MB": r["peak_mb"], "beyond blocks MB": r["beyond_blocks_mb"]}
        own = r.get("ceilings", ceiling)  # of the machine that it was measured on
        if own is not None:
            row["of copy %"] = 100 * r["gb_s"] / own["copy_gb_s"]
            row["of GEMM %"] = 100 * r["gflop_s"] / own["gemm_gflop_s"]
        rows.append(row)
        if r["shape"][1] == 512:
            goals.append(goal("spectral, seconds after load", r["wall"], 2.5, at_least=False))
            beyond = r["beyond_blocks_mb"]
            goals.append(goal("spectral, MB beyond the blocks", beyond, 1500, at_least=False))
    return "\n\n".join(
        (
            "## Spectral signatures\n\nBlocks are laid out on the devices first (*load*, the class "
            "means included); compiling is left out.",
            table(rows),
            table(goals) if goals else "",
            _machines(records),
        )
    )


def _scans(parts: dict[str, list[dict[str, Any]]]) -> str:
    records = parts.get("scan", [])
    if not records:
        return ""
    rows, goals = [], []
    for r in records:
        row = {"data": _shape(r), "wall s": r["wall"], "CPU s": r["cpu"], "rows/s": r["rows_s"]}
        row |= {"peak MB": r["peak_mb"], "verdict": r["verdict"], "found": r["found"]}
        rows.append(row | {"false alarms": r["false_alarms"]})
        goals.append(goal(f"{_shape(r)}: peak MB", r["peak_mb"], 3000, at_least=False))
        if r["shape"] == [1_000_000, 512, 1000]:
            goals.append(goal(f"{_shape(r)}: seconds", r["wall"], 120, at_least=False))
    names = list(dict.fromkeys(name for r in records for name in r["detectors"]))
    seconds = [
        {"detector": name, **{_shape(r): r["detectors"].get(name) for r in records}}
        for name in names
    ]
    return "\n\n".join(
        (
            "## The default scan of a table of features\n\nNo network is trained; compiling is "
            "included. Rows are read again for each pass where their blocks do not fit into\n"
            "the budget.",
            table(rows),
            table(goals),
            "Seconds by detector (what several share is counted with the first):",
            table(seconds),
            _machines(records),
        )
    )


def _overlap(parts: dict[str, list[dict[str, Any]]]) -> str:
    records = parts.get("overlap", [])
    if not records:
        return ""
    rows = [
        {
            "data": _shape(r),
            "whole scan, wall s": r["wall"],
            "CPU s": r["cpu"],
            "peak MB": r["peak_mb"],
            "found": r["found"],
            "passes": r["passes"],
            "seconds in passes": r["in_passes"],
            "waited for the reader": r["waited"],
            "busy %": 100 * r["busy"],
        }
        for r in records
    ]
    goals = [goal("busy %", 100 * r["busy"], 90, at_least=True) for r in records]
    goals += [
        goal("default scan of a table, wall s", r["wall"], 120, at_least=False) for r in records
    ]
    goals += [goal("and its peak MB", r["peak_mb"], 3000, at_least=False) for r in records]
    return (
        "## Reading beside computing\n\nThe next block is read by a thread while this one is "
        "worked on. *Busy* is the share of the time of all passes of a\nscan in which a block was "
        "there: one less what the consumer waited for the reader.\n\n"
        f"{table(rows)}\n\n{table(goals)}\n\n{_machines(records)}"
    )


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """Slope of log seconds over log size, least squares."""
    x, y = [math.log(s) for s in sizes], [math.log(s) for s in seconds]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread


def _growth(parts: dict[str, list[dict[str, Any]]], folder: Path) -> str:
    sections, goals = [], []
    for axis, (place, name) in _AXES.items():
        series = {}
        for kind in ("spectral", "scan"):
            found = sorted(parts.get(f"growth-{axis}-{kind}", []), key=lambda r: r["shape"][place])
            if len(found) > 1:
                series[kind] = [(r["shape"][place], r["cpu"], r["wall"]) for r in found]
        if not series:
            continue
        rows = []
        for kind, points in series.items():
            slope = exponent([p[0] for p in points], [p[1] for p in points])
            last = exponent([p[0] for p in points[-2:]], [p[1] for p in points[-2:]])
            rows.append(
                {
                    "what": kind,
                    **{f"{size:,}": f"{cpu:.2f} / {wall:.2f}" for size, cpu, wall in points},
                    "exponent": round(slope, 2),
                    "of the last two": round(last, 2),
                }
            )
            if axis == "n":
                goals.append(goal(f"{kind}: exponent in n", slope, _GROWTH_BAR, at_least=False))
        drawn = {kind: [(p[0], p[1]) for p in points] for kind, points in series.items()}
        (folder / f"{axis}.svg").write_text(plot(drawn, name))
        tables = "\n\n".join(table([row]) for row in rows)
        image = f"![CPU seconds against {name}](scale/{axis}.svg)"
        sections.append(f"### Against {name}\n\nCPU seconds / wall seconds.\n\n{tables}\n\n{image}")
    if not sections:
        return ""
    head = "## Growth\n\nThe exponent is the slope of log CPU seconds over log size."
    return "\n\n".join([head, *([table(goals)] if goals else []), *sections])


def plot(series: dict[str, list[tuple[float, float]]], x_name: str) -> str:
    """Lines on two logarithmic axes, as an SVG document."""
    points = [p for line in series.values() for p in line]
    low = [math.floor(math.log10(min(p[i] for p in points))) for i in (0, 1)]
    high = [max(math.ceil(math.log10(max(p[i] for p in points))), low[i] + 1) for i in (0, 1)]

    def at(value: tuple[float, float]) -> tuple[float, float]:
        x, y = ((math.log10(v) - low[i]) / (high[i] - low[i]) for i, v in enumerate(value))
        return _PAD + x * (_WIDTH - 2 * _PAD), _HEIGHT - _PAD - y * (_HEIGHT - 2 * _PAD)

    style = 'font-family="sans-serif" font-size="11" fill="#444"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/><g {style}>',
    ]
    for power in range(low[0], high[0] + 1):
        x, y = at((10.0**power, 10.0 ** low[1]))
        parts.append(f'<path d="M{x:.1f} {y:.1f}V{_PAD}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 15:.1f}" text-anchor="middle">1e{power}</text>')
    for power in range(low[1], high[1] + 1):
        x, y = at((10.0 ** low[0], 10.0**power))
        parts.append(f'<path d="M{x:.1f} {y:.1f}H{_WIDTH - _PAD}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 5:.1f}" y="{y + 4:.1f}" text-anchor="end">1e{power}</text>')
    for i, (name, line) in enumerate(series.items()):
        colour = ("#1f6feb", "#c2410c", "#15803d")[i % 3]
        spots = [at(p) for p in line]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in spots]
        parts.append(f'<text x="{_PAD + 8}" y="{_PAD + 14 + 14 * i}" fill="{colour}">{name}</text>')
    middle = _WIDTH / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 10}" text-anchor="middle">{x_name}</text>')
    parts.append(f'<text x="{_PAD}" y="{_PAD - 14}">CPU seconds</text></g></svg>')
    return "".join(parts) + "\n"


def _devices(parts: dict[str, list[dict[str, Any]]]) -> str:
    records = sorted(parts.get("devices", []), key=lambda r: r["devices"])
    if not records:
        return ""
    rows = []
    for r in records:
        for p in r["passes"]:
            steps = -(-r["shards"] // r["devices"])
            busy = r["shards"] / (steps * r["devices"])
            host = r["shards"] * p["partial_mb"]
            row = {"devices": r["devices"], "pass": p["pass"], "GFLOP a device": p["gflop"] * steps}
            row |= {"MB to it": p["operand_mb"] * steps, "partial MB": p["partial_mb"]}
            row |= {"to the host MB": host, "collectives": p["collectives"]}
            rows.append(row | {"steps": steps, "devices in use %": 100 * busy})
    first = records[0]
    text = (
        f"## Weak scaling, from compiled programs\n\nPasses over {_shape(first)}, compiled for "
        f"meshes of host devices and never run: FLOP are the\ncompiler's count for one device "
        f"(loops by their length), bytes the sizes of its arguments and results, times its\n"
        f"steps. {first['shards']} shards of {first['shard_rows']:,} rows: one goes to each device "
        f"in a step.\n\n{table(rows)}\n\n"
    )
    return text + _limits(records)


def _limits(records: list[dict[str, Any]]) -> str:
    first = records[0]
    heavy = max(first["passes"], key=lambda p: p["partial_mb"])
    shard_gb = 4 * first["shard_rows"] * first["shape"][1] / 1e9
    ratio = heavy["partial_mb"] / 1e3 / shard_gb
    return (
        "There is no collective in any pass, by design: a shard's partial result comes to the host "
        "and is added there in\nshard order in float64, so that no bit depends on the number of "
        "devices. So each pass moves *shards x partial* to the\nhost, whatever the number of "
        f"devices. For `{heavy['pass']}` a partial is {heavy['partial_mb']:.0f} MB, "
        f"{ratio:.2g} times the\n{shard_gb * 1e3:.0f} MB of rows it is made of.\n\n"
        "Where it stops: with as many devices as shards there is one step, and more devices stand "
        f"idle (here beyond {first['shards']});\nrows must grow with the devices. Then the host "
        "adds as fast as its memory allows: at 10 GB/s it takes in "
        f"{10e3 / heavy['partial_mb']:.0f}\nof the largest partials a second, so a pass gains "
        "nothing from devices that work off more shards a second than that.\nPasses with small "
        "partials (a sum, one pooled covariance) meet the reader first: one thread lays out blocks "
        "for all\ndevices of a host."
    )
