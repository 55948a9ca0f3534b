"""The decorated function with what a traced value cannot do by itself made traceable.

`f"{a} and {b:>5}"` asks each value for its characters, which a traced value does not have. Where the source can
be read, each f-string becomes a call of `format_parts`, which gives the same string for ordinary values and a
`concat` for traced ones; `separator.join(parts)` becomes a call of `join_parts` in the same way, and `int(x)`,
`float(x)`, `len(x)`, `str(x)`, `isinstance(x, str)` calls of `apply`. After each `if`, loop and `with`, and where a
loop begins, `point` tells the trace where it is and what locals may still be read there (lang/paths.py). The rewritten
function shares globals, defaults and closure.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Collection, Mapping
from types import CellType, CodeType, FunctionType, MappingProxyType
from typing import Any

from sglc.lang.liveness import Liveness
from sglc.lang.values import ACTIVE, Traced, TracedStr

_CONVERSIONS: Mapping[str, Callable[[Any], str]] = MappingProxyType({"s": str, "r": repr, "a": ascii})
_FORMAT = "__sglc_format_parts__"
_JOIN = "__sglc_join_parts__"
_APPLY = "__sglc_apply__"
_POINT = "__sglc_point__"
_STOP = "__sglc_stop__"
_COUNT = "__sglc_round_"
_KEPT = "__sglc_kept_"
TURN = "__sglc_turn_"
_ITERATORS = frozenset({"enumerate", "zip", "reversed", "range", "sorted", "list", "tuple"})
_APPLIED = frozenset({"int", "float", "len", "str", "isinstance"})


def format_parts(*parts: Any) -> Any:
    """The value of an f-string: parts are strings, or tuples (value, conversion, format spec)."""
    found: Any = ""
    for part in parts:
        if isinstance(part, str):
            found = found + part
            continue
        value, conversion, spec = part
        if isinstance(value, TracedStr) and not conversion and not spec:
            found = found + value
        elif isinstance(value, Traced):
            found = found + value.recorder.compute("format", value, conversion, spec)
        else:
            found = found + format(_CONVERSIONS[conversion](value) if conversion else value, spec)
    return found


def join_parts(owner: Any, *args: Any, **kwargs: Any) -> Any:
    """`owner.join(...)`, where `owner` may be a string and some of its parts traced."""
    if not isinstance(owner, (str, TracedStr)) or len(args) != 1 or kwargs or isinstance(args[0], Traced):
        return owner.join(*args, **kwargs)
    parts = list(args[0])
    if isinstance(owner, str) and not any(isinstance(p, Traced) for p in parts):
        return owner.join(parts)
    found: Any = ""
    for number, part in enumerate(parts):
        found = found + owner + part if number else found + part
    return found


_PYTHON_TYPES: Mapping[str, type] = MappingProxyType({"str": str, "bool": bool, "int": int, "float": float})


def apply(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`function(...)`, where the first argument may be traced and the function is one of a few built-in ones."""
    value = args[0] if args else None
    if not isinstance(value, Traced) or kwargs:
        return function(*args, **kwargs)
    kind = getattr(value.value, "type", "")
    if function is isinstance and len(args) == 2:
        python = list if kind.startswith("list<") else _PYTHON_TYPES.get(kind)
        if python is None:
            value.stop("isinstance()", "Let this part run interpreted")
        return issubclass(python, args[1])
    if function is str and len(args) == 1 and isinstance(value, TracedStr):
        return value
    if len(args) == 1 and (function is not len or kind == "str" or kind.startswith("list<")):
        if function is str:
            return value.recorder.compute("format", value, "s", "")
        if function in (int, float, len):
            return value.recorder.compute(function.__name__, value)
    return function(*args)


def point(number: int, kind: str, names: tuple[str, ...]) -> None:
    """The traced function is here; `names` are the locals that may still be read."""
    recorder = ACTIVE.get()
    if recorder is not None:
        recorder.at_point(number, kind, names, sys._getframe(1))


