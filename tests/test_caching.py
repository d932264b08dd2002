"""The compile cache: on by itself, never in the way."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = "from jaxpoison.caching import use_compile_cache; print(use_compile_cache())"


def asked(**variables):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAXPOISON", "JAX_COMP"))}
    out = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**env, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stderr == ""
    return out.stdout.strip()


def test_a_folder_in_the_users_cache(tmp_path):
    folder = asked(XDG_CACHE_HOME=str(tmp_path))
    assert folder == str(tmp_path / "jaxpoison" / "xla")
    assert (tmp_path / "jaxpoison" / "xla").is_dir()


def test_who_has_decided_is_left_alone(tmp_path):
    assert asked(XDG_CACHE_HOME=str(tmp_path), JAXPOISON_NO_CACHE="1") == "None"
    assert asked(XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR=str(tmp_path)) == "None"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_can_not_be_made_is_no_error(tmp_path):
    (tmp_path / "jaxpoison").write_text("in the way")
    assert asked(XDG_CACHE_HOME=str(tmp_path)) == "None"
