"""Worker of ekfac.py: EK-FAC by kronfluence and TracIn by captum, in an environment of theirs.

    python benchmarks/torch_influence.py given.npz 1 answer.npy      # started by ekfac.py

Reads the name of a contender a line and answers with a line of JSON, its wall and CPU seconds and
the file of what it found. Both tools read the rows through their own data loader, as their
documentation has it; kronfluence writes its factors and scores to files, as it always does.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils import data

warnings.filterwarnings("ignore")


class Net(nn.Module):
    """Dense layers; positions, if there are any, are averaged before the last."""

    def __init__(self, arrays):
        super().__init__()
        self.activation = getattr(torch, str(arrays["activation"]))
        self.count = sum(name.startswith("w") for name in arrays)
        for k in range(self.count):
            layer = nn.Linear(*arrays[f"w{k}"].shape)
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(arrays[f"w{k}"].T.copy()))
                layer.bias.copy_(torch.from_numpy(arrays[f"b{k}"]))
            setattr(self, f"l{k}", layer)

    def forward(self, x):
        for k in range(self.count):
            if k == self.count - 1 and x.ndim == 3:
                x = x.mean(dim=1)
            x = getattr(self, f"l{k}")(x)
            x = self.activation(x) if k < self.count - 1 else x
        return x


def kronfluence(net, rows, batch, folder):
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class Classify(Task):
        def compute_train_loss(self, batch, model, sample=False):
            x, y = batch
            return nn.functional.cross_entropy(model(x), y, reduction="sum")

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

    task = Classify()
    net = prepare_model(net, task)
    analyzer = Analyzer("ekfac", net, task, cpu=True, output_dir=folder, disable_tqdm=True)
    args = FactorArguments(strategy="ekfac", use_empirical_fisher=True)
    sizes = {"per_device_batch_size": batch, "factor_args": args, "overwrite_output_dir": True}
    analyzer.fit_covariance_matrices("ekfac", rows, **sizes)
    analyzer.perform_eigendecomposition("ekfac", factor_args=args)

    def fit():
        analyzer.fit_lambda_matrices("ekfac", rows, **sizes)

    def fitted():
        found = analyzer.load_lambda_matrices("ekfac")
        sums, counts = found["lambda_matrix"], found["num_lambda_processed"]
        return np.array([float(sums[name].sum() / counts[name]) for name in sorted(sums)])

    def own():
        analyzer.compute_self_scores(
            "self",
            factors_name="ekfac",
            train_dataset=rows,
            per_device_train_batch_size=batch,
            score_args=ScoreArguments(damping_factor=None),
            overwrite_output_dir=True,
        )

    def scores():
        return analyzer.load_self_scores("self")["all_modules"].numpy()

    return {"kronfluence Lambda": (fit, fitted), "kronfluence self": (own, scores)}


def captum(net, rows, batch, folder):
    from captum.influence import TracInCP, TracInCPFast

    torch.save(net.state_dict(), Path(folder, "checkpoint.pt"))
    files, found = [str(Path(folder, "checkpoint.pt"))], {}

    def contender(name, make):
        tool = make()

        def run():
            found[name] = tool.self_influence()

        return run, lambda: found[name].detach().numpy()

    each, summed = nn.CrossEntropyLoss(reduction="none"), nn.CrossEntropyLoss(reduction="sum")
    makers = {
        "captum default": lambda: TracInCP(net, rows, files, loss_fn=each, batch_size=batch),
        "captum sample-wise": lambda: TracInCP(
            net, rows, files, loss_fn=summed, batch_size=batch, sample_wise_grads_per_batch=True
        ),
        "captum fast": lambda: TracInCPFast(
            net, getattr(net, f"l{net.count - 1}"), rows, files, loss_fn=summed, batch_size=batch
        ),
    }
    return {name: contender(name, make) for name, make in makers.items()}


def main() -> None:
    arrays = np.load(sys.argv[1])
    torch.set_num_threads(int(sys.argv[2]))
    net = Net(arrays)
    rows = data.TensorDataset(torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"]))
    kind, batch = str(arrays["tool"]), int(arrays["batch"])
    with tempfile.TemporaryDirectory() as folder:
        runs = {"kronfluence": kronfluence, "captum": captum}[kind](net, rows, batch, folder)
        print(json.dumps({"names": list(runs), "torch": torch.__version__}), flush=True)
        for line in sys.stdin:
            run, found = runs[line.rstrip()]
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            np.save(sys.argv[3], found())
            print(json.dumps({"wall": wall, "cpu": cpu, "file": sys.argv[3]}), flush=True)


if __name__ == "__main__":
    main()
