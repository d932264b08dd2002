"""What a certificate binds to: with the same manifest the same votes come out."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from importlib import metadata
from typing import Any

import numpy as np

import jaxpoison
from jaxpoison._types import HostArray

from ._canonical import as_labels, as_rows, sort_keys
from .partitions import LADDER, Partitions

_LIBRARIES = ("jax", "jaxlib", "numpy", "scipy", "flax", "optax")
_FLAGS = ("jax_default_matmul_precision", "jax_enable_x64", "jax_numpy_dtype_promotion")
_VARIABLES = ("XLA_FLAGS", "NVIDIA_TF32_OVERRIDE", "JAX_PLATFORMS")


def manifest_of(
    partitions: Partitions, learner: Any = None, *, ladder: tuple[int, ...] = LADDER
) -> dict[str, Any]:
    """All that decides the votes, as values that JSON can hold.

    Args:
        partitions: Of the training set.
        learner: With ``name``, ``digest()`` and ``to_json()``; None where the votes came from
            elsewhere.
        ladder: Capacities that subsets were padded to.

    Returns:
        Versions, device, precision, partition rule (of a salt only its digest), capacity ladder,
        learner, subsets with a digest of the cells of all rows, and data fingerprint. A device is
        named only where this process has loaded jax: models of other libraries never did.

    **Cost**: a sort of the rows for the fingerprint, where partitions hold them.
    """
    design, sizes = partitions.design, partitions.sizes
    keys = None if partitions.store is None else _row_keys(partitions)
    filled = sizes[sizes > 0]
    return {
        "versions": _versions(),
        "device": _device(),
        "precision": _precision(),
        "partition": {
            "k": design.k, "spread": design.spread, "shifts": list(design.shifts),
            "covers": design.covers, "rule": dict(design.rule),
        },
        "ladder": list(ladder),
        "learner": None if learner is None else {
            "name": learner.name, "digest": learner.digest(), "settings": learner.to_json(),
        },
        "subsets": {
            "count": design.num_subsets, "empty": partitions.num_empty,
            "empty_votes_for": 0, "rows": int((partitions.cell >= 0).sum()),
            "smallest": int(filled.min()) if filled.size else 0,
            "largest": int(sizes.max(initial=0)), "digest": _cells_of(partitions, keys),
        },
        "data": None if keys is None else {"fingerprint": _rows_of(partitions, keys)},
    }  # fmt: skip


def manifest_digest(value: dict[str, Any]) -> str:
    """32 hexadecimal digits, equal for equal manifests."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def fingerprint(partitions: Partitions) -> str:
    """Of the multiset of rows: the same in whatever order, with whatever ids they came."""
    return _rows_of(partitions, _row_keys(partitions))


def _row_keys(partitions: Partitions) -> HostArray:
    """[n] inputs and label of each row that is held, in a form that sorts."""
    ids = partitions.ids
    x = as_rows("x", partitions.x[ids])
    return sort_keys(x, as_labels("y", partitions.y[ids], len(ids)))


def _rows_of(partitions: Partitions, keys: HostArray) -> str:
    dtype, shape = partitions.x.dtype.newbyteorder("="), partitions.x.shape[1:]
    digest = hashlib.blake2b(f"{dtype.str} {shape} {len(keys)} ".encode(), digest_size=32)
    digest.update(np.sort(keys).view(np.uint8).data)
    return digest.hexdigest()


def _cells_of(partitions: Partitions, keys: HostArray | None) -> str:
    """Of the cell of each row: keys come from a column or a function that the rest does not show.

    The same in whatever order the rows came, where the rows are held.
    """
    if keys is None:
        return partitions.digest()
    cells = partitions.cell[partitions.ids]
    order = np.argsort(cells, kind="stable")
    order = order[np.argsort(keys[order], kind="stable")]
    digest = hashlib.blake2b(digest_size=16)
    digest.update(np.ascontiguousarray(keys[order]).view(np.uint8).data)
    digest.update(np.ascontiguousarray(cells[order], "<i8").data)
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "jaxpoison": jaxpoison.__version__}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _device() -> dict[str, Any] | None:
    if "jax" not in sys.modules:
        return None
    import jax

    devices = jax.devices()
    return {
        "platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices),
        "machine": platform.machine(),
    }  # fmt: skip


def _precision() -> dict[str, Any]:
    flags: dict[str, Any] = {name: os.environ.get(name) for name in _VARIABLES}
    if "jax" in sys.modules:
        import jax

        for name in _FLAGS:
            value = getattr(jax.config, name)
            flags[name] = value if isinstance(value, bool | type(None)) else str(value)
    return flags
