"""What every page of ours is made by: templates that escape, assets, and the hashes they run by."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpoison.report import _text

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_LONGEST = 400  # characters of any plain text


def environment(folder: Path) -> Environment:
    """Templates of a folder: what they print is escaped, shortened and free of hidden characters.

    Args:
        folder: Where the templates are.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        # The last line of defence: whatever plain text is printed has no hidden characters.
        is_text = isinstance(value, str) and not isinstance(value, Markup)
        return _text.visible(value, _LONGEST) if is_text else value

    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def asset(*paths: Path) -> Markup:
    """Files of this package, one after another, trusted to go into a page as they are."""
    from markupsafe import Markup

    return Markup("".join(path.read_text(encoding="utf-8") for path in paths))


def content_hash(text: str) -> str:
    """The hash by which a Content-Security-Policy lets a script or a style sheet run."""
    digest = hashlib.sha256(str(text).encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")
