"""How a scan is run: on which engine, and what of it outlives a process that dies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpoison.report.files import check_out_dir
from jaxpoison.stream import Engine, Journal, machine_identity, open_engine
from jaxpoison.work import Work, code_identity, read

if TYPE_CHECKING:
    import os

    from jaxpoison._types import HostArray
    from jaxpoison.report import Report


@dataclass(frozen=True)
class Running:
    """Where passes run and where they are kept; neither changes a bit of the result.

    Attributes:
        engine: What runs the passes.
        folder: Of the output, or None where the report only lives in memory.
        resume: Go on with what the folder holds of a scan that was cut off.
    """

    engine: Engine
    folder: Path | None = None
    resume: bool = False

    def work(self, identity: dict[str, Any]) -> Work | None:
        """What this scan has done so far; None where nothing is kept, and on all but the writer.

        Raises:
            UsageError: The folder holds work of another scan.
        """
        if self.folder is None:
            return None
        folder, whole = self.folder, {**identity, **code_identity(), **machine_identity()}
        return self.engine.agreed(lambda: Work(folder, whole, resume=self.resume))

    def journal(self, work: Work | None) -> Journal | None:
        """The same as passes use it, on every process."""
        return self.engine.journal(work, lambda data: read(BytesIO(data)), resume=self.resume)

    def write(self, report: Report, work: Work | None) -> None:
        """Writes the report, if there is a folder, and lets go of what was kept."""
        folder = self.folder
        if folder is not None:
            self.engine.agreed(lambda: report.write(folder, resume=True))
        if work is not None:
            work.remove()


@contextmanager
def running(
    engine: str | Engine = "local",
    out: str | os.PathLike[str] | None = None,
    *,
    resume: bool = False,
    devices: int | None = None,
) -> Iterator[Running]:
    """An engine by its name, let go of afterwards, and a folder that can be written to.

    Args:
        engine: "local", "spmd", "ray", "ray://HOST:PORT" or an engine.
        out: Folder of the report, or None.
        resume: It may hold a scan that was cut off.
        devices: Of this process, for "local"; None for all.

    Raises:
        UsageError: An engine that is unknown or not installed; a folder in use.
        OutputError: The folder cannot be written to.
    """
    with open_engine(engine, devices=devices) as opened:
        if out is not None:
            opened.agreed(lambda: check_out_dir(out, resume=resume))
        yield Running(opened, None if out is None else Path(out).resolve(), resume)


def digest_of(array: HostArray | None) -> str | None:
    """Content of an array for the identity of a scan."""
    if array is None:
        return None
    return hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest()
