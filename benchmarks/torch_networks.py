"""Worker of certify_networks.py: the same members by a serial loop in PyTorch.

    python benchmarks/torch_networks.py members.npz 1 out.npz     # started by certify_networks.py

Reads the number of members to train, one a line, from standard input; answers each line with wall
and CPU seconds of the training alone, and at the end of input writes their test scores.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch
from torch import nn


def network(size, channels, num_classes):
    first, second = channels
    return nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear((size // 4) ** 2 * second, num_classes),
    )  # fmt: skip


def standardised(x):
    x = torch.from_numpy(x.astype(np.float32))[:, None]
    x = x - x.mean((1, 2, 3), keepdim=True)
    spread = x.square().mean((1, 2, 3), keepdim=True).sqrt()
    return x / spread.clamp(min=1e-3)


def train(x, y, orders, settings):
    net = network(x.shape[-1], settings["channels"], settings["classes"])
    for layer in net:  # the initialisation of ours
        if isinstance(layer, nn.Conv2d | nn.Linear):
            gain = 2.0 if isinstance(layer, nn.Conv2d) else 1.0
            fan_in = layer.weight[0].numel()
            nn.init.normal_(layer.weight, std=(gain / fan_in) ** 0.5)
            nn.init.zeros_(layer.bias)
    optimiser = torch.optim.SGD(
        net.parameters(), lr=settings["rate"], momentum=settings["momentum"], nesterov=True
    )
    loss = nn.CrossEntropyLoss()
    for rows in orders:
        optimiser.zero_grad(set_to_none=True)
        loss(net(x[rows]), y[rows]).backward()
        optimiser.step()
    return net


def main() -> None:
    arrays, settings = np.load(sys.argv[1]), None
    settings = json.loads(str(arrays["settings"]))
    torch.set_num_threads(int(sys.argv[2]))
    torch.manual_seed(0)
    tests = standardised(arrays["tests"])
    nets: list[nn.Sequential] = []
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        wall = cpu = 0.0
        for member in range(len(nets), len(nets) + int(line)):
            x, y = standardised(arrays["x"][member]), torch.from_numpy(arrays["y"][member])
            orders = [torch.from_numpy(o[o >= 0]) for o in arrays["order"][member].astype(np.int64)]
            start, spent = time.perf_counter(), time.process_time()
            nets.append(train(x, y, orders, settings))
            wall += time.perf_counter() - start
            cpu += time.process_time() - spent
        print(json.dumps({"wall": wall, "cpu": cpu}), flush=True)
    with torch.no_grad():
        np.savez(sys.argv[3], scores=np.stack([net(tests).numpy() for net in nets]))


if __name__ == "__main__":
    main()