class _FStrings(ast.NodeTransformer):
    def visit_JoinedStr(self, node: ast.JoinedStr) -> Any:
        parts: list[ast.expr] = []
        for piece in node.values:
            if isinstance(piece, ast.FormattedValue):
                conversion = "" if piece.conversion == -1 else chr(piece.conversion)
                spec: Any = ast.Constant("") if piece.format_spec is None else self.visit(piece.format_spec)
                value = self.visit(piece.value)
                parts.append(ast.Tuple([value, ast.Constant(conversion), spec], ast.Load()))
            else:
                parts.append(piece)
        made = ast.Call(ast.Name(_FORMAT, ast.Load()), parts, [])
        return ast.fix_missing_locations(ast.copy_location(made, node))

    def visit_Call(self, node: ast.Call) -> Any:
        self.generic_visit(node)
        if _is_join(node):
            assert isinstance(node.func, ast.Attribute)
            made = ast.Call(ast.Name(_JOIN, ast.Load()), [node.func.value, *node.args], node.keywords)
        elif _is_applied(node):
            made = ast.Call(ast.Name(_APPLY, ast.Load()), [node.func, *node.args], node.keywords)
        else:
            return node
        return ast.fix_missing_locations(ast.copy_location(made, node))


def _is_join(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "join"


def _is_applied(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _APPLIED


def _is_rewritten(node: ast.AST) -> bool:
    compound = (ast.JoinedStr, ast.If, ast.While, ast.For, ast.Match)
    return isinstance(node, compound) or _is_join(node) or _is_applied(node)


class _Points:
    """Puts calls of `point` into a function. Each `for` gets a counter of its rounds and keeps what it goes through: where
    its iterator stands is part of where the function is. A `while` has a counter (TURN) too, which only tells apart
    paths that are in different rounds."""

    def __init__(self, tree: ast.FunctionDef) -> None:
        self.count = 0
        self.rounds = 0
        self.live = Liveness(tree)
        self.always: set[str] = set()
        for part in ast.walk(tree):
            if isinstance(part, (ast.Lambda, ast.FunctionDef)) and part is not tree:
                self.always |= {n.id for n in ast.walk(part) if isinstance(n, ast.Name)}
        tree.body = self.block(tree.body, ())

    def block(self, body: list[ast.stmt], inside: tuple[str, ...]) -> list[ast.stmt]:
        found: list[ast.stmt] = []
        for statement in body:
            found.extend(self.statement(statement, inside))
            if isinstance(statement, (ast.If, ast.For, ast.While, ast.With, ast.Match)):
                found.append(self.call("after", self.live.after[statement], inside, statement))
        return found

    def statement(self, node: ast.stmt, inside: tuple[str, ...]) -> list[ast.stmt]:
        if isinstance(node, (ast.If, ast.With)):
            node.body = self.block(node.body, inside)
        if isinstance(node, ast.If):
            node.orelse = self.block(node.orelse, inside)
        if isinstance(node, ast.Match):
            for case in node.cases:
                case.body = self.block(case.body, inside)
        if isinstance(node, ast.For):
            counter, kept = f"{_COUNT}{self.rounds}", f"{_KEPT}{self.rounds}"
            self.rounds += 1
            within = (*inside, counter, kept)
            head = self.call("round", self.live.head[node], within, node)
            zero, one = ast.Constant(0), ast.Constant(1)
            start = ast.Assign([ast.Name(counter, ast.Store())], zero)
            step = ast.AugAssign(ast.Name(counter, ast.Store()), ast.Add(), one)
            node.body = [_at(step, node), head, *self.block(node.body, within)]
            node.orelse = self.block(node.orelse, inside)
            keep = ast.Assign([ast.Name(kept, ast.Store())], _kept(node, kept))
            return [_at(keep, node), _at(start, node), ast.fix_missing_locations(node)]
        if isinstance(node, ast.While):
            turn = f"{TURN}{self.rounds}"
            self.rounds += 1
            start = ast.Assign([ast.Name(turn, ast.Store())], ast.Constant(0))
            step = ast.AugAssign(ast.Name(turn, ast.Store()), ast.Add(), ast.Constant(1))
            head = self.call("head", self.live.head[node], inside, node)
            node.orelse = self.block(node.orelse, inside)
            body = [_at(step, node), *self.block(node.body, (*inside, turn))]
            if node.orelse:
                node.body = [head, *body]
            else:
                leave = ast.If(ast.UnaryOp(ast.Not(), node.test), [ast.Break()], [])
                node.test, node.body = ast.Constant(True), [head, _at(leave, node.test), *body]
                ast.copy_location(node.test, node)
                ast.fix_missing_locations(node)
            return [_at(start, node), node]
        return [node]

    def call(self, kind: str, live: frozenset[str], inside: tuple[str, ...], like: ast.stmt) -> ast.stmt:
        names = self.always | live | set(inside)
        arguments = [ast.Constant(self.count), ast.Constant(kind)]
        listed = ast.Tuple([ast.Constant(n) for n in sorted(names)], ast.Load())
        self.count += 1
        return _at(ast.Expr(ast.Call(ast.Name(_POINT, ast.Load()), [*arguments, listed], [])), like)


def _kept(node: ast.For, name: str) -> ast.expr:
    """What a `for` goes through, in a form that can be compared; the loop then goes through `name`.

    Of calls that make iterators, the arguments.
    """
    source, kept = node.iter, ast.Name(name, ast.Load())
    if isinstance(source, ast.Call) and isinstance(source.func, ast.Name) and source.func.id in _ITERATORS:
        parts = [ast.Subscript(kept, ast.Constant(k), ast.Load()) for k in (0, 1)]
        named = ast.Dict([ast.Constant(k.arg) for k in source.keywords], [k.value for k in source.keywords])
        if all(k.arg is not None for k in source.keywords):
            node.iter = ast.Call(
                source.func, [ast.Starred(parts[0], ast.Load())], [ast.keyword(None, parts[1])]
            )
            return ast.Tuple([ast.Tuple(source.args, ast.Load()), named], ast.Load())
    if isinstance(source, ast.Call) and isinstance(source.func, ast.Attribute) and not source.args:
        if source.func.attr in ("items", "keys", "values") and not source.keywords:
            node.iter = ast.Call(ast.Attribute(kept, source.func.attr, ast.Load()), [], [])
            return source.func.value
    node.iter = kept
    return source


def _listed(found: Any) -> list[ast.stmt]:
    return found if isinstance(found, list) else [found]


def _at(node: ast.stmt, like: ast.AST) -> ast.stmt:
    return ast.fix_missing_locations(ast.copy_location(node, like))


def source_of(function: Callable[..., Any]) -> ast.FunctionDef | None:
    """The syntax tree of a function, with line numbers of its file; None if its source cannot be read."""
    try:
        lines, first = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError, IndentationError):
        return None
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef):
        return None
    ast.increment_lineno(tree, first - 1)
    return tree.body[0]


