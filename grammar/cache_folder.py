"""Where what was computed once is kept for the user's next processes."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """The folder `name` in the user's cache folder, which may not exist yet; where the user has no home, as in some
    containers, one that cannot exist."""
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        root = os.devnull
    return Path(root) / "sglc" / name
