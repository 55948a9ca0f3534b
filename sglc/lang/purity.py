"""Does a program's body do nothing but build its state? Then its plan alone is its meaning.

A check of the syntax tree against what is known to be harmless: local names, sglc's primitives, string and
list operations, some built-ins, other such programs and functions. Whatever is not on the list is
reported with its place, and the program runs interpreted. So a print, a global counter or a call into a
library happens exactly as often and when Python would have done it. Global names that are read must hold plain
values; they become part of what a plan is specialised on.
"""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FunctionType, GenericAlias, ModuleType, UnionType
from typing import Any

from sglc.ir.specs import Location
from sglc.lang.rewrite import source_of

PLAIN = (str, int, float, bool, bytes, type(None))


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BUILTINS = _words(
    """
    range len enumerate zip str int float bool min max sum sorted reversed list tuple dict set frozenset
    abs round isinstance any all repr map filter ord chr divmod format type ValueError TypeError
    KeyError IndexError AssertionError RuntimeError StopIteration Exception slice
    """
)
_METHODS = _words(  # of strings; of mappings and sequences, reading only; of states
    """
    strip lstrip rstrip lower upper title capitalize casefold swapcase split rsplit splitlines partition
    rpartition join replace startswith endswith removeprefix removesuffix find rfind index rindex count
    isdigit isalpha isalnum isspace isupper islower isdecimal isnumeric zfill ljust rjust center
    expandtabs encode format

    keys values items get copy union intersection difference

    fork join system user assistant system_begin system_end user_begin user_end assistant_begin
    assistant_end var_scope get_var set_var text messages get_meta_info sync error
    """
)
_MUTATORS = _words("append extend insert pop sort reverse clear remove add discard update setdefault popitem")
_STATEMENTS = (
    ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr, ast.If, ast.For, ast.While, ast.With, ast.Return, ast.Pass,
    ast.Break, ast.Continue, ast.Assert, ast.Raise, ast.Match,
)  # fmt: skip
_EXPRESSIONS = (
    ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.IfExp, ast.Dict, ast.Set, ast.ListComp, ast.SetComp, ast.DictComp,
    ast.GeneratorExp, ast.Compare, ast.Call, ast.FormattedValue, ast.JoinedStr, ast.Constant, ast.Attribute,
    ast.Subscript, ast.Starred, ast.Name, ast.List, ast.Tuple, ast.Slice, ast.NamedExpr,
)  # fmt: skip
_FRESH = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
_FRESH_CALLS = frozenset({"list", "dict", "set", "sorted"})


@dataclass(frozen=True, slots=True)
class Break:
    """Why a program runs interpreted, and the place."""

    reason: str
    at: Location | None = None

    def __str__(self) -> str:
        return f"{self.at}: {self.reason}" if self.at else self.reason


@dataclass
class Purity:
    """`breaks` is empty if the body is pure; `reads` are global and closure names with the functions that read them.

    `stops`: the statements of the body itself, by line and column, that do something else, or call what does.
    """

    breaks: list[Break] = field(default_factory=list)
    reads: set[tuple[FunctionType, str]] = field(default_factory=set)
    stops: dict[tuple[int, int], Break] = field(default_factory=dict)

    def guards(self) -> tuple[Any, ...]:
        """The values that were read, in a form that can be compared. Raises Unplain if one is no longer plain."""
        order = sorted(self.reads, key=lambda r: (r[0].__module__, r[0].__qualname__, r[1]))
        return tuple((name, freeze(resolve(function, name))) for function, name in order)


class Unplain(TypeError):
    """A value that is not made of strings, numbers, lists, tuples and dicts alone."""


def freeze(value: Any) -> Any:
    """A hashable image of a plain value, types included."""
    kind = type(value)
    if kind in PLAIN:
        return (kind.__name__, repr(value) if kind is float else value)
    if kind in (list, tuple):
        return (kind.__name__, tuple(freeze(v) for v in value))
    if kind is dict:
        return ("dict", tuple((freeze(k), freeze(v)) for k, v in value.items()))
    if kind in (set, frozenset):
        return (kind.__name__, frozenset(freeze(v) for v in value))
    if isinstance(value, (FunctionType, ModuleType)) or _is_type(value) or callable(value):
        return ("object", id(value))
    raise Unplain(f"a {kind.__name__}")


