"""A worker in a peer's own environment, which answers one turn at a time."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np


class PeerProcess:
    """Runs a script of this folder and speaks with it in lines.

    Its first line of JSON is ``facts``; then it answers each line with one of JSON. Where there is
    no peer to speak with, ``missing`` says why.
    """

    def __init__(self, python: str | None, script: str, *arguments: str, threads: int) -> None:
        self._process: subprocess.Popen[str] | None = None
        self.facts: dict[str, Any] = {"missing": "no interpreter is named"}
        if python is None:
            return
        # Our packages are not for the peer's interpreter.
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name(script)), *arguments],
            env={**env, "OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts = self._answer()

    @property
    def missing(self) -> str | None:
        return self.facts.get("missing")

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"missing": "it ended with an error"}

    def ask(self, line: str = "") -> dict[str, Any]:
        """The answer to one turn."""
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        if "missing" in answer:
            raise RuntimeError(answer["missing"])
        return answer

    def run(self, line: str = "") -> tuple[np.ndarray, float, float]:
        """What one turn found, from the file that the answer names, its wall and CPU seconds."""
        answer = self.ask(line)
        return np.load(answer["file"]), answer["wall"], answer["cpu"]

    def close(self) -> None:
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()
