"""One device a core where nobody decided otherwise, before jax is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, os, sys
import jax
given = sys.argv[1]
if given == "config":
    jax.config.update("jax_num_cpu_devices", 3)
if given == "running":
    jax.devices()
from jaxpoison.cores import use_cores
said = use_cores()
print(json.dumps([said, len(jax.devices())]))
"""


def run(given, **environment):
    kept = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, given],
        env={**kept, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity to count")
def test_one_a_core():
    cores = min(len(os.sched_getaffinity(0)), 8)
    assert run("nothing") == [cores, cores]


@pytest.mark.parametrize("given", ["config", "running", "flag"])
def test_what_was_decided_stays(given):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=5"} if given == "flag" else {}
    assert run(given, **flags) == [None, {"config": 3, "running": 1, "flag": 5}[given]]
