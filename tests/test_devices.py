"""Results do not depend on the number of devices: each case runs in a process of its own."""

from __future__ import annotations

import hashlib
import json

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
    if sys.argv[3] == "images":
        report = jaxpoison.scan(x, y)
    else:
        table = x.reshape(len(x), -1).astype(np.float32)
        report = jaxpoison.scan(table, y, features=table / 2)
    report.write(sys.argv[2])
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
            turns = stream.spread(moments, members, np.float32(2), in_turn=True)
            seen[f"in turn {count}"] = digest(*turns)
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


def without_times(doc):
    """A report without what a clock or a memory meter said."""
    left = {name: part for name, part in doc.items() if name not in ("timing", "peak_mb")}
    left["detectors"] = {
        name: {key: value for key, value in each.items() if key != "seconds"}
        for name, each in doc["detectors"].items()
    }
    return left


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["images", "table"])
def test_scan_writes_the_same_bytes_on_1_2_4_and_8_devices(tmp_path, kind):
    outs = {count: tmp_path / str(count) for count in (1, 2, 4, 8)}
    for count, out in outs.items():
        on_devices(count, SCAN, count, out, kind)
    docs = {n: json.loads((out / "report.json").read_text()) for n, out in outs.items()}
    assert docs[1]["verdict"] == "poisoned"
    assert docs[1]["detectors"]["self_influence"]["ran"] == (kind == "images")
    one = pq.read_table(outs[1] / "scores.parquet")
    for count in (2, 4, 8):
        other = pq.read_table(outs[count] / "scores.parquet")
        assert other.column_names == one.column_names
        differing = [name for name in one.column_names if not one[name].equals(other[name])]
        assert not differing, f"other scores on {count} devices: {differing}"
        for name in ("scores.parquet", "flagged_index.npy", "clean_index.npy"):
            assert (outs[count] / name).read_bytes() == (outs[1] / name).read_bytes(), name
        assert without_times(docs[count]) == without_times(docs[1])


PRODUCTS = """
    import hashlib, json
    import jax
    import numpy as np
    from jaxpoison import kernels

    rng = np.random.default_rng(0)
    found = {}
    shapes = (5000, 130, 130), (20000, 10, 65), (512, 64, 64), (256, 600, 20), (20001, 65, 65)
    for m, k, l in shapes:
        x, y = (rng.standard_normal((m, w)).astype(np.float32) for w in (k, l))
        product = jax.jit(kernels.rows_product)(x, y)
        np.testing.assert_allclose(product, x.T.astype(np.float64) @ y, rtol=1e-4, atol=2e-3)
        found[f"{m} {k} {l}"] = hashlib.blake2b(np.asarray(product).tobytes()).hexdigest()
    labels = (np.arange(3000) % 4).astype(np.int32)
    x = rng.standard_normal((3000, 65)).astype(np.float32) / 8 + 0.1 * labels[:, None]
    mask = np.ones(3000, np.float32)
    fit = kernels.fit_softmax_head(x, labels, mask, num_classes=4, damping=3e-3)
    own = kernels.head_self_influence(x, labels, mask, fit.weights, damping=3e-3)
    for name, value in (("head", fit.weights), ("own", own.corrected), ("plain", own.plain)):
        found[name] = hashlib.blake2b(np.asarray(value).tobytes()).hexdigest()
    print(json.dumps(found))
"""


def test_sums_over_rows_keep_their_bits_on_any_number_of_threads():
    # as many threads as devices; the transposed product of XLA itself has other bits on 8
    one, eight = (json.loads(on_devices(count, PRODUCTS)) for count in (1, 8))
    assert one == eight
