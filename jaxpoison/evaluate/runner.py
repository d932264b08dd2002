"""Runs a suite case by case, takes up where an earlier run stopped, and writes the tables."""

from __future__ import annotations

import difflib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxpoison._check import NothingToScan, UsageError
from jaxpoison.evaluate import measure, planting, records, sets
from jaxpoison.evaluate.files import check_docs, check_folder, write_tables
from jaxpoison.evaluate.measure import Task
from jaxpoison.evaluate.suites import Suite, load_suite, on_own_data
from jaxpoison.evaluate.tables import summarise

ProgressFn = Callable[[int, int, Task, "dict[str, Any] | None"], None]
_ERROR_CHARACTERS = 2000


def run_suite(
    suite: str | Suite,
    out: str | Path,
    *,
    data: str | Path | None = None,
    labels: str | None = None,
    set_names: Sequence[str] | None = None,
    attacks: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    rows: int | None = None,
    retrain: bool = True,
    isolate: bool = False,
    render_only: bool = False,
    docs: str | Path | None = None,
    progress: ProgressFn | None = None,
) -> dict[str, Any]:
    """Runs the cases that have no record yet and writes the tables anew.

    Args:
        suite: "quick", "full", a JSON file, or a Suite.
        out: Folder of the records and the tables; a new one, or one of an earlier run.
        data: Name or path of a dataset of your own, in place of the suite's sets.
        labels: File of its labels, where it does not hold them.
        set_names: Only these sets.
        attacks: Only these attacks or cases ("clean" for the clean ones).
        seeds: In place of the suite's.
        rows: Training rows of each set at the most.
        retrain: Whether networks are retrained on what the flags leave.
        isolate: One process a case, without which the peak of memory is not told.
        render_only: Run nothing; write the tables of the records that are there.
        docs: A Markdown file to write too.
        progress: Called with (cases done, cases in all, task, record), the record None before.

    Returns:
        The document that ``evaluation.json`` holds.

    Raises:
        UsageError: An unknown or missing suite, set or attack, or a folder of other things.
        NothingToScan: No case fits, or there is no record to show.

    **Cost**: one scan and up to four small trainings a case.
    """
    suite = load_suite(suite) if isinstance(suite, str) else suite
    if data is not None:
        suite = on_own_data(suite, str(data), labels)
    elif labels is not None:
        raise UsageError(f"labels: {labels} is given without data; name what they belong to")
    folder = check_folder(out)
    if docs is not None:
        check_docs(docs)
    chosen, path = _chosen(suite, set_names, attacks), folder / records.FILE_NAME
    held = {records.key_of(r): r for r in records.load(path, repair=not render_only)}
    if not render_only:
        tasks = _tasks(chosen, suite.seeds if seeds is None else seeds, rows, retrain)
        contents = {spec.name: sets.content(spec) for spec in {task.spec for task in tasks}}
        held = {key: r for key, r in held.items() if not _is_stale(r, contents)}
        folder.mkdir(parents=True, exist_ok=True)
        _run_all(tasks, path, held, contents, isolate, progress)
    mine = [r for r in _of(chosen, rows, held) if seeds is None or r["seed"] in seeds]
    if not mine:
        raise NothingToScan(f"{folder}: holds no record of these cases; run them first")
    write_tables(document := summarise(mine, chosen), folder, docs)
    return document


def _of(
    suite: Suite, rows: int | None, held: dict[tuple[Any, ...], dict[str, Any]]
) -> list[dict[str, Any]]:
    """The records of a suite's cases as they are defined now, of whatever seed."""
    tasks = [Task(spec, case, 0, rows, False) for spec in suite.sets for case in suite.cases]
    known = {records.key_of(task.header() | {"seed": None}) for task in tasks}
    return [each for each in held.values() if records.key_of(each | {"seed": None}) in known]


