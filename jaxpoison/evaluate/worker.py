"""One case in a process of its own: a task as JSON on standard input, its record as the output.

python -m jaxpoison.evaluate.worker < task.json
"""

from __future__ import annotations

import json
import sys
from typing import Any

from jaxpoison.evaluate import measure
from jaxpoison.evaluate.records import to_line
from jaxpoison.evaluate.suites import Case, SetSpec, make


def parse(text: str) -> measure.Task:
    """The task that ``runner.worker_input`` wrote."""
    held: dict[str, Any] = json.loads(text)
    spec, case = make(SetSpec, held["spec"]), make(Case, held["case"])
    return measure.Task(spec, case, held["seed"], held["rows"], held["retrain"])


def main() -> int:
    """Runs the case."""
    record = measure.run(parse(sys.stdin.read()), isolated=True)
    print(to_line(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
