"""Results do not depend on the number of devices: each case runs in a process of its own."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from device_processes import on_devices

pytestmark = pytest.mark.slow

SCAN = """
    import sys
    import numpy as np
    from sklearn.datasets import load_digits
    import jax
    import jaxpoison

    assert len(jax.devices()) == int(sys.argv[1])
    bunch = load_digits()
    x, y = bunch.images.astype(np.uint8), bunch.target.astype(np.int64)
    rng = np.random.default_rng(0)
    rows = rng.permutation(np.flatnonzero(y != 3))[:90]
    x[rows, :2, :2] = 16
    y[rows] = 3
    jaxpoison.scan(x, y).write(sys.argv[2])
"""

VERBS = """
    import hashlib, json, sys
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jaxpoison import detect, folds
    from jaxpoison.layout import Layout
    from jaxpoison.sources import open_source
    from jaxpoison.stream import Stream, make_mesh

    # many shards out of little data, and a number of them that 8 does not divide
    Layout.of = classmethod(lambda cls, n, b, c: cls(256, 16, 16 + c))
    rng = np.random.default_rng(0)
    labels = (np.arange(2700) % 6).astype(np.int32)
    x = (rng.normal(size=(2700, 12)) * rng.uniform(1, 3, 12) + 5 * labels[:, None])
    x[:40] += 6.0
    x = x.astype(np.float32)

    def digest(*arrays):
        state = hashlib.blake2b(digest_size=16)
        for array in arrays:
            state.update(np.ascontiguousarray(array).tobytes())
        return state.hexdigest()

    def half(block, scale):
        return block.x * scale

    def moments(member, scale):
        x, mask = member
        x = x * mask[:, None] * scale
        return jnp.matmul(x.T, x, precision=jax.lax.Precision.HIGHEST), x.mean(axis=0)

    found = {}
    for devices in map(int, sys.argv[1].split(",")):
        stream = Stream(open_source(x, role="features"), labels, 6, make_mesh(devices))
        seen = {"moments": digest(*folds.class_moments(stream))}
        seen["pooled"] = digest(folds.pooled_within(stream))
        seen["map"] = digest(stream.map(half, np.float32(0.5)))
        for count in (1, 5, 37, 130):
            rows = np.random.default_rng(1).normal(size=(count, 50, 4))
            members = (rows.astype(np.float32), np.ones((count, 50), np.float32))
            seen[f"spread{count}"] = digest(*stream.spread(moments, members, np.float32(2)))
        for detector in (detect.SpectralSignatures(), detect.RobustMahalanobis(),
                         detect.SharedMixture(), detect.Spectre(), detect.ActivationClustering()):
            scores = detector.score(stream, key=jax.random.key(0))
            seen[type(detector).__name__] = digest(scores.values, scores.statistic)
        found[devices] = seen
    print(json.dumps(found))
"""


@pytest.mark.timeout(600)
def test_every_verb_and_detector_gives_the_same_bits_on_1_2_4_and_8_devices():
    found = json.loads(on_devices(8, VERBS, "1,2,4,8"))
    alone = json.loads(on_devices(1, VERBS, "1"))
    assert found["1"] == alone["1"]  # one of eight is one of one
    for devices in ("2", "4", "8"):
        differing = [name for name in found["1"] if found[devices][name] != found["1"][name]]
        assert not differing, f"other bits on {devices} devices: {differing}"
    assert hashlib.blake2b(digest_size=16).hexdigest() not in found["1"].values()


@pytest.mark.timeout(600)
def test_scan_says_the_same_on_1_and_8_devices(tmp_path):
    outs = {}
    for count in (1, 8):
        outs[count] = tmp_path / str(count)
        on_devices(count, SCAN, count, outs[count])
    one, eight = (pq.read_table(outs[count] / "scores.parquet") for count in (1, 8))
    assert one.column_names == eight.column_names
    for name in one.column_names:
        left, right = one[name].to_numpy(), eight[name].to_numpy()
        if left.dtype.kind == "f":
            # its head is fitted until the gradient is 1e-5, by float32 products that devices split
            # their own ways; it only ranks, in a column of its own
            near = 2e-5 if name == "self_influence" else 1e-6
            np.testing.assert_allclose(left, right, rtol=near, atol=near, err_msg=name)
        else:
            assert np.array_equal(left, right), name
    docs = [json.loads((outs[count] / "report.json").read_text()) for count in (1, 8)]
    assert docs[0]["verdict"] == docs[1]["verdict"] == "poisoned"
    for key in ("n_flagged", "p_poisoned", "estimated_rate", "suspected_attacks", "threshold"):
        assert docs[0][key] == docs[1][key]
