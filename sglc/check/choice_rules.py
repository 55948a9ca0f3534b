"""Rules about the choices of selects."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator, Mapping

from sglc.check.diagnostic import Diagnostic
from sglc.check.rule import Rule
from sglc.check.subject import Subject, argument, called
from sglc.ir.core import Value
from sglc.ir.ops import Select, Text
from sglc.ir.pure import Pure


class ChoicePrefix(Rule, code="SGL202", name="choice-prefix"):
    """One choice begins with another: scores of the two are hard to compare, and the longer one hides the shorter.

    Bad:

        s += "Answer: " + sgl.gen("x", choices=["no", "none"])

    Good:

        s += "Answer: " + sgl.gen("x", choices=["no", "both"])
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        for call, choices in _choices(subject):
            ordered = sorted(choices)
            for one, two in itertools.pairwise(ordered):
                if two != one and two.startswith(one):
                    yield subject.found(
                        self,
                        _element(call, two) or call,
                        f"the choice {two!r} begins with the choice {one!r}",
                        "tell the choices apart by their first words, or end each with the same mark, such as '.'",
                    )


class ChoiceSpace(Rule, code="SGL203", name="choice-space"):
    """A space at the edge of a choice, or before a select: tokenizers take a space and the word after it as one token.

    Bad:

        s += "The answer is"
        s += sgl.select("x", [" yes", "no"])

    Good:

        s += "The answer is"
        s += sgl.select("x", [" yes", " no"])
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        for call, choices in _choices(subject):
            spaced = [c for c in choices if c.startswith(" ")]
            trailing = next((c for c in choices if c != c.rstrip()), None)
            if spaced and len(spaced) < len(choices):
                odd = (
                    spaced[0]
                    if len(spaced) * 2 <= len(choices)
                    else next(c for c in choices if c not in spaced)
                )
                yield subject.found(
                    self,
                    _element(call, odd) or call,
                    f"some choices begin with a space and some do not ({odd!r})",
                    "begin all of them the same way",
                )
            elif trailing is not None:
                yield subject.found(
                    self,
                    _element(call, trailing) or call,
                    f"the choice {trailing!r} ends with white space, which is scored as a part of it",
                    "drop the space, and append it after the select",
                )
        texts = last_text(subject)
        for node in subject.nodes():
            last = texts.get(node.state) if isinstance(node, Select) else None
            if last is None or not isinstance(node, Select):
                continue
            if last.endswith(" ") and any(str(c).startswith(" ") for c in node.choices):
                yield subject.found(
                    self,
                    node.at,
                    "the text before the select ends with a space and its choices begin with one",
                    "leave out one of the two",
                    "select",
                    "gen",
                )


class EqualChoices(Rule, code="SGL204", name="equal-choices"):
    """The same choice twice: the second can never be told from the first.

    Bad:

        s += "Answer: " + sgl.select("x", ["yes", "no", "yes"])

    Good:

        s += "Answer: " + sgl.select("x", ["yes", "no"])
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        for call, choices in _choices(subject):
            double = next((c for k, c in enumerate(choices) if c in choices[:k]), None)
            if double is not None:
                yield subject.found(
                    self,
                    _element(call, double) or call,
                    f"the choice {double!r} is there twice",
                    "drop one of them",
                )


class EmptyChoices(Rule, code="SGL205", name="empty-choices", severity="error"):
    """A select without choices, or with an empty one.

    Bad:

        s += "Answer: " + sgl.select("x", [])

    Good:

        s += "Answer: " + sgl.select("x", ["yes", "no"])
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        for call, choices in _choices(subject, empty=True):
            if not choices:
                yield subject.found(self, call, "there are no choices", "give at least one choice")
            elif "" in choices:
                yield subject.found(
                    self, _element(call, "") or call, "a choice is empty", "give it a text, such as 'none'"
                )


class OneChoice(Rule, code="SGL206", name="one-choice"):
    """A select that has nothing to choose from.

    Bad:

        s += "Answer: " + sgl.select("x", ["yes"])

    Good:

        s += "Answer: yes"
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        for call, choices in _choices(subject):
            if len(choices) == 1:
                yield subject.found(
                    self, call, f"{choices[0]!r} is the only choice", "append the text itself, or add choices"
                )


class UnevenChoices(Rule, code="SGL207", name="uneven-choices", severity="note"):
    """Choices of very different length: a mean per token favours long ones whose end is easy to guess.

    Bad:

        s += "Answer: " + sgl.select("x", ["no", "yes, that is without any doubt what I would say about it"])

    Good:

        s += "Answer: " + sgl.select("x", ["no, never", "yes, certainly"])
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        for call, choices in _choices(subject):
            sizes = sorted(len(c) for c in choices)
            if len(sizes) > 1 and sizes[0] * 8 < sizes[-1] and argument(call, "choices_method", 3) is None:
                yield subject.found(
                    self,
                    call,
                    f"the choices have from {sizes[0]} to {sizes[-1]} characters",
                    "make them alike, or choose by choices_method=sgl.unconditional_likelihood_normalized",
                )


def last_text(subject: Subject) -> Mapping[Value, str]:
    """The constant with which a state ends, of those that end with one."""
    joined = {n.out: n.args[-1] for n in subject.nodes() if isinstance(n, Pure) and n.op == "concat"}
    found: dict[Value, str] = {}
    for node in subject.nodes():
        if isinstance(node, Text) and node.parts:
            last = node.parts[-1]
            while isinstance(last, Value) and last in joined:
                last = joined[last]
            if isinstance(last, str):
                found[node.out] = last
    return found


def _choices(subject: Subject, empty: bool = False) -> Iterator[tuple[ast.Call, list[str]]]:
    """Calls with choices that are written out."""
    for call in subject.calls("select", "gen"):
        given = argument(call, "choices", 1 if called(call) == "select" else 17)
        if not isinstance(given, (ast.List, ast.Tuple)):
            continue
        values = [e.value for e in given.elts if isinstance(e, ast.Constant) and isinstance(e.value, str)]
        if len(values) == len(given.elts) and (values or empty) and (empty or "" not in values):
            yield call, values


def _element(call: ast.Call, text: str) -> ast.AST | None:
    """The last place in a call where this constant is written."""
    found = [p for p in ast.walk(call) if isinstance(p, ast.Constant) and p.value == text]
    return found[-1] if found else None
