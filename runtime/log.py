"""Logging: one format, to standard error."""

from __future__ import annotations

import logging


def configure(level: str = "info") -> None:
    """Set up the root logger once, at the start of a process."""
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
