"""Worker of gradient_norms.py: the same norms by PyTorch and opacus, in an environment of theirs.

    python benchmarks/torch_gradients.py arrays.npz 2      # started by gradient_norms.py

Reads the name of a contender and a number of runs from standard input, tab between, one a line,
and answers each with a line of JSON: mean wall and CPU seconds of a run, and at the first line the
norms. One run before them is not counted.
"""

from __future__ import annotations

import json
import sys
import time
import warnings

import numpy as np
import torch
from torch import nn

warnings.filterwarnings("ignore")


def mlp(arrays):
    layers = []
    for k in range(3):
        weight, bias = arrays[f"w{k}"], arrays[f"b{k}"]
        layers += [_filled(nn.Linear(*weight.shape), weight.T, bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1]), arrays["x"]


def cnn(arrays):
    layers = []
    for k in range(2):
        weight = arrays[f"w{k}"].transpose(3, 2, 0, 1)
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        pool = nn.MaxPool2d if str(arrays["model"]) == "cnn_max" else nn.AvgPool2d
        layers += [_filled(conv, weight, arrays[f"b{k}"]), nn.ReLU(), pool(2)]
    hidden = arrays["w2"].reshape(8, 8, 64, -1).transpose(2, 0, 1, 3).reshape(4096, -1)
    layers += [nn.Flatten(), _filled(nn.Linear(*hidden.shape), hidden.T, arrays["b2"]), nn.ReLU()]
    layers += [_filled(nn.Linear(*arrays["w3"].shape), arrays["w3"].T, arrays["b3"])]
    return nn.Sequential(*layers), arrays["x"].transpose(0, 3, 1, 2)


def _filled(layer, weight, bias):
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
        layer.bias.copy_(torch.from_numpy(bias))
    return layer


def contenders(net, x, y):
    """{name: function without arguments that gives the norms, or None}."""
    loss = nn.CrossEntropyLoss(reduction="sum")

    def plain():
        net.zero_grad(set_to_none=True)
        loss(net(x), y).backward()

    params = {name: p.detach().clone() for name, p in net.named_parameters()}

    def of_row(params, x, y):
        return loss(torch.func.functional_call(net, params, (x[None],)), y[None])

    every = torch.func.vmap(torch.func.grad(of_row), in_dims=(None, 0, 0))

    def func():
        gradients = every(params, x, y).values()
        return torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)

    return {"torch forward+backward": plain, "torch.func": func, **_opacus(net, x, y, loss)}


def _opacus(net, x, y, loss):
    try:
        import copy

        from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    except ImportError as error:
        print(f"opacus is missing: {error}", file=sys.stderr)
        return {}
    hooked = GradSampleModule(copy.deepcopy(net), loss_reduction="sum")
    ghost = GradSampleModuleFastGradientClipping(
        copy.deepcopy(net), max_grad_norm=1.0, loss_reduction="sum", use_ghost_clipping=True
    )

    def hooks():
        hooked.zero_grad(set_to_none=True)
        loss(hooked(x), y).backward()
        norms = [p.grad_sample.flatten(1).norm(dim=1) for p in hooked.parameters()]
        return torch.stack(norms).norm(dim=0)

    def ghosts():
        ghost.zero_grad(set_to_none=True)
        loss(ghost(x), y).backward()
        return ghost.get_norm_sample()

    return {"opacus hooks": hooks, "opacus ghost": ghosts}


def main() -> None:
    arrays = np.load(sys.argv[1])
    torch.set_num_threads(int(sys.argv[2]))
    net, x = {"mlp": mlp, "cnn": cnn, "cnn_max": cnn}[str(arrays["model"])](arrays)
    x = torch.from_numpy(np.ascontiguousarray(x))
    runs = contenders(net, x, torch.from_numpy(arrays["y"]))
    print(json.dumps({"names": list(runs), "torch": torch.__version__}), flush=True)
    seen = set()
    for line in sys.stdin:
        name, count = line.rstrip().split("\t")
        first = time.perf_counter()
        value = runs[name]()
        first = time.perf_counter() - first
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(int(count)):
            value = runs[name]()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        answer = {"wall": wall / int(count), "cpu": cpu / int(count), "first": first}
        if name not in seen and value is not None:
            answer["norms"] = value.detach().numpy().tolist()
        seen.add(name)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
