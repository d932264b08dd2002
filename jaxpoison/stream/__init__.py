"""The engine: the only room that compiles, shards, places and pads.

A ``Stream`` is rows of a source seen as blocks. It has three verbs: ``fold`` (a statistic of all
rows), ``map`` (a value for each row) and ``spread`` (a function of many members, such as classes).
Fixed-size shards are the unit of work: one shard goes to one device, its partial result comes back
and is added on the host in shard order in float64. So no result depends on the number of devices.
"""

from __future__ import annotations

from jaxpoison.caching import use_compile_cache

from ._engines import Engine, Feed, LocalEngine, ShardValue
from ._keys import digest_of_value
from ._opening import ENGINES, is_first_process, leave_others, machine_identity, open_engine
from ._records import Journal, Record
from ._rows import Rows, RowSource, one_ahead
from ._steps import Stage, compiled, make_mesh, mesh_of_solvers, place
from ._stream import Additive, Fold, Stream

__all__ = [
    "ENGINES",
    "Additive",
    "Engine",
    "Feed",
    "Fold",
    "Journal",
    "LocalEngine",
    "Record",
    "RowSource",
    "Rows",
    "ShardValue",
    "Stage",
    "Stream",
    "compiled",
    "digest_of_value",
    "is_first_process",
    "leave_others",
    "machine_identity",
    "make_mesh",
    "mesh_of_solvers",
    "one_ahead",
    "open_engine",
    "place",
    "use_compile_cache",
]