def resolve(function: FunctionType, name: str) -> Any:
    """What a global or closure name of `function` means now. Raises NameError."""
    free = function.__code__.co_freevars
    if name in free and function.__closure__ is not None:
        try:
            return function.__closure__[free.index(name)].cell_contents
        except ValueError:
            raise NameError(name) from None
    if name in function.__globals__:
        return function.__globals__[name]
    if hasattr(builtins, name):
        return getattr(builtins, name)
    raise NameError(name)


def purity(function: Callable[..., Any]) -> Purity:
    """Check the body of `function` and of the plain functions that it calls."""
    found = Purity()
    checker = _Checker(found, set())
    checker.check(function)
    impure = checker.impure()
    for place, target in checker.places.get(function, ()):
        if target in impure:
            code, name = function.__code__, getattr(target, "__qualname__", repr(target))
            at = Location(code.co_filename, place[0], place[1] + 1)
            found.stops.setdefault(place, Break(f"{name}(...) is called, and there {impure[target]}", at))
    found.stops.update(checker.stops.get(function, {}))
    return found


class _Checker:
    def __init__(self, found: Purity, seen: set[Any]) -> None:
        self.found = found
        self.seen = seen
        self.stops: dict[Any, dict[tuple[int, int], Break]] = {}  # by function and statement
        self.places: dict[
            Any, list[tuple[tuple[int, int], Any]]
        ] = {}  # who is called, and in which statement

    def impure(self) -> dict[Any, Break]:
        """The functions that do something else, or call one that does."""
        found = {f: next(iter(stops.values())) for f, stops in self.stops.items() if stops}
        while True:
            more = {
                caller: found[target]
                for caller, places in self.places.items()
                for _, target in places
                if target in found and caller not in found
            }
            if not more:
                return found
            found.update(more)

    def check(self, function: Any, first_shared: bool = False) -> None:
        """`first_shared`: its first parameter may hold a container of the world outside, and so is no state."""
        if (function, first_shared) in self.seen:
            return
        is_main = not self.seen
        self.seen.add((function, first_shared))
        name = getattr(function, "__qualname__", repr(function))
        tree = source_of(function) if isinstance(function, FunctionType) else None
        if tree is None:
            code = getattr(function, "__code__", None)
            at = Location(code.co_filename, code.co_firstlineno) if code else None
            unread = Break(f"the source of {name} cannot be read, so it is not known what it does", at)
            self.found.breaks.append(unread)
            self.stops[function] = {(0, 0): unread}
            return
        _Body(self, function, tree, is_main, first_shared).run()


