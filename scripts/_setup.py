"""Set-up shared by scripts/demo and scripts/test: a .venv with the package in it, made once.

The standard library only, in syntax that Python 3.6 can parse, because an old Python must get one
readable line from this file and not a SyntaxError.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MIN_VERSION = (3, 11)
NEWER_PYTHONS = ("python3.13", "python3.12", "python3.11", "python3")
NO_INDEX_SIGNS = (
    "Could not find a version that satisfies",
    "No matching distribution found",
    "Failed to establish a new connection",
    "NewConnectionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "Max retries exceeded",
    "Temporary failure in name resolution",
    "ProxyError",
    "SSLError",
)
INHERITED_PYTHON_SETTINGS = ("PYTHONHOME", "PYTHONPATH", "PIP_PREFIX", "PIP_TARGET", "PIP_USER")


class SetupError(Exception):
    """What stops the set-up, in one line that says what to do."""


def say(line):
    print(line, flush=True)


def venv_python(venv):
    return os.path.join(venv, "bin", "python")


def child_environment():
    """The environment for the .venv's own programs: nothing of an outer Python leaks in."""
    env = {k: v for k, v in os.environ.items() if k not in INHERITED_PYTHON_SETTINGS}
    env["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    return env


def newer_python():
    """Path of a Python on PATH that is new enough, or None. A name may exist and still not run."""
    check = f"import sys; sys.exit(sys.version_info < {MIN_VERSION!r})"
    for name in NEWER_PYTHONS:
        path = shutil.which(name)
        if path is None:
            continue
        with open(os.devnull, "w") as null:
            try:
                status = subprocess.call([path, "-c", check], stdout=null, stderr=null)
            except OSError:
                continue
        if status == 0:
            return path
    return None


def require_python(argv):
    """Returns if this Python is new enough; otherwise goes on in a newer one, if there is one."""
    if sys.version_info[:2] >= MIN_VERSION:
        return
    path = newer_python()
    if path is not None:
        sys.stdout.flush()
        os.execv(path, [path, *list(argv)])
    raise SetupError(
        "Python {}.{} is too old: 3.11 or newer is needed, and none is on PATH; "
        "install one (Debian, Ubuntu: apt-get install python3.11 python3.11-venv)".format(
            *sys.version_info[:2]
        )
    )


def require_venv():
    """Debian ships venv and ensurepip apart from Python itself."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        version = "{}.{}".format(*sys.version_info[:2])
        raise SetupError(
            f"this Python {version} cannot make a virtual environment ({error}); "
            f"install its venv package (Debian, Ubuntu: apt-get install python{version}-venv)"
        ) from None


def base_python():
    """The interpreter to build on: not the .venv's own, should that one be active."""
    return getattr(sys, "_base_executable", None) or sys.executable


def fingerprint(root):
    """Changes whenever what is installed should change, or when the checkout has moved."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        with open(os.path.join(root, name), "rb") as file:
            digest.update(file.read() + b"\0")
    digest.update(root.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def python_identity():
    return f"{sys.base_prefix} {sys.version}"


def stamp_path(venv):
    return os.path.join(venv, "jaxpoison-setup.json")


def read_stamp(venv):
    """What the last set-up left in the environment, or None if there is no such thing."""
    try:
        with open(stamp_path(venv), encoding="utf-8") as file:
            stamp = json.load(file)
        stamp["extras"] = [str(extra) for extra in stamp["extras"]]
        return stamp if {"fingerprint", "is_ready", "python"} <= set(stamp) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_stamp(venv, stamp):
    with open(stamp_path(venv) + ".new", "w", encoding="utf-8") as file:
        json.dump(stamp, file)
    os.replace(stamp_path(venv) + ".new", stamp_path(venv))


def move_aside(venv):
    """Keeps an environment that this script did not make, out of the way; returns its new name."""
    number = 1
    while os.path.lexists(f"{venv}.old{number}"):
        number += 1
    moved = f"{venv}.old{number}"
    os.rename(venv, moved)
    return moved


def run_logged(command, log, cwd, what):
    """Runs a command with its output in the log file, and says now and then that it still runs."""
    started = time.monotonic()
    next_line = started + 15
    with open(log, "ab") as file:
        file.write(("$ " + " ".join(command) + "\n").encode("utf-8", "replace"))
        file.flush()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=cwd,
            env=child_environment(),
        )
        try:
            while True:
                try:
                    return child.wait(timeout=1)
                except subprocess.TimeoutExpired:
                    now = time.monotonic()
                if now >= next_line:
                    say(f"  still {what} ({now - started:.0f} s)")
                    next_line = now + 15
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()


def explain_failure(log):
    """One line on why installing failed, out of the installer's own output."""
    with open(log, encoding="utf-8", errors="replace") as file:
        # Only the last command counts: uv fails first where only pip knows the index.
        text = file.read().rpartition("\n$ ")[2]
    if "No space left on device" in text:
        reason = "the disk is full (about 1.5 GB is needed): free some space"
    elif any(sign in text for sign in NO_INDEX_SIGNS):
        reason = (
            "the package index did not answer, or lacks a version in constraints.txt: "
            "check the network, the proxy and pip's index settings"
        )
    else:
        errors = [line.strip() for line in text.splitlines() if "error" in line.lower()]
        reason = "installing failed: {}".format(errors[-1][:200] if errors else "pip says why")
    return f"{reason}, then run this again (pip's output: {log})"


def install(python, requirements, log, cwd=None):
    """Installs into the environment of `python`: with uv where it is on PATH, else with pip."""
    root = cwd or ROOT
    arguments = ["install", "-c", os.path.join(ROOT, "constraints.txt"), *requirements]
    uv = shutil.which("uv")
    if uv is not None:
        command = [uv, "pip", *arguments, "--python", python]
        if run_logged(command, log, root, "installing with uv") == 0:
            return
        # uv does not read pip's configuration, so a private index is one it may not find.
        say("  uv could not install everything; going on with pip")
    command = [python, "-m", "pip", *arguments, "--no-input"]
    if run_logged(command, log, root, "installing with pip") != 0:
        raise SetupError(explain_failure(log))


def make_venv(venv, stamp, log):
    """Makes the environment from nothing; an unfinished or unrelated one gives way to it."""
    if os.path.lexists(venv) and stamp is None:
        say(f"  .venv was not made by this script: kept as {move_aside(venv)}")
    elif os.path.lexists(venv):
        say("  .venv is unfinished or broken: making it anew")
        shutil.rmtree(venv)
    os.mkdir(venv)
    # Stamped before anything else is in it, so that an interrupted run can tell it is its own.
    write_stamp(venv, {"extras": [], "fingerprint": "", "is_ready": False, "python": ""})
    command = [base_python(), "-m", "venv", venv]
    if run_logged(command, log, ROOT, "making the environment") != 0:
        raise SetupError(f"no virtual environment could be made (output: {log})")


def runs(python):
    """Does it start? It may be a dead link since an upgrade of Python."""
    try:
        return subprocess.call([python, "-I", "-c", "pass"], stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def is_prepared(root, extras):
    """Does root/.venv hold the package with these extras, as pyproject.toml now asks for them?"""
    venv = os.path.join(root, ".venv")
    stamp = read_stamp(venv)
    return (
        stamp is not None
        and stamp["is_ready"] is True
        and stamp["fingerprint"] == fingerprint(root)
        and stamp["python"] == python_identity()
        and set(extras) <= set(stamp["extras"])
        and os.path.exists(venv_python(venv))
    )


def prepare(root, extras):
    """Makes root/.venv hold the package with these extras, whatever state it was left in.

    Raises:
        SetupError: with one line that says what to do.
    """
    require_venv()
    venv = os.path.join(root, ".venv")
    python = venv_python(venv)
    log = os.path.join(root, ".venv-setup.log")
    with open(log, "wb"):
        pass
    say(f"setting up {venv} (the first time takes a minute or two; log: {log})")
    started = time.monotonic()
    stamp = read_stamp(venv)
    if (
        stamp is not None
        and stamp["is_ready"] is True
        and stamp["python"] == python_identity()
        and runs(python)
    ):
        extras = sorted(set(extras) | set(stamp["extras"]))
    else:
        make_venv(venv, stamp, log)
    stamp = {
        "extras": list(extras),
        "fingerprint": fingerprint(root),
        "is_ready": False,
        "python": python_identity(),
    }
    write_stamp(venv, stamp)
    target = ".[{}]".format(",".join(extras)) if extras else "."
    install(python, ["-e", target], log, cwd=root)
    write_stamp(venv, dict(stamp, is_ready=True))
    say(f"set up in {time.monotonic() - started:.0f} s")


def ensure(root, extras):
    """Prepares root/.venv unless it is prepared; one process at a time. Returns its Python."""
    if not is_prepared(root, extras):
        import fcntl

        with open(os.path.join(root, ".venv-setup.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_prepared(root, extras):  # another process may just have done it
                prepare(root, extras)
    return venv_python(os.path.join(root, ".venv"))


def set_up(name, extras, argv):
    """The whole set-up for a script; ends the process with one line where it cannot be done."""
    try:
        require_python(argv)
        return ensure(ROOT, extras)
    except SetupError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename or ROOT}: {error.strerror or error}"
    except KeyboardInterrupt:
        sys.stderr.write(f"{name}: interrupted; run it again to go on\n")
        sys.exit(130)
    sys.stderr.write(f"{name}: error: {message}\n")
    sys.exit(2)
