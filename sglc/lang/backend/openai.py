"""See `sglc.backends`."""

from __future__ import annotations

from sglc.backends import OpenAI

__all__ = ["OpenAI"]
