"""A run of `jaxpoison bench` that nobody measured."""

from __future__ import annotations

import copy


def spread(median, width=0.02):
    return {
        "median": median, "q1": median * (1 - width / 2), "q3": median * (1 + width / 2),
        "min": median * (1 - width),
    }  # fmt: skip


def record(name, median, *, width=0.02, cpu=None, **changed):
    done = {
        "kernel": name, "status": "done", "arguments": "100x8, 100", "rows": 100, "flop": 1e6,
        "flop_source": "formula", "bytes": 3600.0, "footprint_bytes": 3600,
        "trace_seconds": 0.1, "compile_seconds": 0.5, "wall": spread(median, width),
        "cpu": spread(median if cpu is None else cpu, width), "repeats": 9,
        "memory": {"arguments": 3000, "results": 600, "temporaries": 0, "total": 3600},
        "rows_per_second": 100 / median, "gbps": 3600 / median / 1e9, "gflops": 1e-3 / median,
        "intensity": 277.8, "roofline_share": 0.5, "bound": "compute",
    }  # fmt: skip
    return {**done, **changed}


_DOCUMENT = {
    "tool": "jaxpoison bench",
    "schema_version": 1,
    "table_version": 1,
    "version": "0.1.0",
    "size": "small",
    "seconds": 1.0,
    "machine": {
        "cpu": "Some(R) Processor | 9", "cores": 4, "usable_cores": 2, "platform": "cpu",
        "device": "cpu", "num_devices": 1, "python": "3.11.2",
        "libraries": {"jax": "0.10.2", "jaxlib": "0.10.2", "numpy": "2.1.0"},
        "threads": {"OMP_NUM_THREADS": "1"}, "xla_flags": [], "load": 0.5,
        "settings": {"jax_enable_x64": False}, "last_level_cache_bytes": 1 << 20,
    },
    "ceilings": {
        "gemm_gflops": 100.0, "gemm_precision": "float32, precision HIGHEST",
        "memory": [
            {"bytes": 1e6, "copy_gbps": 50.0, "read_gbps": 20.0},
            {"bytes": 1e8, "copy_gbps": 10.0, "read_gbps": 12.0},
        ],
        "copy_gbps": 10.0, "read_gbps": 12.0, "host_copy_gbps": 9.0,
        "dispatch_seconds": 1e-5, "drift": 1.02,
    },
    "kernels": [],
}  # fmt: skip


def document(*records, **changed):
    return copy.deepcopy({**_DOCUMENT, "kernels": list(records), **changed})


def failed(name):
    return {"kernel": name, "status": "failed", "reason": "MemoryError: no | room"}
