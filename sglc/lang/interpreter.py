"""States under the name by which programs of the field import them, for annotations (running is `sglc.exec`)."""

from __future__ import annotations

from sglc.lang.state import ProgramState, ProgramStateGroup

__all__ = ["ProgramState", "ProgramStateGroup"]
