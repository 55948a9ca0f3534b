"""What benchmark programs of the field import under this name: rows from a file, texts of states to a file, downloads."""

from __future__ import annotations

import base64
import json
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def read_jsonl(filename: str | Path) -> Iterator[Any]:
    """The values of a file with one JSON text a line; empty lines and those that begin with # are left out."""
    with Path(filename).open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip() and not line.startswith("#"):
                yield json.loads(line)


def dump_state_text(filename: str | Path, states: Sequence[Any], mode: str = "w") -> None:
    """Write the texts of states (or texts), each under a line with its number."""
    with Path(filename).open(mode, encoding="utf-8") as out:
        for number, state in enumerate(states):
            text = state if isinstance(state, str) else state.text()
            out.write("=" * 40 + f" {number} " + "=" * 40 + "\n" + text + "\n" + "=" * 80 + "\n\n")


def download_and_cache_file(url: str, filename: str | Path | None = None) -> str:
    """The path of a local copy, which is made only once; in the folder for temporary files unless it is named.

    Raises OSError (urllib.error.URLError) if it cannot be had; no part of a file is left then.
    """
    path = Path(filename) if filename is not None else Path(tempfile.gettempdir()) / url.rsplit("/", 1)[-1]
    if not path.exists():
        part = path.with_name(path.name + ".part")
        try:
            urllib.request.urlretrieve(url, part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return str(path)


def encode_image_base64(image: str | Path | bytes) -> str:
    """An image, from a path or its encoded bytes, as base64 text."""
    data = image if isinstance(image, bytes) else Path(image).read_bytes()
    return base64.b64encode(data).decode()
