"""Settings of every test."""

from __future__ import annotations

import os

# Tests leave nothing in the user's cache folder, and find nothing there.
os.environ.setdefault("JAXPOISON_NO_CACHE", "1")
