"""From certificates to what the report holds and shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import jaxpoison
from jaxpoison._types import HostArray
from jaxpoison.certify.certificates import Certificates
from jaxpoison.certify.manifest import manifest_digest
from jaxpoison.certifying.opening import Opened, Rows, shape_of
from jaxpoison.certifying.plan import CertifyPlan
from jaxpoison.report import CertificateReport, Example, Pictures, class_names_of
from jaxpoison.sources.bundled import PREFIXES

if TYPE_CHECKING:
    from jaxpoison.certify.ensemble import Ensemble
    from jaxpoison.certify.verification import Verification

LISTED = 24
"""Least certain rows that are listed, with pictures."""

COLUMNS = {
    "insert": "inserts", "delete": "deletes", "flip": "flips", "modify": "modifications",
    "modify, same key": "modifications_same_key", "key": "keys",
}  # fmt: skip
"""Columns of ``predictions.parquet``, by the change that they count."""

_VALUES = 24  # of a row of features that is shown
_DIMMEST = 64  # brightest pixel below which images are stretched to be seen


def make_report(
    plan: CertifyPlan,
    data: Opened,
    ensemble: Ensemble,
    certificates: Certificates,
    runner_up: HostArray,
    base: float,
    timing: dict[str, float],
    checked: Verification | None,
    reused: int,
) -> CertificateReport:
    """Puts everything together.

    Args:
        plan: What was asked.
        data: What was read.
        ensemble: What voted.
        certificates: Of all test rows.
        runner_up: [v] the other class with most votes.
        base: Share of single votes that are right.
        timing: Seconds by stage.
        checked: What ``verify`` refitted, if it was asked to.
        reused: Pieces of votes taken from a run that was cut off.
    """
    least = least_certain(certificates)
    names = class_names_of(range(data.num_classes), data.schema.class_names)
    manifest = ensemble.manifest()
    document = {
        "schema": "jaxpoison.certificate/1",
        "version": jaxpoison.__version__,
        "train": {**_of(data.train), **shape_of(data.schema)},
        "test": {**_of(data.test), "labelled": data.test.y is not None},
        "n_classes": data.num_classes,
        "scheme": plan.scheme,
        **_claim(certificates, ensemble),
        **_figures(certificates, data.test.y, base),
        "least_certain": [
            _entry(certificates, runner_up, data.test, names, row) for row in least.tolist()
        ],
        "notes": [*data.notes, *_notes(plan, data, manifest)],
        "verified": None if checked is None else _checked(checked),
        "manifest": manifest,
        "manifest_digest": manifest_digest(manifest),
        "timing": {name: round(value, 4) for name, value in timing.items()},
        "pieces_reused": reused,
        "plan": plan.as_dict(),
    }
    columns = _columns(certificates, runner_up, data.test)
    return CertificateReport(document, columns, _pictures(data, certificates, least, names))


def _claim(found: Certificates, ensemble: Ensemble) -> dict[str, Any]:
    design = ensemble.partitions.design
    return {
        "rule": found.rule, "k": design.k, "spread": design.spread,
        "subsets": design.num_subsets, "covers": design.covers,
        "threat": {"name": found.threat.name, "unit": "touched cells", "costs": found.costs},
    }  # fmt: skip


def _checked(found: Verification) -> dict[str, Any]:
    return {"subsets": list(found.subsets), "probes": found.probes, "checks": list(found.checks)}


def least_certain(certificates: Certificates) -> HostArray:
    """Rows by radius, then by the lead of the prediction; the first of them."""
    lead = certificates.first.astype(np.int64) - certificates.second
    return np.lexsort((np.arange(len(lead)), lead, certificates.radius))[:LISTED]


def _figures(found: Certificates, labels: HostArray | None, base: float) -> dict[str, Any]:
    radius = found.radius
    radii = np.arange(max(1, int(radius.max()) + 2))
    share = (radius[None, :] >= radii[:, None]).mean(axis=1)
    accuracy = median = curve = None
    if labels is not None:
        accuracy = {"clean": float((found.prediction == labels).mean()), "base": base}
        median = found.median(labels)
        curve = found.certified_accuracy(labels, radii)
    return {
        "accuracy": accuracy,
        "median": median,
        "certified": int((radius >= 1).sum()),
        "largest": int(radius.max()),
        "curve": {
            "radius": radii.tolist(),
            "accuracy": None if curve is None else curve.tolist(),
            "share": share.tolist(),
        },
    }


def _of(rows: Rows) -> dict[str, Any]:
    return {"name": rows.name, "fingerprint": rows.fingerprint, "rows": len(rows.x)}


def _entry(
    found: Certificates, runner_up: HostArray, test: Rows, names: list[str], row: int
) -> dict[str, Any]:
    label = None if test.y is None or test.y[row] < 0 else int(test.y[row])
    guess, other = int(found.prediction[row]), int(runner_up[row])
    return {
        "index": int(test.index[row]), "label": label,
        "label_name": None if label is None else names[label] if label < len(names) else "",
        "prediction": guess, "prediction_name": names[guess],
        "runner_up": other, "runner_up_name": names[other], "radius": int(found.radius[row]),
        "votes_first": int(found.first[row]), "votes_second": int(found.second[row]),
    }  # fmt: skip


def _columns(found: Certificates, runner_up: HostArray, test: Rows) -> dict[str, Any]:
    columns: dict[str, Any] = {"index": test.index.astype(np.int64)}
    if test.y is not None:
        columns["label"] = np.ma.masked_array(test.y, test.y < 0)
    columns["prediction"] = found.prediction.astype(np.int64)
    columns["radius"] = found.radius.astype(np.int64)
    columns["votes_first"] = found.first.astype(np.int64)
    columns["votes_second"] = found.second.astype(np.int64)
    columns["runner_up"] = runner_up.astype(np.int64)
    for change in found.costs:
        columns[COLUMNS[change]] = found.tolerates(change).astype(np.int64)
    return columns


def _notes(plan: CertifyPlan, data: Opened, manifest: dict[str, Any]) -> list[str]:
    notes = []
    if plan.k is None:
        notes.append(
            "k was taken from the number of training rows, which an attacker can change; fix it "
            "(--k) where that matters: a certificate speaks of the k it was made with"
        )
    if plan.classes is None:
        notes.append(
            "the number of classes was taken from the training labels; fix it (--classes) where "
            "an attacker could add a class"
        )
    if data.schema.class_names is not None and plan.data.partition(":")[0] not in PREFIXES:
        notes.append(
            "classes were numbered by the names that occur in the training labels; number them "
            "yourself where an attacker could add a name"
        )
    if plan.share is not None:
        notes.append(
            "test rows were held out of the same data: their labels are no better than the rest"
        )
    empty = manifest["subsets"]["empty"]
    if empty:
        notes.append(f"{empty} subsets are empty and vote for class 0")
    return notes


def _pictures(data: Opened, found: Certificates, rows: HostArray, names: list[str]) -> Pictures:
    is_image = data.schema.kind == "images"
    examples = tuple(
        Example(
            index=int(data.test.index[k]), label=int(found.prediction[k]),
            suspicion=float(found.radius[k]), p=1.0, q=1.0, flagged=bool(found.radius[k] < 1),
            kind="", image=_bright(data.test.x[k]) if is_image else None,
            values=None if is_image else data.test.x[k][:_VALUES].astype(np.float64),
        )
        for k in rows.tolist()
    )  # fmt: skip
    return Pictures((), (), examples, tuple(names))


def _bright(image: HostArray) -> HostArray:
    """Images of few dark levels, such as 0 to 16, stretched by a whole factor."""
    if image.ndim == 3 or int(image.max(initial=0)) > _DIMMEST:
        return image
    return (image.astype(np.uint16) * 15).clip(0, 255).astype(np.uint8)