class _Body:
    """The check of one function."""

    def __init__(
        self,
        checker: _Checker,
        function: FunctionType,
        tree: ast.FunctionDef,
        is_main: bool,
        first_shared: bool,
    ) -> None:
        self.checker = checker
        self.function = function
        self.tree = tree
        self.file = inspect.getsourcefile(function) or function.__code__.co_filename
        self.locals = set(function.__code__.co_varnames) | set(function.__code__.co_cellvars)
        for part in ast.walk(tree):  # names of comprehensions and lambdas are in code objects of their own
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                self.locals.add(part.id)
            elif isinstance(part, ast.MatchAs) and part.name is not None:
                self.locals.add(part.name)
            elif isinstance(part, ast.arg):
                self.locals.add(part.arg)
        self.fresh = self._fresh_names()
        self.shared = self._shared_names(is_main, first_shared)
        self.place = (tree.lineno, tree.col_offset)  # of the innermost statement that is being looked at

    def stop(self, node: ast.AST, reason: str) -> None:
        line, column = getattr(node, "lineno", 0), getattr(node, "col_offset", -1) + 1
        found = Break(reason, Location(self.file, line, column))
        self.checker.found.breaks.append(found)
        self.checker.stops.setdefault(self.function, {}).setdefault(self.place, found)

    def run(self) -> None:
        for statement in self.tree.body:
            self.statement(statement)

    def _fresh_names(self) -> set[str]:
        """Local names that only ever hold containers made here."""
        made: dict[str, bool] = {}
        for part in ast.walk(self.tree):
            targets: list[ast.expr] = []
            value: ast.expr | None = None
            if isinstance(part, ast.Assign):
                targets, value = part.targets, part.value
            elif isinstance(part, (ast.AnnAssign, ast.NamedExpr)):
                targets, value = [part.target], part.value
            elif isinstance(part, (ast.For, ast.comprehension)):
                targets = [part.target]
            fresh = isinstance(value, _FRESH) or (
                isinstance(value, ast.Call)
                and isinstance(value.func, ast.Name)
                and value.func.id in _FRESH_CALLS
            )
            for target in targets:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store):
                        made[name.id] = made.get(name.id, True) and fresh and target is name
        arguments = {a.arg for a in ast.walk(self.tree.args) if isinstance(a, ast.arg)}
        return {name for name, fresh in made.items() if fresh} - arguments

    def _shared_names(self, is_main: bool, first_shared: bool) -> set[str]:
        """Local names that may hold a container of the world outside: a global one, or an argument of a function
        that the body calls; the first one is taken for the state unless the call says otherwise. Arguments of the
        body itself are copied for a trace."""
        names = [a.arg for a in ast.walk(self.tree.args) if isinstance(a, ast.arg)]
        found = set() if is_main else set(names if first_shared else names[1:])
        flows: list[tuple[ast.expr, ast.expr]] = []
        for part in ast.walk(self.tree):
            if isinstance(part, ast.Assign):
                flows += [(target, part.value) for target in part.targets]
            elif isinstance(part, (ast.AnnAssign, ast.NamedExpr)) and part.value is not None:
                flows.append((part.target, part.value))
            elif isinstance(part, (ast.For, ast.comprehension)):
                flows.append((part.target, part.iter))
        while True:
            more = {
                name.id
                for target, value in flows
                if self._mentions(value, found)
                for name in ast.walk(target)
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
            }
            if more <= found:
                return found
            found |= more

    def _mentions(self, value: ast.expr, shared: set[str]) -> bool:
        for part in ast.walk(value):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load):
                known, held = self.known(part)
                if part.id in shared or (known and isinstance(held, (list, dict, set, tuple))):
                    return True
        return False

    def statement(self, node: ast.stmt) -> None:
        outer, self.place = self.place, (node.lineno, node.col_offset)
        try:
            self._statement(node)
        finally:
            self.place = outer

    def _statement(self, node: ast.stmt) -> None:
        if not isinstance(node, _STATEMENTS):
            self.stop(node, f"`{type(node).__name__.lower()}` in the body is not traced")
            return
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                self.target(target)
            if (
                isinstance(node, ast.AugAssign)
                and isinstance(node.target, ast.Name)
                and node.target.id in self.shared
            ):
                self.stop(node, f"{node.target.id} may be changed, which was not made in this function")
        if isinstance(node, ast.For):
            self.target(node.target)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                self.statement(child)
            elif isinstance(child, ast.expr):
                self.expression(child)
            elif isinstance(child, ast.match_case):
                self.case(child)
            elif isinstance(child, ast.withitem):
                self.expression(child.context_expr)
                if child.optional_vars is not None:
                    self.target(child.optional_vars)

    def case(self, node: ast.match_case) -> None:
        for part in ast.walk(node.pattern):
            if isinstance(part, (ast.MatchMapping, ast.MatchClass, ast.MatchStar)):
                self.stop(part, "a pattern that looks inside a value is not traced")
            elif isinstance(part, ast.MatchValue):
                self.expression(part.value)
        if node.guard is not None:
            self.expression(node.guard)
        for child in node.body:
            self.statement(child)

    def target(self, node: ast.expr) -> None:
        for part in ast.walk(node):
            if isinstance(part, ast.Attribute) and not isinstance(part.ctx, ast.Load):
                self.stop(part, f"the attribute .{part.attr} is set, which others can see")
            elif isinstance(part, ast.Subscript) and not isinstance(part.ctx, ast.Load):
                owner: ast.expr = part
                while isinstance(owner, (ast.Subscript, ast.Attribute)):
                    owner = owner.value
                if not isinstance(owner, ast.Name) or owner.id not in self.locals or owner.id in self.shared:
                    shown = ast.unparse(part)
                    self.stop(part, f"{shown} is set, in a value that was not made in this function")
            elif (
                isinstance(part, ast.Name) and part.id not in self.locals and isinstance(part.ctx, ast.Store)
            ):
                self.stop(part, f"the global name {part.id} is set")

    def expression(self, node: ast.expr) -> None:
        if isinstance(node, ast.Lambda):
            self.expression(node.body)
            return
        if not isinstance(node, _EXPRESSIONS):
            self.stop(node, f"a {type(node).__name__.lower()} expression in the body is not traced")
            return
        if isinstance(node, ast.Call):
            self.call(node)
            return
        if isinstance(node, ast.Attribute):
            self.attribute(node)
            return
        if isinstance(node, ast.Name):
            self.name(node)
            return
        for child in self._children(node):
            self.expression(child)

    def _children(self, node: ast.AST) -> Iterator[ast.expr]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                yield child
            elif isinstance(child, (ast.comprehension, ast.keyword, ast.arguments)):
                yield from self._children(child)

    def known(self, node: ast.expr) -> tuple[bool, Any]:
        """Whether the expression is a global name, or an attribute of a module, and what it means."""
        if isinstance(node, ast.Name) and node.id not in self.locals:
            try:
                return True, resolve(self.function, node.id)
            except NameError:
                return False, None
        if isinstance(node, ast.Attribute):
            found, owner = self.known(node.value)
            if found and isinstance(owner, ModuleType) and hasattr(owner, node.attr):
                return True, getattr(owner, node.attr)
        return False, None

    def name(self, node: ast.Name) -> None:
        if node.id in self.locals:
            return
        found, value = self.known(node)
        if not found:
            self.stop(node, f"the name {node.id} is not defined")
        elif _harmless(value) or (isinstance(value, type) and node.id in _BUILTINS):
            return
        elif _is_type(value):
            self.checker.found.reads.add((self.function, node.id))
        else:
            try:
                freeze(value)
            except Unplain as error:
                self.stop(node, f"the global {node.id} is {error}, which may change or do anything")
                return
            if callable(value) or isinstance(value, ModuleType):
                self.stop(node, f"the global {node.id} is used as a value")
            else:
                self.checker.found.reads.add((self.function, node.id))

    def attribute(self, node: ast.Attribute) -> None:
        found, value = self.known(node)
        if found and (_harmless(value) or type(value) in PLAIN or _is_type(value)):
            return
        if node.attr == "ret_value":
            self.expression(node.value)
        else:
            self.stop(node, f"the attribute .{node.attr} is read, which may be anything")

    def call(self, node: ast.Call) -> None:
        for child in [*node.args, *(k.value for k in node.keywords)]:
            self.expression(child)
        found, target = self.known(node.func)
        if found:
            self._call_known(node, target)
        elif isinstance(node.func, ast.Attribute):
            self._call_method(node, node.func)
        else:
            shown = ast.unparse(node.func)
            self.stop(node, f"{shown}(...) is called, and what that does is not known")

    def _call_known(self, node: ast.Call, target: Any) -> None:
        shown = ast.unparse(node.func)
        if isinstance(node.func, ast.Name) and getattr(builtins, node.func.id, None) is target:
            if node.func.id not in _BUILTINS:
                self.stop(node, f"{shown}(...) is called, whose effect happens outside of the state")
        elif _harmless(target):
            return
        elif isinstance(target, FunctionType):
            self.checker.places.setdefault(self.function, []).append((self.place, target))
            self.checker.check(target, self._first_is_shared(node, target))
        else:
            self.stop(node, f"{shown}(...) is called, and what that does is not known")

    def _first_is_shared(self, node: ast.Call, target: FunctionType) -> bool:
        """Whether what the call gives as the first parameter may be a container of the world outside."""
        first = target.__code__.co_varnames[:1]
        given = node.args[:1] or [k.value for k in node.keywords if k.arg in (None, *first)]
        return any(self._mentions(value, self.shared) for value in given)

    def _call_method(self, node: ast.Call, method: ast.Attribute) -> None:
        owner = method.value
        self.expression(owner)
        if method.attr in _MUTATORS:
            if not (isinstance(owner, ast.Name) and owner.id in self.fresh):
                shown = ast.unparse(method)
                self.stop(node, f"{shown}(...) changes a value that was not made in this function")
        elif method.attr not in _METHODS:
            self.stop(node, f".{method.attr}(...) is called, and what that does is not known")


def _is_type(value: Any) -> bool:
    """A class, or what typing makes of one: as a value it does nothing (a call of it is looked at as such)."""
    return isinstance(value, (type, GenericAlias, UnionType)) or type(value).__module__ == "typing"


def _harmless(value: Any) -> bool:
    """What sglc itself offers to programs, and other programs (which are checked when they are traced)."""
    module = getattr(value, "__module__", None) or getattr(type(value), "__module__", "")
    if isinstance(value, ModuleType):
        return False
    if module in ("sglc.lang.pieces", "sglc.lang.choices"):
        return True
    return type(value).__module__ in ("sglc.lang.program", "sglc.lang.choices", "sglc.lang.host")
