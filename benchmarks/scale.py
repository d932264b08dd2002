"""The engine at size: a million rows, a thousand classes, and how cost grows.

    python benchmarks/scale.py --folder DIR --out scale.jsonl           # all but the largest
    python benchmarks/scale.py --only scan,large --folder DIR --out scale.jsonl
    python benchmarks/scale.py --render scale.jsonl                     # docs/scale.md, docs/scale/

Data are made block by block in DIR (some GB) and read from there; each figure comes from a fresh
process, whose peak memory is its own. Ceilings (copy, GEMM) are measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import scale_parts
from common import emit, in_fresh_process, table
from scale_data import Shape, as_table, write
from scale_page import render

_MILLION = Shape(1_000_000, 512, 1000)
_SPECTRAL = (_MILLION, Shape(1_000_000, 2048, 1000))
_SCANS = (_MILLION, Shape(200_000, 512, 10_000), Shape(1_000_000, 512, 2))
_LARGE = (Shape(10_000_000, 128, 1000),)
_GROWTH = {
    "n": [Shape(n, 64, 100) for n in (10_000, 100_000, 1_000_000, 10_000_000)],
    "d": [Shape(20_000, d, 100) for d in (64, 256, 1024, 4096)],
    "classes": [Shape(200_000, 64, c) for c in (2, 10, 100, 1000, 10_000)],
}
_SCANNED_ROWS = 1_000_000  # of the growth shapes; larger ones have the spectral figure alone
_SCANNED_VALUES = 1 << 26
_DEVICES = (1, 8, 64, 512)
_PARTS = ("ceilings", "spectral", "scan", "growth", "devices", "overlap")


def ceilings() -> dict:
    """Copy bandwidth (bytes read and written) and float32 GEMM, the best of five runs each."""
    import jax
    import jax.numpy as jnp

    source = np.ones(1 << 28, np.uint8)
    target = np.empty_like(source)
    copies = []
    for _ in range(5):
        started = time.perf_counter()
        np.copyto(target, source)
        copies.append(2 * source.nbytes / (time.perf_counter() - started) / 1e9)
    size = 2048
    x = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision=jax.lax.Precision.HIGHEST))
    product(x).block_until_ready()
    gemms = []
    for _ in range(5):
        started = time.perf_counter()
        product(x).block_until_ready()
        gemms.append(2 * size**3 / (time.perf_counter() - started) / 1e9)
    return {"part": "ceilings", "copy_gb_s": max(copies), "gemm_gflop_s": max(gemms)}


def _measured(part: str, shape: Shape, folder: Path, *more: str) -> dict:
    """One figure from a fresh process, over files that are made first and stay in the folder."""
    x_path, y_path = write(folder, shape)
    if part in ("scan", "overlap"):
        as_table(x_path, y_path)
    return in_fresh_process(
        "scale.py", "--one", part, "--shape", shape.name, "--folder", str(folder), *more
    )


def _drop(shape: Shape, folder: Path) -> None:
    for path in folder.glob(f"?-{shape.name}.*"):
        path.unlink()


def run(only: set[str], folder: Path, out: str | None, keep: bool) -> None:
    """Measures the parts asked for, smallest files first to go."""

    def record(value: dict) -> None:
        emit({"benchmark": "scale", **value}, out)

    if "ceilings" in only:
        record(in_fresh_process("scale.py", "--one", "ceilings"))
    if "devices" in only:
        for count in _DEVICES:
            flags = f"--xla_force_host_platform_device_count={count}"
            before = os.environ.get("XLA_FLAGS")
            os.environ["XLA_FLAGS"] = flags
            record(in_fresh_process("scale.py", "--one", "devices", "--shape", _MILLION.name))
            os.environ.pop("XLA_FLAGS") if before is None else os.environ.update(XLA_FLAGS=before)
    wanted: list[tuple[str, Shape]] = []
    wanted += [("spectral", s) for s in _SPECTRAL if "spectral" in only]
    wanted += [("scan", s) for s in _SCANS if "scan" in only]
    wanted += [("overlap", _MILLION)] if "overlap" in only else []
    wanted += [("scan", s) for s in _LARGE if "large" in only]
    if "growth" in only:
        for axis, shapes in _GROWTH.items():
            for shape in shapes:
                wanted.append((f"growth-{axis}-spectral", shape))
                is_small = shape.rows * shape.features <= _SCANNED_VALUES
                if shape.rows <= _SCANNED_ROWS and is_small:
                    wanted.append((f"growth-{axis}-scan", shape))
    shapes = [shape for _, shape in wanted]
    for i, (name, shape) in enumerate(wanted):
        part = name.rsplit("-", 1)[-1]
        record({**_measured(part, shape, folder), "part": name})
        if not keep and shape not in shapes[i + 1 :]:
            _drop(shape, folder)


def _one(part: str, shape: Shape | None, folder: Path) -> dict:
    from jaxpoison.cores import use_cores
    from jaxpoison.heap import keep_little

    keep_little()  # as the command does
    use_cores()
    if part == "ceilings":
        return ceilings()
    assert shape is not None
    return getattr(scale_parts, part)(shape, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--only", default=",".join(_PARTS), help=f"of {', '.join(_PARTS)}, large")
    parser.add_argument("--folder", metavar="DIR", help="where data are made (default: temporary)")
    parser.add_argument("--keep", action="store_true", help="leave the data there")
    parser.add_argument("--out", metavar="FILE", help="append the records to this file")
    parser.add_argument("--render", metavar="FILE", help="write docs/scale.md from records")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.render:
        render(Path(args.render), Path(__file__).resolve().parent.parent / "docs")
        return
    if args.one:
        shape = None if args.shape is None else Shape(*map(int, args.shape.split("-")))
        print(json.dumps(_one(args.one, shape, Path(args.folder or "."))))
        return
    only = set(args.only.split(","))
    if unknown := sorted(only - {*_PARTS, "large"}):
        parser.error(f"--only: {unknown}; choose from {', '.join(_PARTS)}, large")
    folder = Path(args.folder or tempfile.mkdtemp(prefix="jaxpoison-scale-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        run(only, folder, args.out, args.keep)
    finally:
        if args.folder is None:
            shutil.rmtree(folder)
    if args.out:
        records = [json.loads(line) for line in Path(args.out).read_text().splitlines()]
        shown = [r for r in records if "wall" in r]
        if shown:
            print(table([{k: r.get(k) for k in ("part", "shape", "wall", "cpu")} for r in shown]))


if __name__ == "__main__":
    main()
