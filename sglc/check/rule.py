"""What a rule is: a class with a code, whose docstring shows a program that it finds fault with and one that is right.

The examples are run by the tests. To add a rule, write the class and name it in `RULES` (check/run.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sglc.check.diagnostic import Diagnostic
from sglc.check.subject import Subject


class Rule:
    """`code` is stable; `severity` is error, warning or note; `options` are those that the examples are checked with."""

    code: ClassVar[str] = ""
    name: ClassVar[str] = ""
    severity: ClassVar[str] = "warning"
    options: ClassVar[str] = ""

    def __init_subclass__(
        cls, code: str = "", name: str = "", severity: str = "warning", options: str = ""
    ) -> None:
        super().__init_subclass__()
        cls.code, cls.name, cls.severity, cls.options = code, name, severity, options

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        raise TypeError(f"the rule {self.code} does not say what it checks")
