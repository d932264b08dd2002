"""Write a report to disk: all of it or nothing."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from jaxpoison._check import JaxpoisonError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxpoison.report._report import Report

# report.json comes last: where it is, everything else is complete.
FILE_NAMES = (
    "scores.parquet",
    "clean_index.npy",
    "flagged_index.npy",
    "report.html",
    "report.json",
)
EXPLANATION_NAMES = ("explanation.html", "explanation.json")
CERTIFICATE_NAMES = ("predictions.parquet", "certificate.html", "certificate.json")
WORK_NAME = ".work"  # what a run that is not done has so far, in the folder of its output
_FIXED_COLUMNS = (
    "index",
    "label",
    "suspicion",
    "p",
    "q",
    "flagged",
    "suspected_kind",
    "suggested_label",
)
_NO_SPACE = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


class OutputError(JaxpoisonError):
    """A result that could not be written: no space, no permission, a failing disk."""


def load_schema() -> dict[str, Any]:
    """Returns the JSON Schema (draft 2020-12) that every `report.json` obeys."""
    return read_schema("report.schema.json")


def read_schema(name: str) -> dict[str, Any]:
    """Reads a JSON Schema of this package by its file name."""
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def check_out_dir(path: str | os.PathLike[str], *, resume: bool = False) -> Path:
    """Checks that a report could be written to a folder; changes nothing on disk.

    Call it before a long scan.

    Args:
      path: a folder that does not exist yet, or an empty one.
      resume: it may hold what a run that was cut off has done.

    Returns:
      The folder as an absolute path, links resolved.

    Raises:
      UsageError: if it is not a folder, or is one that already holds a file.
      OutputError: if it, or the folder it would be created in, is not writable.
    """
    if not os.fspath(path):
        raise UsageError("out_dir is empty; name a folder for the report")
    try:
        out = Path(path).resolve()
        if out.is_dir():
            _check_empty(out, resume)
            parent = out
        else:
            parent = out
            while not (parent.exists() or parent.is_symlink()) and parent != parent.parent:
                parent = parent.parent
            if not parent.is_dir():
                raise UsageError(
                    f"out_dir {str(path)!r}: {str(parent)!r} is not a folder; choose another folder"
                )
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, up to Python 3.12
        raise explain_failure(error, Path(path)) from error
    if not os.access(parent, os.W_OK | os.X_OK):
        raise explain_failure(PermissionError(errno.EACCES, "permission denied"), parent)
    return out


def _check_empty(out: Path, resume: bool) -> None:
    held = sorted(os.listdir(out))
    left = _left_by_a_run(out, held)
    if resume:
        held = [name for name in held if name not in left]
    if held and set(held) == left:
        raise UsageError(
            f"out_dir {str(out)!r} holds what a run that was cut off has done; go on with it "
            f"(--resume), or remove {WORK_NAME!r} there"
        )
    first = next((name for name in held if name != WORK_NAME), None)
    if first is not None:
        ours = first in (*FILE_NAMES, *EXPLANATION_NAMES, *CERTIFICATE_NAMES)
        what = "an earlier report" if ours else f"files, such as {first!r}"
        raise UsageError(
            f"out_dir {str(out)!r} already holds {what}; choose another folder or remove it"
        )


def _left_by_a_run(out: Path, held: list[str]) -> set[str]:
    """What a run that was cut off left of those names: its work, and a report half in place."""
    if WORK_NAME not in held or not {FILE_NAMES[-1], CERTIFICATE_NAMES[-1]}.isdisjoint(held):
        return {WORK_NAME}.intersection(held)
    ours = {WORK_NAME, *FILE_NAMES, *CERTIFICATE_NAMES}
    return {name for name in held if name in ours or name.startswith(f".{out.name}.tmp-")}


def text_saver(text: str) -> Callable[[IO[bytes]], object]:
    """What writes a text to an open file, as ``write_files`` takes it."""
    return lambda file: file.write(text.encode("utf-8"))


def write_report(report: Report, out_dir: str | os.PathLike[str], *, resume: bool = False) -> Path:
    """Writes the files named in `FILE_NAMES`; see `Report.write`."""
    from jaxpoison.report.html import render_html

    columns = check_columns(report)
    check_out_dir(out_dir, resume=resume)
    savers: dict[str, Callable[[IO[bytes]], object]] = {
        "scores.parquet": lambda file: save_parquet(columns, file),
        "clean_index.npy": lambda file: _save_npy(report.clean_indices(), file),
        "flagged_index.npy": lambda file: _save_npy(report.flagged_indices(), file),
        "report.html": text_saver(render_html(report)),
        "report.json": text_saver(to_json(report.report)),
    }
    return write_files(out_dir, {name: savers[name] for name in FILE_NAMES}, resume=resume)


def write_files(
    out_dir: str | os.PathLike[str],
    savers: dict[str, Callable[[IO[bytes]], object]],
    *,
    resume: bool = False,
) -> Path:
    """Writes files into a new or empty folder, all of them or none.

    Args:
      out_dir: as `check_out_dir` takes it.
      savers: what writes each file, by its name; the last one makes the others complete.
      resume: as `check_out_dir` takes it.

    Returns:
      The folder.

    Raises:
      UsageError: if the folder cannot be used.
      OutputError: if writing failed. Nothing is left behind.
    """
    out = check_out_dir(out_dir, resume=resume)
    # A folder that exists may be a mount point, whose parent is another (or read-only) disk and
    # which cannot be replaced: then the stage goes inside it.
    parent = out if out.is_dir() else out.parent
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    stage: Path | None = None
    try:
        if resume and out.is_dir():
            _remove(out, _left_by_a_run(out, os.listdir(out)) - {WORK_NAME})
        stage = _make_stage(parent, out.name)
        for name, save in savers.items():
            with open(stage / name, "wb") as file:
                save(file)
        _move_into_place(stage, out, list(savers))
    except OSError as error:
        raise explain_failure(error, out) from error
    finally:  # also after an interrupt; after success the stage is gone
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
        for folder in made:  # innermost first; one that holds the report stays
            with contextlib.suppress(OSError):
                folder.rmdir()
    return out


def _remove(out: Path, names: set[str]) -> None:
    for name in names:
        if (out / name).is_dir():
            shutil.rmtree(out / name)
        else:
            (out / name).unlink()


def _make_stage(parent: Path, name: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    base = f".{name}.tmp-{os.getpid()}"
    for attempt in range(100):  # process ids repeat in containers: a killed run may have left one
        stage = parent / (base if not attempt else f"{base}-{attempt}")
        try:
            stage.mkdir()
        except FileExistsError:
            continue
        return stage
    raise FileExistsError(errno.EEXIST, "a hundred unfinished reports are in the way", str(parent))


def _move_into_place(stage: Path, out: Path, names: list[str]) -> None:
    if stage.parent != out:
        # Renaming a folder replaces an empty one but never a filled one.
        os.rename(stage, out)
        return
    done: list[Path] = []
    try:
        for name in names:
            if (out / name).exists():  # another run was faster
                raise FileExistsError(errno.EEXIST, "the file appeared meanwhile", name)
            os.rename(stage / name, out / name)
            done.append(out / name)
    except BaseException:
        for path in done:
            path.unlink(missing_ok=True)
        raise


def explain_failure(error: Exception, path: Path, *, is_kept: bool = False) -> OutputError:
    """What went wrong while a path was written, and what to do; ``is_kept``: --resume goes on."""
    code = error.errno if isinstance(error, OSError) else None
    where = f"out_dir {str(path)!r}"
    if code in _NO_SPACE:
        if is_kept:
            return OutputError(
                f"{where}: no space left on the disk; what was done before is kept: free some "
                "space and go on with it (--resume)"
            )
        return OutputError(
            f"{where}: no space left on the disk; nothing was kept. "
            "Free some space or choose a folder on another disk"
        )
    if code in _NO_PERMISSION:
        return OutputError(
            f"{where}: no permission to write there; choose another folder or change its rights"
        )
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return OutputError(f"{where}: cannot be written ({reason}); choose another folder")


def to_json(document: dict[str, Any]) -> str:
    """Encodes the report: ASCII only, so that no name in it can disturb a terminal.

    Raises:
      ValueError: if it holds NaN, an infinity or an object that JSON has no form for.
    """

    def plain(value: Any) -> Any:
        if hasattr(value, "tolist"):  # NumPy scalars and arrays, without importing NumPy
            return value.tolist()
        raise ValueError(f"report holds {type(value).__name__}, which JSON has no form for")

    return json.dumps(document, indent=2, allow_nan=False, default=plain) + "\n"


def check_columns(report: Report) -> dict[str, Any]:
    """Returns the columns of `scores.parquet` in order, or raises ValueError on a bad one."""
    import numpy as np

    clash = sorted(set(report.scores) & set(_FIXED_COLUMNS))
    if clash:
        raise ValueError(f"scores: detector name {clash[0]!r} is the name of another column")
    columns: dict[str, Any] = {
        "index": np.asarray(report.index, np.int64),
        "label": np.asarray(report.label, np.int64),
        **{name: np.asarray(value, np.float32) for name, value in report.scores.items()},
        "suspicion": np.asarray(report.suspicion, np.float64),
        "p": np.asarray(report.p, np.float64),
        "q": np.asarray(report.q, np.float64),
        "flagged": np.asarray(report.flagged, np.bool_),
        "suspected_kind": np.asarray(report.suspected_kind, np.str_),
        "suggested_label": np.asarray(report.suggested_label, np.int64),
    }
    num_rows = len(columns["index"])
    for name, value in columns.items():
        if value.shape != (num_rows,):
            raise ValueError(f"{name} must have shape ({num_rows},), got {value.shape}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            row = int(np.flatnonzero(~np.isfinite(value))[0])
            raise ValueError(f"{name} must be finite, but row {row} is {value[row]}")
    return columns


def save_parquet(columns: dict[str, Any], file: IO[bytes]) -> None:
    """Writes columns of equal length; masked arrays have nulls where they are masked."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = [
        pa.array(value.data, mask=value.mask) if isinstance(value, np.ma.MaskedArray)
        else pa.array(value)
        for value in columns.values()
    ]  # fmt: skip
    fields = [
        pa.field(name, array.type, nullable=isinstance(columns[name], np.ma.MaskedArray))
        for name, array in zip(columns, arrays, strict=True)
    ]
    table = pa.Table.from_arrays(arrays, schema=pa.schema(fields))
    pq.write_table(table, file, compression="zstd")


def _save_npy(rows: Any, file: IO[bytes]) -> None:
    import numpy as np

    np.save(file, rows, allow_pickle=False)
