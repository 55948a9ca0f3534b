"""The decorated function with its f-strings and its `.join(...)` made traceable.

`f"{a} and {b:>5}"` asks each value for its characters, which a traced value does not have. Where the source can
be read, each f-string becomes a call of `format_parts`, which gives the same string for ordinary values and a
`concat` for traced ones; `separator.join(parts)` becomes a call of `join_parts` in the same way. The
rewritten function shares globals, defaults and closure.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from types import CellType, CodeType, FunctionType, MappingProxyType
from typing import Any

from sglc.lang.values import Traced, TracedStr

_CONVERSIONS: Mapping[str, Callable[[Any], str]] = MappingProxyType({"s": str, "r": repr, "a": ascii})
_FORMAT = "__sglc_format_parts__"
_JOIN = "__sglc_join_parts__"


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
        if not _is_join(node):
            return node
        assert isinstance(node.func, ast.Attribute)
        made = ast.Call(ast.Name(_JOIN, ast.Load()), [node.func.value, *node.args], node.keywords)
        return ast.fix_missing_locations(ast.copy_location(made, node))


def _is_join(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "join"


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


def traceable(function: Any) -> Any:
    """`function` with its f-strings and joins rewritten; itself if it has none or its source cannot be read."""
    tree = source_of(function)
    if tree is None or not any(isinstance(n, ast.JoinedStr) or _is_join(n) for n in ast.walk(tree)):
        return function
    tree = _FStrings().visit(tree)
    tree.decorator_list = []
    # Free variables stay free when the function stands inside one that defines them; so does ours.
    ours = {_FORMAT: format_parts, _JOIN: join_parts}
    names = (*function.__code__.co_freevars, *ours)
    outer = ast.parse("def outer():\n    pass").body[0]
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
