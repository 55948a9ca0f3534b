"""Rules about how much a program may ask for: of the context of one call, and of calls, tokens and money in all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sglc.check.constraint_rules import GENS
from sglc.check.diagnostic import Diagnostic
from sglc.check.rule import Rule
from sglc.check.subject import Subject
from sglc.ir.core import Value
from sglc.ir.ops import Begin, Break, Image, Loop, RoleBegin, RoleEnd, Text
from sglc.ir.specs import Location
from sglc.plan.cost import Costs
from sglc.plan.interval import Cost

LONG = 100  # tokens that are worth moving
CALLS = (*GENS, "select")


class ContextOverflow(
    Rule, code="SGL401", name="context-overflow", severity="error", options="--context 4096"
):
    """More tokens, at worst, than the model has room for: of constants, given arguments, answers and bounded loops.

    Bad:

        s += "Write a book: " + sgl.gen("book", max_tokens=100000)

    Good:

        s += "Write a page: " + sgl.gen("page", max_tokens=800)
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        limit = subject.options.context
        if limit is None and subject.options.backend is not None:
            limit = subject.options.backend.context
        found = subject.costs(subject.options.tokens.nominal) if limit is not None else None
        if limit is None or found is None:
            return
        over = [at for at, size in found.room.items() if size.high is not None and size.high > limit]
        for at in sorted(over, key=lambda at: not found.lines[at].output.high)[
            :1
        ]:  # the first gen, if there is one
            yield subject.found(
                self, at, f"up to {found.room[at].high} tokens of prompt and answer, in a context of {limit}",
                "lower max_tokens here or before, or shorten the text", *CALLS,
            )  # fmt: skip


class OverBudget(
    Rule, code="SGL406", name="over-budget", severity="error", options="--max-calls 6 --max-tokens 2000"
):
    """A run may take more calls, tokens or money than it is allowed, or nobody knows that it does not.

    Bad:

        s += "Write a book about dogs."
        for chapter in range(9):
            s += sgl.gen("text", max_tokens=800)

    Good:

        s += "Write a story about dogs."
        for chapter in range(3):
            s += sgl.gen("text", max_tokens=200)
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        budget = subject.options.budget
        if budget.calls is None and budget.tokens is None and budget.cost is None:
            return
        found = subject.costs(subject.options.tokens.bound)
        if found is None:
            if subject.broken is not None and subject.broken.__cause__ is None:
                yield subject.found(
                    self, subject.broken.at, "nobody knows what a run costs: the program is not compiled",
                    "let what is costly be a program of its own, which can be", *CALLS,
                )  # fmt: skip
            return
        if budget.calls is not None:
            yield from self._over(subject, found, [c.calls.high for c in _all(found)], budget.calls, "calls")
        if budget.tokens is not None:
            sums = [(c.prompt + c.output).high for c in _all(found)]
            yield from self._over(subject, found, sums, budget.tokens, "tokens")
        for model, price in budget.prices.items() if budget.cost is not None else ():
            money = [c.money(price)[1] for c in _all(found)]
            yield from self._over(subject, found, money, budget.cost or 0, f"cost of {model}")

    def _over(
        self, subject: Subject, found: Costs, highs: Sequence[float | None], limit: float, unit: str
    ) -> Iterator[Diagnostic]:
        """`highs`: of the whole run, then of each of its places."""
        total, parts = highs[0], highs[1:]
        if total is not None and total <= limit:
            return
        places: list[Location | None] = list(found.lines)
        worst = max(
            range(len(parts)), key=lambda k: float("inf") if parts[k] is None else parts[k] or 0, default=-1
        )
        at = places[worst] if worst >= 0 else None
        if total is not None:
            here = parts[worst]
            told = f"{unit}: up to {_shown(total)}, and {_shown(limit)} is allowed"
            if len(parts) > 1 and here is not None:
                told += f" (here up to {_shown(here)})"
            yield subject.found(self, at, told, _less(subject), *CALLS)
            return
        why, fix, place = _endless(subject, unit)
        told = f"{unit}: no limit is known{why}, and {_shown(limit)} is allowed"
        yield subject.found(self, place or at, told, fix, *CALLS)


def _all(found: Costs) -> list[Cost]:
    return [found.total, *found.lines.values()]


def _shown(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:.6g}"


def _less(subject: Subject) -> str:
    loop = next((n for n in subject.nodes() if isinstance(n, Loop) and not n.bounded), None)
    if loop is not None:
        return f"bound the loop at {loop.at}, which counts as {loop.maximum:,} rounds: for _ in range(n): ... break"
    return "make fewer calls, lower max_tokens or shorten the text"


def _endless(subject: Subject, unit: str) -> tuple[str, str, Location | None]:
    """Why there is no limit, what to do, and where."""
    for node in subject.nodes():
        if isinstance(node, Break):
            return (
                " after this graph break",
                "keep what is costly in front of it, or out of this program",
                node.at,
            )
        if isinstance(node, Image) and unit != "calls":
            return ", as the size of this image is not known", "check without images", node.at
    if subject.unknown and subject.options.argument_tokens is None:
        names = ", ".join(subject.unknown)
        return (
            f", as the length of {names} is not known",
            "give it: -D NAME=VALUE, or --argument-tokens N for all of them",
            None,
        )
    return "", _less(subject), None


class LateConstant(Rule, code="SGL407", name="late-constant", severity="note"):
    """A long constant text after an argument: it is computed again for each row of a batch, as rows differ before it.

    Bad:

        s += question + "\\n"
        s += "Answer in one sentence, without any word of which you are not sure. " * 9
        s += sgl.gen("answer")

    Good:

        s += "Answer in one sentence, without any word of which you are not sure. " * 9
        s += question + "\\n"
        s += sgl.gen("answer")
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        state: Value | None = None
        first: Text | None = None  # that is not the same in each row
        late: list[str] = []
        for node in subject.nodes():
            if isinstance(node, Begin) and state is None:
                state = node.out
            elif isinstance(node, (Text, RoleBegin, RoleEnd)) and node.state == state:
                state = node.out
                for part in node.parts if isinstance(node, Text) else ():
                    if not isinstance(part, str):
                        first = first or (node if isinstance(node, Text) else None)
                    elif first is not None:
                        late.append(part)
            elif state in node.uses or state in node.captures:
                break
        count = subject.options.tokens.count("".join(late))
        if first is not None and count >= LONG:
            yield subject.found(
                self, first.at, f"{count} tokens of constant text come after this, which no two rows of a batch share",
                "write what is constant first, and what differs last",
            )  # fmt: skip
