"""See `sglc.backends`."""

from __future__ import annotations

from sglc.backends import VertexAI

__all__ = ["VertexAI"]
