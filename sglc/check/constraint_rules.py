"""Rules about what a gen must write: regexes, schemas, stop strings, and the room there is for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from grammar.constraint_errors import ConstraintError, RegexError, TooLarge
from grammar.constraint_errors import Unsatisfiable as Contradiction
from sglc.check.diagnostic import Diagnostic
from sglc.check.rule import Rule
from sglc.check.subject import Subject
from sglc.ir.ops import Gen
from sglc.ir.specs import MAX_TOKENS

if TYPE_CHECKING:
    from grammar.regex_tree import Node, Repeat
    from runtime.api import Constraint

GENS = ("gen", "gen_int", "gen_string")


def constrained(subject: Subject) -> Iterator[tuple[Gen, Constraint]]:
    """Gens with a constraint that the program wrote, once each."""
    seen: set[tuple[object, object]] = set()
    for node in subject.nodes():
        if isinstance(node, Gen) and node.constraint is not None and subject.module is not None:
            found = subject.module.constraint_of(node.constraint)
            if (node.at, found) not in seen:
                seen.add((node.at, found))
                yield node, found


def refusal(subject: Subject, constraint: Constraint) -> ConstraintError | None:
    """Why the constraint cannot be enforced; None if it can."""
    try:
        subject.options.tokens.compiled(constraint.kind, constraint.source)
    except ConstraintError as error:
        return error
    return None


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def _never(error: ConstraintError) -> bool:
    """Whether a part of a regex contradicts what stands beside it."""
    return "never matches" in error.message


class BadRegex(Rule, code="SGL301", name="bad-regex", severity="error"):
    """A regular expression that is not one, or that no automaton can enforce.

    Bad:

        s += "Number: " + sgl.gen("n", regex="[0-9")

    Good:

        s += "Number: " + sgl.gen("n", regex="[0-9]+")
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        broken = subject.broken
        if broken is not None and isinstance(broken.__cause__, re.error):
            yield subject.found(
                self, broken.at, f"this regex is not valid: {broken.__cause__}", "correct the pattern", *GENS
            )
        for node, constraint in constrained(subject):
            error = refusal(subject, constraint)
            if constraint.kind == "regex" and isinstance(error, RegexError) and not _never(error):
                yield subject.found(
                    self, node.at, f"this regex cannot be enforced: {_first_line(error.message)}",
                    "write it without look-around and back-references", *GENS,
                )  # fmt: skip


class Unsatisfiable(Rule, code="SGL302", name="unsatisfiable", severity="error"):
    """A constraint that no text fulfils.

    Bad:

        s += "Number: " + sgl.gen("n", regex="[0-9]+$[a-z]")

    Good:

        s += "Number: " + sgl.gen("n", regex="[0-9]+[a-z]")
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        for node, constraint in constrained(subject):
            error = refusal(subject, constraint)
            if error is not None and (isinstance(error, Contradiction) or _never(error)):
                yield subject.found(
                    self, node.at, f"no text fulfils this {constraint.kind}: {_first_line(error.message)}",
                    "loosen the part that contradicts itself", *GENS,
                )  # fmt: skip


class LargeConstraint(Rule, code="SGL303", name="large-constraint"):
    """A regex with too many states for a table: each token then costs a walk instead of a lookup.

    Bad:

        s += "Word: " + sgl.gen("w", regex="(a|b)*a(a|b){24}")

    Good:

        s += "Word: " + sgl.gen("w", regex="[ab]{1,24}")
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        for node, constraint in constrained(subject):
            error = refusal(subject, constraint)
            fix = "make repeat counts smaller, or tell alternatives apart by their first characters"
            if isinstance(error, TooLarge):
                told = f"this {constraint.kind} is too large: {_first_line(error.message)}"
                yield subject.found(self, node.at, told, fix, *GENS)
            elif error is None and constraint.kind == "regex":
                if subject.options.tokens.compiled(constraint.kind, constraint.source).fsm is None:
                    told = "this regex has too many states for a table, so that every token takes a walk through it"
                    yield subject.found(self, node.at, told, fix, *GENS)


