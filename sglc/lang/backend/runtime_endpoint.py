"""See `sglc.backends`."""

from __future__ import annotations

from sglc.backends import RuntimeEndpoint

__all__ = ["RuntimeEndpoint"]
