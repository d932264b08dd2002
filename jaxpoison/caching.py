"""Compiled programs kept from one process to the next."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import jax

_LEAST_SECONDS = 0.1  # of compiling: below that, reading a file is no faster


def use_compile_cache() -> Path | None:
    """Turns on jax's persistent compilation cache, unless somebody has decided about it already.

    The folder is ``jaxpoison/xla`` in the user's cache folder. A cache that is configured, by jax's
    own variables or settings, stays as it is; JAXPOISON_NO_CACHE leaves everything alone. A folder
    that can not be written is no error: programs are then compiled as usual.

    Returns:
        The folder, or None where nothing was turned on.
    """
    if os.environ.get("JAXPOISON_NO_CACHE") or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return None
    config: Any = jax.config  # its settings have no types
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return None
    try:
        home = os.environ.get("XDG_CACHE_HOME", "")
        base = Path(home) if Path(home).is_absolute() else Path.home() / ".cache"
        folder = base / "jaxpoison" / "xla"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
            # programs of somebody else are not run
            return None
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError):  # RuntimeError: no home folder
        return None
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": _LEAST_SECONDS,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    for name, value in settings.items():
        config.update(name, value)
    _forget_that_there_was_none()
    return folder


def _forget_that_there_was_none() -> None:
    """Where jax has compiled before, it has settled on having no cache and does not look again."""
    try:
        from jax.experimental.compilation_cache import compilation_cache

        compilation_cache.reset_cache()
    except (ImportError, AttributeError):  # experimental: the next process has the cache anyway
        pass
