"""Rules about where tokens fall between a text and the choices after it, and how choices are weighed."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator

from sglc.check.choice_rules import last_text
from sglc.check.diagnostic import Diagnostic
from sglc.check.rule import Rule
from sglc.check.subject import Subject, argument, called
from sglc.ir.ops import METHODS, Select

TAIL = 60  # characters before a choice that can matter to its first token


class UnknownMethod(Rule, code="SGL209", name="unknown-method", severity="error"):
    """A way of choosing that there is not.

    Bad:

        s += "Answer: " + sgl.select("x", ["yes", "no"], choices_method="greedy_tokens")

    Good:

        s += "Answer: " + sgl.select("x", ["yes", "no"], choices_method=sgl.greedy_token_selection)
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        for call in subject.calls("select", "gen"):
            given = argument(call, "choices_method", 3 if called(call) == "select" else 18)
            if not isinstance(given, ast.Constant) or given.value is None or given.value in METHODS:
                continue
            near = difflib.get_close_matches(str(given.value), METHODS, n=1, cutoff=0.4)
            yield subject.found(
                self,
                given,
                f"there is no choices method {given.value!r}",
                f"write sgl.{near[0]}" if near else f"choose one of {', '.join(METHODS)}",
            )


class TokenBoundary(Rule, code="SGL210", name="token-boundary", options="--tokenizer tiny"):
    """A choice whose first characters the tokenizer joins with the end of the text before it. Needs --tokenizer.

    The model has learnt other tokens for this text than those it is scored by, so that all scores are too low.

    Bad:

        s += "The capital of France is "
        s += sgl.select("x", ["Paris", "London"])

    Good:

        s += "The capital of France is"
        s += sgl.select("x", [" Paris", " London"])
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        if subject.options.tokens.given is None:
            return
        encode = subject.options.tokens.encode
        before = last_text(subject)
        for node in subject.nodes():
            text = before.get(node.state) if isinstance(node, Select) else None
            if not text or not isinstance(node, Select):
                continue
            text = text[-TAIL:]
            alone = encode(text)
            joined = [
                c
                for c in node.choices
                if isinstance(c, str) and c and encode(text + c)[: len(alone)] != alone
            ]
            if joined:
                yield subject.found(
                    self,
                    node.at,
                    f"the tokenizer joins the choice {joined[0]!r} with the end of the text before it, {text[-12:]!r}",
                    "end the text without the space, and begin every choice with it"
                    if text.endswith(" ")
                    else "let the text end, or the choices begin, with a space or a line break",
                    "select",
                    "gen",
                )
