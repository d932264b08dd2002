"""The other side of influence.py and lds.py: dattri, pyDVL and traker, in their own environment.

Started by those scripts with the Python of the peers. Runs one peer for each line it reads and
answers with one JSON line of seconds and the file of the result. Nothing of ours is imported here.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import types
import warnings

import numpy as np

warnings.simplefilter("ignore")


def cg_influence(given, arguments):
    """dattri's whole call: one Hessian batch, the training rows in batches."""
    import torch
    from dattri.algorithm.influence_function import IFAttributorCG
    from dattri.task import AttributionTask
    from torch.utils.data import DataLoader, TensorDataset

    x, y, asked, own = (torch.from_numpy(given[name]) for name in ("x", "y", "asked", "own"))
    model = torch.nn.Linear(x.shape[1], given["weights"].shape[0], bias=False)
    model.weight.data = torch.from_numpy(given["weights"])

    def loss_fn(params, data):
        rows, labels = data
        return torch.nn.functional.cross_entropy(
            torch.func.functional_call(model, params, rows), labels
        )

    def run():
        task = AttributionTask(loss_func=loss_fn, model=model, checkpoints=model.state_dict())
        attributor = IFAttributorCG(
            task, max_iter=arguments["steps"], regularization=arguments["damping"], tol=1e-30
        )
        rows, queries = TensorDataset(x, y), TensorDataset(asked, own)
        attributor.cache(DataLoader(rows, batch_size=len(x)))
        loader = DataLoader(rows, batch_size=arguments["batch"])
        with torch.no_grad():
            scores = attributor.attribute(loader, DataLoader(queries, batch_size=len(asked)))
        return scores.numpy().T / len(x)

    return run


def shapley_dattri(given, arguments):
    """The first few queries only: it takes half a second for each."""
    import torch
    from dattri.algorithm.data_shapley import KNNShapleyAttributor
    from torch.utils.data import DataLoader, TensorDataset

    x, y, asked, own = (torch.from_numpy(given[name]) for name in ("x", "y", "asked", "own"))
    few = arguments["few"]

    def run():
        rows, queries = TensorDataset(x, y), TensorDataset(asked[:few], own[:few])
        values = KNNShapleyAttributor(arguments["neighbours"]).attribute(
            DataLoader(rows, batch_size=len(x)), DataLoader(queries, batch_size=few)
        )
        return values.numpy().mean(0)

    return run


def shapley_pydvl(given, arguments):
    """One call for all queries, one process."""
    # a solver that other methods of the package import and this one does not use
    sys.modules.setdefault("cvxpy", types.ModuleType("cvxpy"))
    from pydvl.valuation.dataset import Dataset
    from pydvl.valuation.methods.knn_shapley import KNNShapleyValuation
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(arguments["neighbours"], algorithm="brute")

    def run():
        queries = Dataset(given["asked"], given["own"])
        method = KNNShapleyValuation(model, queries, progress=False)
        method.fit(Dataset(given["x"], given["y"]))
        return np.asarray(getattr(method, "_result", None).values)

    return run


def trak_dense(given, arguments):
    """The projector for machines without its CUDA kernel, Rademacher as ours."""
    import torch
    from trak.projectors import BasicProjector, ProjectionType

    rows = torch.from_numpy(given["rows"])
    projector = BasicProjector(
        rows.shape[1], arguments["features"], 0, ProjectionType.rademacher, torch.device("cpu")
    )

    def run():
        return projector.project(rows, model_id=0).numpy() / np.sqrt(arguments["features"])

    return run


def trak_seeds(given, arguments):
    """The same for several draws of the matrix."""
    import torch
    from trak.projectors import BasicProjector, ProjectionType

    rows = torch.from_numpy(given["rows"])

    def run():
        found = []
        for seed in range(arguments["seeds"]):
            projector = BasicProjector(
                rows.shape[1], arguments["features"], seed, ProjectionType.rademacher,
                torch.device("cpu"),
            )  # fmt: skip
            found.append(projector.project(rows, model_id=0).numpy())
        return np.stack(found) / np.sqrt(arguments["features"])

    return run


def main() -> None:
    name, folder = sys.argv[1:3]
    arguments = json.loads(sys.argv[3])
    answers, sys.stdout = sys.stdout, sys.stderr  # what a peer prints is no answer
    try:
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        given = dict(np.load(os.path.join(folder, "given.npz")))
        run = globals()[name](given, arguments)
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), file=answers, flush=True)
        return
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for _ in sys.stdin:
        before, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        value = run()
        wall, after = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        file = os.path.join(folder, "answer.npy")
        np.save(file, value)
        print(json.dumps({"wall": wall, "cpu": cpu, "file": file}), file=answers, flush=True)


if __name__ == "__main__":
    main()
