"""Makes tests/ekfac_goldens.npz: EK-FAC scores by kronfluence on small shared weights.

    pip install torch kronfluence       # in an environment of their own
    python benchmarks/ekfac_goldens.py tests/ekfac_goldens.npz

Three models in float64: an MLP with biases, the same kind of layers on sequences (one without a
bias), and two convolutions with a dense head. Stored are weights and rows (float32), the Lambda of
each layer as a sum over its entries, and the self and pairwise scores, at the default damping (a
tenth of the mean Lambda) and, for the MLP, at a fixed one. kronfluence reports the raw
``g^T (Lambda + lambda)^-1 g``; ours divide by the rows trained on.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from itertools import pairwise

import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import nn
from torch.utils import data

warnings.filterwarnings("ignore")
ROWS, QUERIES = 40, 6


class Classify(Task):
    """Cross-entropy, summed, with the labels as they are."""

    def compute_train_loss(self, batch, model, sample=False):
        x, y = batch
        logits = model(x)
        if sample:
            raise NotImplementedError("the empirical Fisher matrix is asked for")
        return nn.functional.cross_entropy(logits, y, reduction="sum")

    def compute_measurement(self, batch, model):
        return self.compute_train_loss(batch, model)


class Sequence(nn.Module):
    """Two dense layers on each of T positions, the mean, a dense head."""

    def __init__(self, sizes):
        super().__init__()
        i, h, g, c = sizes
        self.l0, self.l1 = nn.Linear(i, h), nn.Linear(h, g, bias=False)
        self.l2 = nn.Linear(g, c)

    def forward(self, x):
        h = torch.tanh(self.l1(torch.tanh(self.l0(x))))
        return self.l2(h.mean(dim=1))


class Dense(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.l0, self.l1, self.l2 = (nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x):
        return self.l2(torch.tanh(self.l1(torch.tanh(self.l0(x)))))


class Pictures(nn.Module):
    """Channels last outside, as JAX has them."""

    def __init__(self):
        super().__init__()
        self.l0 = nn.Conv2d(2, 4, 3, padding=1)
        self.l1 = nn.Conv2d(4, 5, (2, 3), stride=(2, 1), bias=False)
        self.l2 = nn.Linear(5, 3)

    def forward(self, x):
        x = torch.tanh(self.l0(x.permute(0, 3, 1, 2)))
        return self.l2(torch.tanh(self.l1(x)).mean(dim=(2, 3)))


MODELS = {
    "mlp": (lambda: Dense((6, 7, 5, 3)), (6,)),
    "sequence": (lambda: Sequence((5, 6, 4, 3)), (4, 5)),
    "conv": (Pictures, (6, 5, 2)),
}


def analyse(net, rows, labels, damping):
    """Lambda of each layer, self scores and pairwise scores."""
    task, count = Classify(), len(rows)
    train = data.TensorDataset(rows, labels)
    query = data.TensorDataset(rows[:QUERIES] * 0.7, labels[:QUERIES].flip(0))
    wide = torch.float64
    factors = FactorArguments(
        strategy="ekfac",
        use_empirical_fisher=True,
        activation_covariance_dtype=wide,
        gradient_covariance_dtype=wide,
        per_sample_gradient_dtype=wide,
        lambda_dtype=wide,
    )
    scores = ScoreArguments(
        damping_factor=damping,
        per_sample_gradient_dtype=wide,
        precondition_dtype=wide,
        score_dtype=wide,
    )
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer("goldens", net, task, cpu=True, output_dir=folder, disable_tqdm=True)
        analyzer.fit_all_factors("ekfac", train, per_device_batch_size=count, factor_args=factors)
        lambdas = analyzer.load_lambda_matrices("ekfac")
        arguments = {"factors_name": "ekfac", "score_args": scores}
        analyzer.compute_self_scores(
            "self", train_dataset=train, per_device_train_batch_size=count, **arguments
        )
        analyzer.compute_pairwise_scores(
            "pairs",
            query_dataset=query,
            train_dataset=train,
            per_device_query_batch_size=QUERIES,
            per_device_train_batch_size=count,
            **arguments,
        )
        own = analyzer.load_self_scores("self")["all_modules"]
        pairs = analyzer.load_pairwise_scores("pairs")["all_modules"]
    names = sorted(lambdas["lambda_matrix"])
    means = [
        float(lambdas["lambda_matrix"][n].sum() / lambdas["num_lambda_processed"][n]) for n in names
    ]
    return np.array(means), own.numpy(), pairs.numpy()


def main() -> None:
    out = {}
    for seed, (name, (make, shape)) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        net = prepare_model(make(), Classify())
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((ROWS, *shape)).astype(np.float32)
        y = rng.integers(0, 3, ROWS)
        net.double()
        out[f"{name}/x"], out[f"{name}/y"] = x, y
        for key, value in net.state_dict().items():
            key = key.replace("original_module.", "")
            if key.startswith("l") and key.endswith(("weight", "bias")):
                # float32 in the file and in the model alike
                out[f"{name}/{key}"] = value.float().numpy()
        rows, labels = torch.from_numpy(x).double(), torch.from_numpy(y)
        for damping in (None, 0.01) if name == "mlp" else (None,):
            found = analyse(net, rows, labels, damping)
            for key, value in zip(("lambda", "self", "pairs"), found, strict=True):
                out[f"{name}/{key}" + ("" if damping is None else "/fixed")] = value
    np.savez_compressed(sys.argv[1], **out)
    print({key: value.shape for key, value in out.items()})


if __name__ == "__main__":
    main()
