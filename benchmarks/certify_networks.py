"""Small CNNs of an ensemble against the serial loop in PyTorch on the same cores.

    python benchmarks/certify_networks.py --data mnist.npz --torch python-with-torch [--members 50]
        [--strategies steps map vmap] [--form direct] [--torch-threads 1 2] [--epochs 5]

Same architecture, initial distribution, optimiser, epochs, batches (row by row) on both sides.
Contenders take turns member group by member group, so that all meet the same load of the machine;
wall and CPU seconds are given, without compilation and without prediction on the side of PyTorch,
with prediction on ours. Accuracy comes first: it must be equal before a ratio means anything.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from common import machine, measured
from peer_process import PeerProcess

from jaxpoison.certify.learners import small_cnn
from jaxpoison.certify.learners._training import QUERIES, pack, scores_of
from jaxpoison.stream import make_mesh

ROWS = 1200
CAPACITY = 2048  # the rung of that many rows


def ours(recipe, strategy, members, tests, mesh):
    done = scores_of(recipe, strategy, iter(members), tests, mesh)
    return {i: s for ids, block in done for i, s in zip(ids, block, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--torch", required=True, help="a Python that has torch")
    parser.add_argument("--members", type=int, default=50)
    parser.add_argument("--group", type=int, default=10, help="members a turn")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--tests", type=int, default=2000)
    parser.add_argument("--strategies", nargs="+", default=["steps"])
    parser.add_argument("--form", choices=("direct", "patches", "shifts"))
    parser.add_argument("--torch-threads", nargs="+", type=int, default=[1, 2])
    options = parser.parse_args()
    data = np.load(options.data)
    learner = small_cnn(
        learning_rate=0.02, epochs=options.epochs, batch_size=options.batch, chunk=options.group
    )
    if options.form is not None:  # of the second convolution, whatever the strategy
        net = replace(learner.init.__self__, form=options.form)
        learner = replace(learner, init=net.init, step=net.step, apply=net.apply, forms=())
    rows = np.random.default_rng(0).permutation(len(data["x_train"]))[: ROWS * options.members]
    members = []
    recipe = learner._recipe("steps", 10)
    for i, part in enumerate(rows.reshape(options.members, ROWS)):
        x, y = data["x_train"][part], data["y_train"][part].astype(np.int64)
        members.append((i, pack(recipe, x, y, i, CAPACITY)))
    count = options.tests // QUERIES * QUERIES
    tests, truth = data["x_test"][:count], data["y_test"][:count]
    report(options, learner, members, tests, truth)


def report(options, learner, members, tests, truth) -> None:
    mesh, blocks = make_mesh(), tests.reshape(-1, QUERIES, *tests.shape[1:])
    folder = Path(tempfile.mkdtemp())
    steps = int(members[0][1].num_steps)
    settings = {"channels": [16, 32], "rate": 0.02, "momentum": 0.9, "classes": 10}
    np.savez(
        folder / "members.npz", settings=json.dumps(settings), tests=tests,
        x=np.stack([m.x[:ROWS] for _, m in members]),
        y=np.stack([m.y[:ROWS].astype(np.int64) for _, m in members]),
        order=np.stack([m.order[:steps] for _, m in members]),
    )  # fmt: skip
    files = {f"torch, {n} threads": str(folder / f"{n}.npz") for n in options.torch_threads}
    peers = {
        name: PeerProcess(
            options.torch, "torch_networks.py", str(folder / "members.npz"), str(n), files[name],
            threads=n,
        )
        for name, n in zip(files, options.torch_threads, strict=True)
    }  # fmt: skip
    recipes = {s: learner._recipe(s, 10) for s in options.strategies}
    for strategy, recipe in recipes.items():  # compiles
        ours(recipe, strategy, members[: options.group], blocks, mesh)
    spent: dict[str, list[tuple[float, float]]] = {}
    scores: dict[str, dict[int, np.ndarray]] = {s: {} for s in recipes}
    for start in range(0, len(members), options.group):
        some = members[start : start + options.group]
        for name, peer in peers.items():
            answer = peer.ask(str(len(some)))
            spent.setdefault(name, []).append((answer["wall"], answer["cpu"]))
        for strategy, recipe in recipes.items():
            found, wall, cpu = measured(partial(ours, recipe, strategy, some, blocks, mesh))
            scores[strategy].update(found)
            spent.setdefault(strategy, []).append((wall, cpu))
    accuracy = {}
    for name, peer in peers.items():
        peer.close()  # it writes its scores at the end
        accuracy[name] = (np.load(files[name])["scores"].argmax(-1) == truth).mean()
    for strategy, found in scores.items():
        votes = np.stack([found[i] for i in sorted(found)]).argmax(-1)
        accuracy[strategy] = (votes == truth).mean()
    print(json.dumps(machine()), file=sys.stderr)
    print("| contender | accuracy of a member | wall s | CPU s | CPU us an image |")
    print("|---|---|---|---|---|")
    images = len(members) * ROWS * options.epochs
    for name, times in spent.items():
        wall, cpu = (sum(t) for t in zip(*times, strict=True))
        print(
            f"| {name} | {accuracy[name]:.4f} | {wall:.1f} | {cpu:.1f} | {cpu / images * 1e6:.0f} |"
        )


if __name__ == "__main__":
    main()
