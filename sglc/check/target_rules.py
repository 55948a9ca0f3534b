"""Rules about what the program is to run on, and what is not compiled."""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from sglc.check.constraint_rules import GENS
from sglc.check.diagnostic import Diagnostic
from sglc.check.rule import Rule
from sglc.check.subject import Subject
from sglc.errors import GraphBreak
from sglc.ir.analysis import open_messages
from sglc.ir.lacks import of_node, of_place
from sglc.ir.ops import Gen
from sglc.ir.specs import Location
from sglc.lang.trace_sink import UndefinedVariable


class Unsupported(Rule, code="SGL402", name="unsupported", severity="error", options="--backend anthropic"):
    """Something that the chosen backend cannot do, and that would have to be dropped.

    Bad:

        s += sgl.user("How many?")
        s += sgl.assistant(sgl.gen("n", regex="[0-9]+"))

    Good:

        s += sgl.user("How many?")
        s += sgl.assistant(sgl.gen("n", max_tokens=4))
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        able = subject.options.backend
        if able is None:
            return
        for node in subject.nodes():
            for lack in of_node(able, subject.module, node) if subject.module is not None else ():
                yield subject.found(
                    self, node.at, lack.message, lack.remedy, *GENS, "select", "image", "video"
                )


class OutsideMessage(
    Rule, code="SGL403", name="outside-message", severity="error", options="--backend openai"
):
    """A gen that is not the answer of the assistant, on a backend that takes only conversations.

    Bad:

        s += "Q: How are you? A: " + sgl.gen("a")

    Good:

        s += sgl.user("How are you?")
        s += sgl.assistant(sgl.gen("a"))
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        able = subject.options.backend
        if able is None or not able.chat_only or subject.graph is None:
            return
        opened = open_messages(subject.graph)
        for node in subject.nodes():
            for lack in of_place(able, opened.get(node.state, (None,))) if isinstance(node, Gen) else ():
                yield subject.found(self, node.at, lack.message, lack.remedy, *GENS)


class SelectTemperature(Rule, code="SGL404", name="select-temperature", severity="error"):
    """A select with a temperature: the likeliest choice is taken, nothing is sampled.

    Bad:

        s += "Answer: " + sgl.select("x", ["yes", "no"], temperature=0.7)

    Good:

        s += "Answer: " + sgl.select("x", ["yes", "no"])
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        for call in subject.calls("select"):
            for keyword in call.keywords:
                value = keyword.value
                if keyword.arg == "temperature" and isinstance(value, ast.Constant) and value.value:
                    yield subject.found(self, value, "a select takes no temperature", "leave it out")


class BodyRaises(Rule, code="SGL405", name="body-raises", severity="error"):
    """The body fails whatever the model writes.

    Bad:

        s += "How many? " + sgl.gen("x", dtype="integer")

    Good:

        s += "How many? " + sgl.gen("x", dtype="int")
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        broken = subject.broken
        cause = broken.__cause__ if broken is not None else None
        known = (UndefinedVariable, re.error)
        if broken is None or not isinstance(cause, (ValueError, KeyError, IndexError, ZeroDivisionError)):
            return
        if (
            isinstance(cause, known)
            or "Tried to append None" in str(cause)
            or "there are no choices" in str(cause)
        ):
            return
        yield subject.found(
            self, broken.at, f"{type(cause).__name__}: {cause}", "correct what this line is given"
        )


class GraphBreaks(Rule, code="SGL501", name="graph-break", severity="note"):
    """From here on the program runs interpreted, since what it does cannot be known before it runs.

    Bad:

        s += "Hello " + sgl.gen("x")
        print(s["x"])

    Good:

        s += "Hello " + sgl.gen("x")
        s += s["x"].strip()
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        broken = subject.broken
        if not isinstance(broken, GraphBreak) or broken.mark or broken.__cause__ is not None:
            return
        at, message = broken.at, broken.message
        if at is not None and _is_foreign(at.file, subject.file):  # in a library that the program calls
            at, message = Location(subject.file, subject.line), f"{message} ({at})"
        fix = "nothing needs to be done: it only runs without the compiler's help"
        unknown = [n for n in subject.program.parameter_names if f"argument {n} is not known" in message]
        if unknown:
            fix = f"check it for a value of {unknown[0]}, which a run knows: -D {unknown[0]}=..."
        yield subject.found(self, at, message, fix)


def _is_foreign(file: str, own: str) -> bool:
    libraries = {sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")}
    return file != own and any(Path(file).is_relative_to(folder) for folder in libraries if folder)
