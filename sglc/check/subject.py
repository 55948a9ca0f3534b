"""What rules look at: one program's source, its trace, and what it is to run on."""

from __future__ import annotations

import ast
import linecache
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from runtime.backends.base import Capabilities
from sglc.check.diagnostic import Diagnostic, Severity
from sglc.check.tokens import Tokens
from sglc.ir.core import Graph, Module, Node
from sglc.ir.specs import Location
from sglc.lang.chat_template import get_chat_template
from sglc.lang.prefix import beginning, split_arguments
from sglc.lang.rewrite import source_of
from sglc.passes.pipeline import BEFORE_BREAK, Pipeline
from sglc.plan.answers import answer_lengths
from sglc.plan.cost import Costs, costs
from sglc.plan.interval import Interval, Price
from sglc.plan.sizes import Sizes

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Budget:
    """What one run may cost at most; None: any. `cost` is in the currency of `prices`, for each model of which it holds."""

    calls: int | None = None
    tokens: int | None = None
    cost: float | None = None
    prices: Mapping[str, Price] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckOptions:
    """What the program is to run on.

    backend          capabilities of the target; None: rules about it are silent
    tokens           the tokenizer; one of the user is asked where tokens begin, too
    context          tokens of prompt and answer together; None: not checked
    arguments        values of parameters; the others stay unknown
    argument_tokens  how long an argument is at most that stays unknown; None: that is not known
    template         chat template of the model
    budget           what a run may cost
    """

    backend: Capabilities | None = None
    tokens: Tokens = field(default_factory=Tokens)
    context: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    argument_tokens: int | None = None
    template: str = "chatml"
    budget: Budget = Budget()


class Subject:
    """One program. `module` is its trace, up to a graph break if need be; `broken` says why it ends there, or there is none."""

    def __init__(self, program: Any, options: CheckOptions) -> None:
        self.program = program
        self.options = options
        self.file = program.func.__code__.co_filename
        self.line = program.func.__code__.co_firstlineno
        linecache.checkcache(self.file)
        self.tree = source_of(program.func)
        self._arguments, _ = split_arguments(program, options.arguments)
        self.module, self.broken = beginning(program, options.arguments)

    @property
    def graph(self) -> Graph | None:
        return self.module.graph if self.module is not None else None

    @property
    def unknown(self) -> tuple[str, ...]:
        """Parameters whose values are not known."""
        return tuple(p.name for p in self.graph.params) if self.graph is not None else ()

    def nodes(self) -> Iterator[Node]:
        """All nodes of the program, those of arms and loops too; nothing if it could not be traced."""
        if self.graph is not None:
            yield from self.graph.walk()

    @cached_property
    def plain(self) -> Module | None:
        """The trace without calls of other programs, whose nodes stand in their place."""
        return Pipeline.parse(BEFORE_BREAK).run(self.module) if self.module is not None else None

    @cached_property
    def answers(self) -> Mapping[str, Interval]:
        """Tokens of what the constraints let the model write."""
        return answer_lengths(self.plain, self.options.tokens.compiled) if self.plain is not None else {}

    def costs(self, sizes: Sizes) -> Costs | None:
        """What a run costs, as the program is written; None if it could not be traced."""
        if self.plain is None:
            return None
        most = self.options.argument_tokens
        length = None if most is None else Interval(0, most)
        template = get_chat_template(self.options.template)
        return costs(self.plain, sizes, template, self._arguments, argument=length, answers=self.answers)

    # Places.

    def calls(self, *names: str) -> Iterator[ast.Call]:
        """Calls in the source of functions or methods with one of these names."""
        for part in ast.walk(self.tree) if self.tree is not None else ():
            if isinstance(part, ast.Call) and called(part) in names:
                yield part

    def call_at(self, at: Location | None, *names: str) -> ast.AST | None:
        """The call that a node came from, by its line: the node knows no column."""
        if at is None or at.file != self.file:
            return None
        spans = [c for c in self.calls(*names) if c.lineno <= at.line <= (c.end_lineno or c.lineno)]
        return spans[0] if spans else None

    def statement_at(self, at: Location) -> ast.AST | None:
        found: ast.AST | None = None
        for part in ast.walk(self.tree) if self.tree is not None else ():
            if isinstance(part, ast.stmt) and part.lineno == at.line:
                found = part
                if not isinstance(part, (ast.FunctionDef, ast.If, ast.For, ast.While, ast.With)):
                    break
        return found

    def found(
        self, rule: Any, at: Location | ast.AST | None, message: str, fix: str, *names: str
    ) -> Diagnostic:
        """A diagnostic at a node of the syntax tree, or at a line (there, at the call of one of `names`)."""
        place: ast.AST | None
        line, file = self.line, self.file
        if isinstance(at, Location):
            line, file = at.line, at.file
            place = self.call_at(at, *names) if names else None
            place = place or (self.statement_at(at) if file == self.file else None)
        else:
            place = at
        text = linecache.getline(file, line).rstrip()
        column, end = len(text) - len(text.lstrip()) + 1, len(text) + 1
        if place is not None and hasattr(place, "lineno"):
            line = place.lineno
            text = linecache.getline(file, line).rstrip()
            column = _characters(text, getattr(place, "col_offset", 0)) + 1
            same = getattr(place, "end_lineno", line) == line
            end = (
                _characters(text, getattr(place, "end_col_offset", None) or 0) + 1 if same else len(text) + 1
            )
        return Diagnostic(file, line, column, rule.code, Severity(rule.severity), message, fix, end)


def _characters(text: str, count: int) -> int:
    """The characters in so many bytes of a line, which is what the syntax tree counts."""
    return len(text.encode()[:count].decode(errors="ignore"))


def called(node: ast.Call) -> str:
    """The last name of what is called: `gen` of `sgl.gen(...)`."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def argument(node: ast.Call, name: str, position: int) -> ast.expr | None:
    for keyword in node.keywords:
        if keyword.arg == name:
            return keyword.value
    return node.args[position] if position < len(node.args) else None


def constant_texts(operands: Sequence[Any]) -> list[str] | None:
    """The operands if all are constant strings."""
    return list(operands) if all(isinstance(o, str) for o in operands) else None
