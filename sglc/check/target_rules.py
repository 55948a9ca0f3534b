"""Rules about what the program is to run on: context, backend, and what is not compiled."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

from sglc.check.constraint_rules import GENS
from sglc.check.diagnostic import Diagnostic
from sglc.check.rule import Rule
from sglc.check.subject import MAX_TOKENS, Subject
from sglc.errors import GraphBreak
from sglc.ir.analysis import open_messages
from sglc.ir.core import Node, Value
from sglc.ir.lacks import of_node, of_place
from sglc.ir.ops import Begin, Fork, Gen, If, Join, Loop, Select, Text
from sglc.lang.trace_sink import UndefinedVariable


class ContextOverflow(
    Rule, code="SGL401", name="context-overflow", severity="error", options="--context 4096"
):
    """More tokens, at worst, than the model has room for.

    Bad:

        s += "Write a book: " + sgl.gen("book", max_tokens=100000)

    Good:

        s += "Write a page: " + sgl.gen("page", max_tokens=800)
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        limit = subject.options.context
        if limit is None and subject.options.backend is not None:
            limit = subject.options.backend.context
        if limit is None or subject.graph is None:
            return
        sizes: dict[Value, int] = {}
        found: list[tuple[Gen, int]] = []
        self._block(subject, subject.graph.nodes, sizes, limit, found)
        if found:
            gen, size = found[0]
            yield subject.found(
                self, gen.at, f"up to {size} tokens of prompt and answer, in a context of {limit}",
                "lower max_tokens here or before, or shorten the text", *GENS,
            )  # fmt: skip

    def _block(
        self,
        subject: Subject,
        nodes: Sequence[Node],
        sizes: dict[Value, int],
        limit: int,
        found: list[tuple[Gen, int]],
    ) -> None:
        """Tokens of each state at worst, unknown arguments counted as nothing and loops as one round."""
        count = subject.options.count
        values: dict[Value, int] = sizes

        def size(operand: object) -> int:
            if isinstance(operand, str):
                return count(operand)
            return values.get(operand, 0) if isinstance(operand, Value) else 0

        for node in nodes:
            if isinstance(node, Begin):
                sizes[node.out] = 0
            elif isinstance(node, Text):
                sizes[node.out] = sizes.get(node.state, 0) + sum(size(p) for p in node.parts)
            elif isinstance(node, Gen):
                given = node.sampling.max_tokens
                new = given if given is not None else MAX_TOKENS
                total = sizes.get(node.state, 0) + new
                values[node.text] = new
                sizes[node.out] = total
                if total > limit:
                    found.append((node, total))
            elif isinstance(node, Select):
                new = max((size(c) for c in node.choices), default=0)
                values[node.text] = new
                sizes[node.out] = sizes.get(node.state, 0) + new
            elif isinstance(node, Fork):
                sizes.update(dict.fromkeys(node.outs, sizes.get(node.state, 0)))
            elif isinstance(node, Join):
                own = sizes.get(node.state, 0)
                more = sum(max(sizes.get(b, own) - own, 0) for b in node.branches)
                sizes[node.out] = own + (more if node.mode == "concate_and_append" else 0)
            elif isinstance(node, (If, Loop)):
                if isinstance(node, Loop):
                    starts = zip(node.body.params, node.inits, strict=True)
                    sizes.update((p, size(v)) for p, v in starts)
                for region in node.regions:
                    self._block(subject, region.nodes, sizes, limit, found)
                results = [r.results[-len(node.outs) :] if node.outs else () for r in node.regions]
                for k, out in enumerate(node.outs):
                    sizes[out] = max(size(r[k]) for r in results)
            elif node.defs:
                states = [v for v in node.uses if v.type == "state"]
                base = sizes.get(states[0], 0) if states else sum(size(v) for v in node.operands)
                sizes.update(dict.fromkeys(node.defs, base))


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

        s += sgl.gen("x", dtype="integer")

    Good:

        s += sgl.gen("x", dtype="int")
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
        if isinstance(broken, GraphBreak) and not broken.mark and broken.__cause__ is None:
            yield subject.found(
                self,
                broken.at,
                broken.message,
                "nothing needs to be done: it only runs without the compiler's help",
            )
