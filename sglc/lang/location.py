"""Which line of the user's code is running."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from sglc.ir.specs import Location

# `with s.user():` comes through contextlib.
_NOT_THEIRS = (str(Path(__file__).resolve().parent.parent), contextlib.__file__)


def of_user(file: str) -> bool:
    """Whether code of this file is the user's."""
    return not file.startswith(_NOT_THEIRS)


def user_location() -> Location | None:
    """The innermost line of the user's code."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_NOT_THEIRS):
            return Location(file, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return None