class BadSchema(Rule, code="SGL304", name="bad-schema", severity="error"):
    """A JSON schema that is not JSON, or has a keyword that cannot be enforced exactly.

    Bad:

        s += "Record: " + sgl.gen("r", json_schema='{"type": "objekt"}')

    Good:

        s += "Record: " + sgl.gen("r", json_schema='{"type": "object", "properties": {"a": {"type": "integer"}}}')
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        for node, constraint in constrained(subject):
            if constraint.kind != "json_schema":
                continue
            error = refusal(subject, constraint)
            if error is not None and not isinstance(error, (RegexError, TooLarge, Contradiction)):
                yield subject.found(
                    self, node.at, f"this schema cannot be enforced: {_first_line(error.message)}",
                    "correct it, or leave the keyword out and check the answer yourself", *GENS,
                )  # fmt: skip


class BadGrammar(Rule, code="SGL312", name="bad-grammar", severity="error"):
    """A grammar with an error, or with something that cannot be enforced.

    Bad:

        s += "Sum: " + sgl.gen("sum", ebnf='root ::= number ("+" number)*')

    Good:

        s += "Sum: " + sgl.gen("sum", ebnf='root ::= [0-9]+ ("+" [0-9]+)*')
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        for node, constraint in constrained(subject):
            error = refusal(subject, constraint) if constraint.kind == "ebnf" else None
            if error is not None and not isinstance(error, (TooLarge, Contradiction)):
                yield subject.found(
                    self, node.at, f"this grammar cannot be enforced: {_first_line(error.message)}",
                    "correct the rule", *GENS,
                )  # fmt: skip


class BadTag(Rule, code="SGL313", name="bad-tag", severity="error"):
    """A structural tag whose parts do not fit together, or one of whose schemas cannot be enforced.

    Bad:

        s += "Call: " + sgl.gen("call", structural_tag={
            "triggers": ["<call="],
            "structures": [{"begin": "<tool=add>", "schema": {"type": "integer"}, "end": "</tool>"}],
        })

    Good:

        s += "Call: " + sgl.gen("call", structural_tag={
            "triggers": ["<tool="],
            "structures": [{"begin": "<tool=add>", "schema": {"type": "integer"}, "end": "</tool>"}],
        })
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        for node, constraint in constrained(subject):
            error = refusal(subject, constraint) if constraint.kind == "structural_tag" else None
            if error is not None and not isinstance(error, (TooLarge, Contradiction)):
                yield subject.found(
                    self, node.at, f"this structural tag cannot be enforced: {_first_line(error.message)}",
                    "correct the part it names", *GENS,
                )  # fmt: skip


class TooFewTokens(Rule, code="SGL305", name="too-few-tokens", severity="error"):
    """`max_tokens` below what the shortest text of the constraint takes.

    Bad:

        s += "Key: " + sgl.gen("key", regex="([0-9]{5} ){20}", max_tokens=4)

    Good:

        s += "Key: " + sgl.gen("key", regex="([0-9]{5} ){2}", max_tokens=40)
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        for node, constraint in constrained(subject):
            if refusal(subject, constraint) is not None:
                continue
            automaton = subject.options.tokens.compiled(constraint.kind, constraint.source).automaton
            limit = node.sampling.max_tokens if node.sampling.max_tokens is not None else MAX_TOKENS
            if automaton is not None and automaton.min_tokens > limit:
                yield subject.found(
                    self,
                    node.at,
                    f"at most {limit} tokens are generated, but the shortest text of the constraint takes "
                    f"{automaton.min_tokens}",
                    f"give max_tokens={automaton.min_tokens} or more",
                    *GENS,
                )


class EndlessSpace(Rule, code="SGL309", name="endless-space"):
    """White space without a limit in a regex: a model that begins with it may write nothing else until its tokens run out.

    Bad:

        s += "Number: " + sgl.gen("n", regex=r"[0-9]+\\s*;")

    Good:

        s += "Number: " + sgl.gen("n", regex=r"[0-9]+ {0,3};")
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        from grammar.regex_syntax import parse

        for node, constraint in constrained(subject):
            if (
                constraint.kind != "regex" or node.dtype is not None
            ):  # the pattern of a dtype is not the user's
                continue
            try:
                pattern = parse(constraint.source)
            except RegexError:  # BadRegex tells
                continue
            endless = [e for a in pattern.alternatives for e in _endless_spaces(a.node)]
            if endless:
                shown = constraint.source[endless[0].start : endless[0].end]
                yield subject.found(
                    self, node.at, f"{shown!r} lets the model write white space without end",
                    "give it a limit, such as {0,3}", *GENS,
                )  # fmt: skip


_SPACES = frozenset(map(ord, " \t\n\r\f\v\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"))


def _endless_spaces(node: Node) -> Iterator[Repeat]:
    from grammar.regex_tree import Chars, Repeat, children

    if isinstance(node, Repeat) and node.high is None and isinstance(node.item, Chars):
        if all(
            code in _SPACES or 0x2000 <= code <= 0x200A
            for low, high in node.item.ranges
            for code in range(low, min(high, low + 64) + 1)
        ):
            yield node
    for child in children(node):
        yield from _endless_spaces(child)
