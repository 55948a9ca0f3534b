"""What the compiler and the language raise.

    SglcError
      TraceError      a program cannot be traced; it says where and what to do
        GraphBreak    ... from this point on; it can run interpreted
      IRError         a graph breaks a rule of the IR
      PassError       a pass failed; it names the pass
      PlanError       a plan cannot be built or is not valid
      RunError        a run failed: the program's file and line, and the cause

Every message names the value, the place in the user's program where there is one, and the fix.
"""

from __future__ import annotations

from typing import Any


class SglcError(Exception):
    """Root of the tree. `at` is a `sglc.ir.specs.Location` or None."""

    def __init__(self, message: str, at: Any = None) -> None:
        super().__init__(f"{at}: {message}" if at is not None else message)
        self.message = message
        self.at = at


class TraceError(SglcError):
    pass


class GraphBreak(TraceError):
    """`needs`: arguments that, if they were known, might let tracing go on; None if it is not a matter of arguments.
    `mark`: what is wrong with the program, where it would fail in any run."""

    needs: frozenset[str] | None = None
    mark: str = ""


class IRError(SglcError):
    pass


class PassError(SglcError):
    pass


class PlanError(SglcError):
    pass


class RunError(SglcError):
    """`__cause__` is what the backend or the program raised; `seen`: somebody was told."""

    seen = False
