"""How a failed step is told: with its place in the user's program, and as what an interpreted run raises."""

from __future__ import annotations

from sglc.errors import RunError
from sglc.ir.specs import Location


class BodyError(RunError):
    """The body itself would have raised `__cause__` here."""

    def __init__(self, raised: BaseException, at: Location | None) -> None:
        super().__init__(f"{type(raised).__name__}: {raised}", at)
        self.__cause__ = raised


def as_raised(error: RunError) -> BaseException:
    """What an interpreted run raises."""
    return error.__cause__ if isinstance(error, BodyError) and error.__cause__ is not None else error


def located(error: BaseException, at: Location | None) -> RunError:
    """The error with the place in the user's program."""
    if isinstance(error, RunError) and (error.at is not None or at is None):
        return error
    message = error.message if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
    found = RunError(message, at)
    found.__cause__ = error.__cause__ if isinstance(error, RunError) else error
    return found