def _chosen(suite: Suite, set_names: Sequence[str] | None, attacks: Sequence[str] | None) -> Suite:
    """The part of a suite that is asked for, every attack and option in it known."""
    _check_names("sets", set_names, {spec.name for spec in suite.sets})
    known = {case.name for case in suite.cases} | {case.attack for case in suite.cases}
    _check_names("attacks", attacks, known)
    cases = [c for c in suite.cases if attacks is None or {c.name, c.attack} & set(attacks)]
    for case in cases:
        planting.check(case)
    specs = [s for s in suite.sets if set_names is None or s.name in set_names]
    return replace(suite, sets=tuple(specs), cases=tuple(cases))


def _tasks(suite: Suite, seeds: Sequence[int], rows: int | None, retrain: bool) -> list[Task]:
    """Every case on every set it fits, by every seed; seeds change slowest.

    So the tables of a run that was stopped lack seeds, not attacks.
    """
    kinds = {spec: sets.check(spec) for spec in suite.sets}
    tasks = [
        Task(spec, case, seed, rows, retrain)
        for seed in seeds
        for spec in suite.sets
        for case in suite.cases
        if planting.fits(case, spec.name, spec.cases, kinds[spec])
    ]
    if not tasks:
        raise NothingToScan("none of these attacks fits one of these sets; name others")
    return tasks


def _check_names(argument: str, given: Sequence[str] | None, known: set[str]) -> None:
    for name in given or ():
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            listed = ", ".join(sorted(known))
            raise UsageError(f"{argument}: {name!r} is not in this suite; {hint}known: {listed}")


def _is_done(task: Task, held: dict[tuple[Any, ...], dict[str, Any]]) -> bool:
    """A failed case is run again, and one whose networks were not retrained but shall be."""
    record = held.get(records.key_of(task.header()))
    if record is None or record["status"] == "failed":
        return False
    return record["status"] == "refused" or not task.retrain or record["retrain"] is not None


def _is_stale(record: dict[str, Any], contents: dict[str, str | None]) -> bool:
    """Whether a record is of what a user's file held before."""
    now = contents.get(record["set"])
    return now is not None and record.get("content") != now


def _run_all(
    tasks: list[Task],
    path: Path,
    held: dict[tuple[Any, ...], dict[str, Any]],
    contents: dict[str, str | None],
    isolate: bool,
    progress: ProgressFn | None,
) -> None:
    """Runs what has no record; each record is on the disk before the next case starts."""
    total = len(tasks)
    tasks = [task for task in tasks if not _is_done(task, held)]
    done = total - len(tasks)
    for task in tasks:
        if progress is not None:
            progress(done, total, task, None)
        try:
            record = run_apart(task) if isolate else measure.run(task)
            records.to_line(record)
        except Exception as error:  # one broken case must not cost the night's other ones
            reason = f"{type(error).__name__}: {error}"[:_ERROR_CHARACTERS]
            record = {**task.header(), "status": "failed", "reason": reason}
        if contents[task.spec.name] is not None:
            record["content"] = contents[task.spec.name]
        records.append(path, record)
        held[records.key_of(record)] = record
        done += 1
        if progress is not None:
            progress(done, total, task, record)


def run_apart(task: Task) -> dict[str, Any]:
    """Runs a case in a process of its own, whose peak memory is the case's alone.

    Raises:
        RuntimeError: The process died; the message holds the end of what it said.
    """
    import jaxpoison

    root = str(Path(jaxpoison.__file__).resolve().parent.parent)
    places = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-m", "jaxpoison.evaluate.worker"],
        input=worker_input(task),
        env={**os.environ, "PYTHONPATH": places},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"status {done.returncode}: {done.stderr.strip()[-500:]}")
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


def worker_input(task: Task) -> str:
    """A task as JSON, for a worker."""
    from dataclasses import asdict

    plain = {"spec": asdict(task.spec), "case": asdict(task.case)}
    return json.dumps({**task._asdict(), **plain})