class _Stops(ast.NodeTransformer):
    """Puts a call of `stop` before the statements at the given places."""

    def __init__(self, places: Collection[tuple[int, int]]) -> None:
        self.places = places

    def visit(self, node: ast.AST) -> Any:
        found = self.generic_visit(node)
        if not isinstance(node, ast.stmt) or (node.lineno, node.col_offset) not in self.places:
            return found
        place = [ast.Constant(node.lineno), ast.Constant(node.col_offset)]
        return [_at(ast.Expr(ast.Call(ast.Name(_STOP, ast.Load()), [*place], [])), node), found]


def traceable(
    function: Any,
    places: Collection[tuple[int, int]] = (),
    stop: Callable[[int, int], None] | None = None,
) -> Any:
    """`function` rewritten; itself if there is nothing to rewrite, or its source cannot be read.

    The rewritten one calls `stop` before the statements that begin at `places` (line and column).
    """
    tree = source_of(function)
    if tree is None or not (places or any(_is_rewritten(n) for n in ast.walk(tree))):
        return function
    tree.decorator_list = []
    _Points(tree)
    if places:
        tree.body = [s for part in tree.body for s in _listed(_Stops(places).visit(part))]
    tree = _FStrings().visit(tree)
    # Free variables stay free when the function stands inside one that defines them; so does ours.
    ours = {_FORMAT: format_parts, _JOIN: join_parts, _APPLY: apply, _POINT: point, _STOP: stop}
    names = (*function.__code__.co_freevars, *ours)
    outer = ast.parse("def __sglc_outer():\n    pass").body[0]
    assert isinstance(outer, ast.FunctionDef)
    binds: list[ast.stmt] = [ast.Assign([ast.Name(n, ast.Store())], ast.Constant(None)) for n in names]
    outer.body = [*binds, tree]
    module = ast.fix_missing_locations(ast.Module([outer], []))
    code = _code_named(compile(module, function.__code__.co_filename, "exec"), function.__name__)
    cells = dict(zip(names, (*(function.__closure__ or ()), *map(CellType, ours.values())), strict=True))
    if code is None or not set(function.__code__.co_freevars) <= set(code.co_freevars) <= set(names):
        return function
    closure = tuple(cells[name] for name in code.co_freevars)
    made = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def _code_named(code: CodeType, name: str) -> CodeType | None:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_name == name:
                return constant
            found = _code_named(constant, name)
            if found is not None:
                return found
    return None
