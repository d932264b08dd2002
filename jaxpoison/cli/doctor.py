"""`jaxpoison doctor`: what is installed, what works, and what to type for the rest."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

CORE = {
    "jax": "jax",
    "jaxlib": "jaxlib",
    "flax": "flax",
    "optax": "optax",
    "orbax-checkpoint": "orbax.checkpoint",
    "numpy": "numpy",
    "scipy": "scipy",
    "scikit-learn": "sklearn",
    "pyarrow": "pyarrow",
    "rich": "rich",
    "jinja2": "jinja2",
    "jaxtyping": "jaxtyping",
    "threadpoolctl": "threadpoolctl",
}
"""The packages that everything needs, as pip calls them, and the modules in them."""

EXIT_BROKEN = 2


class Engine(NamedTuple):
    """A way to spread a scan over devices."""

    name: str
    what: str
    module: str = ""  # beyond the core dependencies
    extra: str = ""  # which extra brings it


ENGINES = (
    Engine("local", "the devices of this machine"),
    Engine("spmd", "many processes, through jax.distributed"),
    Engine("ray", "many machines, through Ray", "ray", "ray"),
)


def add_parser(commands: Any) -> None:
    """Adds the subcommand to argparse's subparsers."""
    parser = commands.add_parser(
        "doctor",
        help="say what is installed and what works",
        description="Says what is installed and works: versions, devices, formats, engines.",
        epilog="exit status: 0 if all that every scan needs works, else 2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--debug", action="store_true", help="print a traceback after an error")


def run(args: argparse.Namespace) -> int:
    """Prints the diagnosis; returns 0 if the core works, else 2."""
    from jaxpoison.cli import output

    found = diagnose()
    if args.json:
        import json

        output.emit(json.dumps(found, indent=2))
    else:
        output.emit(describe(found))
    return 0 if found["works"] else EXIT_BROKEN


def diagnose() -> dict[str, Any]:
    """Looks at everything; nothing that is broken raises.

    Returns:
      `works`, `jaxpoison`, `python`, `packages`, `jax`, `machine`, `formats` and `engines`, as
      JSON has them.
    """
    import platform

    from jaxpoison import __version__

    packages = {name: _package(name, module) for name, module in CORE.items()}
    jax = _jax() if packages["jax"]["error"] is None else _no_jax("jax is not installed")
    has_core = all(package["error"] is None for package in packages.values())
    return {
        "works": has_core and jax["error"] is None,
        "jaxpoison": __version__,
        "python": platform.python_version(),
        "packages": packages,
        "jax": jax,
        "machine": _machine(),
        "formats": _formats(),
        "engines": _engines(is_running=jax["error"] is None),
    }


def _package(name: str, module: str) -> dict[str, Any]:
    """The version of a package, and why it cannot be imported."""
    from importlib import import_module, metadata

    version = error = None
    try:
        version = metadata.version(name)
        import_module(module)
    except metadata.PackageNotFoundError:
        error = "is not installed"
    except Exception as problem:  # a broken package may raise anything
        error = f"cannot be imported: {_line(problem)}"
    return {"version": version, "error": error}


def _jax() -> dict[str, Any]:
    """The devices, once one of them has added two numbers."""
    from importlib import import_module

    try:
        jax: Any = import_module("jax")
        devices = [
            {"id": int(each.id), "platform": str(each.platform), "kind": str(each.device_kind)}
            for each in jax.devices()
        ]
        if int(jax.numpy.arange(3).sum()) != 3:
            return _no_jax("computes wrong sums")
    except Exception as problem:  # drivers fail in many ways
        return _no_jax(f"cannot start: {_line(problem)}")
    return {"backend": str(jax.default_backend()), "devices": devices, "error": None}


def _no_jax(error: str) -> dict[str, Any]:
    return {"backend": None, "devices": [], "error": error}


def _line(problem: BaseException) -> str:
    from jaxpoison.report._text import visible

    return visible(f"{type(problem).__name__}: {problem}", 300)


def _machine() -> dict[str, Any]:
    import os
    import platform
    import shutil
    import tempfile

    has_affinity = hasattr(os, "sched_getaffinity")
    cpus = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not every system tells
        memory = None
    try:
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
    except OSError:
        folder, free = None, None
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": cpus,
        "memory_bytes": memory,
        "temporary_folder": folder,
        "temporary_free_bytes": free,
    }


def _formats() -> list[dict[str, Any]]:
    from jaxpoison.sources import table

    return [
        {
            "name": each.name,
            "endings": list(each.endings),
            "usable": table.is_installed(each.module),
            "install": _install(each.module, each.extra),
        }
        for each in table.FORMATS
    ]


def _engines(*, is_running: bool) -> list[dict[str, Any]]:
    from jaxpoison.sources import table

    return [
        {
            "name": each.name,
            "what": each.what,
            "usable": is_running and table.is_installed(each.module),
            "install": _install(each.module, each.extra),
        }
        for each in ENGINES
    ]


def _install(module: str, extra: str) -> str | None:
    """What to type for a module that is missing."""
    from jaxpoison.sources import table

    return None if table.is_installed(module) else table.install_command(extra)


def describe(found: dict[str, Any]) -> str:
    """Lays the diagnosis out as lines of name and value."""
    lines = [_row("jaxpoison", found["jaxpoison"]), _row("python", found["python"])]
    for name, package in found["packages"].items():
        lines.append(_row(name, _joined(package["version"], package["error"])))
    jax, machine = found["jax"], found["machine"]
    lines += ["", _row("backend", _joined(jax["backend"], jax["error"]))]
    lines += [_row(f"device {each['id']}", each["kind"]) for each in jax["devices"]]
    lines += [
        _row("system", machine["system"]),
        _row("CPUs", str(machine["cpus"])),
        _row("memory", _size(machine["memory_bytes"])),
        _row("temporary folder", _temporary(machine)),
        "",
        *(_row(f"reads {_shown(each)}", _state(each)) for each in found["formats"]),
        "",
        *(_row(f"engine {each['name']}", _state(each)) for each in found["engines"]),
        "",
        _verdict(found),
    ]
    return "\n".join(line.rstrip() for line in lines)


def _verdict(found: dict[str, Any]) -> str:
    if found["works"]:
        return "All that every scan needs works."
    broken = [name for name, package in found["packages"].items() if package["error"]]
    if broken:
        return f"BROKEN: {', '.join(broken)}; pip install --upgrade jaxpoison"
    return (
        "BROKEN: jax cannot compute here; set JAX_PLATFORMS=cpu to do without an accelerator, or "
        "install jaxpoison[cuda12], [cuda13] or [tpu] as the machine needs"
    )


def _row(name: str, value: str) -> str:
    return f"{name:<44}{value}"


def _joined(value: str | None, error: str | None) -> str:
    return " ".join(text for text in (value, error) if text)


def _shown(each: dict[str, Any]) -> str:
    endings = " ".join(each["endings"])
    return f"{each['name']} ({endings})" if endings and len(endings) < 24 else str(each["name"])


def _state(each: dict[str, Any]) -> str:
    return "yes" if each["usable"] else f"no; {each['install'] or 'jax does not work'}"


def _size(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**30:,.1f} GiB"


def _temporary(machine: dict[str, Any]) -> str:
    if machine["temporary_folder"] is None:
        return "none can be written; set TMPDIR"
    free = _size(machine["temporary_free_bytes"])
    from jaxpoison.report._text import visible

    return f"{visible(machine['temporary_folder'], 200)}, {free} free"
