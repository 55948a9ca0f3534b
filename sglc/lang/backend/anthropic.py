"""See `sglc.backends`."""

from __future__ import annotations

from sglc.backends import Anthropic

__all__ = ["Anthropic"]
