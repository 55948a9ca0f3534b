"""See `sglc.backends`."""

from __future__ import annotations

from sglc.backends import LiteLLM

__all__ = ["LiteLLM"]
