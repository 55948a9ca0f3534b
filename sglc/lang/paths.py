"""One run of a body is one path: which way its conditions go, and where it meets another path.

`Paths` decides conditions by a script, then takes the first outcome that is possible; lang/merge.py runs the body for the
others. Where a path comes to a place of the code with the same variables as another one had there (only the values differ),
the rest is the same, and the path ends: its values join the other's, so that conditions in a row cost one run each. Where
it comes to the beginning of a loop for the second time in that way, the round between becomes a `loop`.

What a choice can be is tracked through comparisons, so that impossible outcomes are never explored; a path whose rest
leaned on such knowledge is not joined by one that does not have it.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any

from runtime.compute import ComputeError, compute
from sglc.errors import GraphBreak
from sglc.ir.core import Node, Operand, Value
from sglc.ir.specs import Location
from sglc.lang.purity import PLAIN, freeze
from sglc.lang.rewrite import TURN
from sglc.lang.state import ProgramState, ProgramStateGroup
from sglc.lang.values import Traced

if TYPE_CHECKING:
    from sglc.lang.trace import Trace

MAX_PATHS = 512  # runs of one body
MAX_PEELED = 16  # rounds of a loop that could not be made a `loop`
MAX_DOMAIN = 64  # possible values that are tracked

Place = tuple[int, int]  # nodes recorded and conditions decided so far
LAST: Place = (1 << 60, 1 << 60)


@dataclass(frozen=True, slots=True)
class Choice:
    """The outcome of a condition; names of values go on from `number` after it (None: without a gap)."""

    outcome: bool
    number: int | None


@dataclass(frozen=True, eq=False)
class Decision:
    place: Place
    cond: Value
    choice: Choice
    at: Location | None
    states: tuple[Value, ...]  # of all sinks, in order of creation


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Where the body was: equal `key` means the same but for `values`. `env` are variables of the states: a key and
    values for each name; `sinks` their numbers; `soft` what the states wrote last, which only tells whether a branch failed."""

    point: int
    place: Place
    key: Any
    values: tuple[Value, ...]
    env: tuple[Mapping[Any, tuple[Any, tuple[Value, ...]]], ...]
    sinks: tuple[int, ...]
    script: tuple[bool, ...]
    states: tuple[Value, ...]
    soft: tuple[Value | None, ...]
    turns: tuple[
        int, ...
    ]  # rounds of the `while` loops around; a path only joins another one that is in the same

    @property
    def name(self) -> tuple[Any, ...]:
        """The same for the same place of the same path, in whatever run."""
        return (self.point, self.place, self.script)


# How a path ends.


@dataclass(frozen=True, eq=False)
class Returned:
    state: Value
    result: Operand
    variables: Mapping[Any, Any]
    shape: Any


@dataclass(frozen=True, eq=False)
class Joined:
    """It went on as another path did from `target`: `values` says with what in the place of that one's values."""

    target: Snapshot
    values: Mapping[Value, Operand]


@dataclass(frozen=True, eq=False)
class Back:
    """It came back to the head of a loop; `values` says what each value has become."""

    head: Snapshot
    values: Mapping[Value, Operand]


@dataclass(frozen=True, eq=False)
class Round:
    """A condition that leaves a loop or goes on: what `loop` is made of when its head is reached."""

    head: Snapshot
    decision: Decision
    back_nodes: tuple[Node, ...]
    back: Back
    exit_nodes: tuple[Node, ...]
    exit: End


End = Returned | Joined | Back | Round


class Ended(BaseException):
    """Thrown through the body when the rest of a path is known."""

    def __init__(self, end: Joined | Back, nodes: int) -> None:
        self.end = end
        self.nodes = nodes  # recorded so far; what leaving `with` blocks records is not of the path


class Unmergeable(Exception):
    """Two paths that end in ways that no `if` can have."""


def too_many(at: Location | None) -> GraphBreak:
    return GraphBreak(
        f"conditions on values that are not known make more than {MAX_PATHS} paths, this one among them", at
    )


class Paths:
    """The conditions of one run of a body."""

    def __init__(
        self, trace: Trace, script: Sequence[Choice], targets: Sequence[Target], loops: bool
    ) -> None:
        self.trace = trace
        self.script = script
        self.targets = targets
        self.loops = loops
        self.decisions: list[Decision] = []
        self._outcomes: tuple[bool, ...] = ()
        self.snapshots: list[Snapshot] = []
        self.heads: dict[int, list[Snapshot]] = {}
        self.peeled: dict[int, list[int]] = {}  # by loop: decisions at the beginning of its rounds
        self.tables: dict[
            Value, tuple[Value, Mapping[Any, Any]]
        ] = {}  # what a value is for each value of its root
        self.allowed: dict[Value, frozenset[Any]] = {}
        self.narrowed: dict[Value, frozenset[int]] = {}  # conditions that told something of a root
        self.leans: list[tuple[Place, frozenset[int]]] = []
        self.consulted: list[tuple[Place, int, Any]] = []
        self.end: End | None = None

    @property
    def place(self) -> Place:
        return len(self.trace.nodes), len(self.decisions)

    @property
    def outcomes(self) -> tuple[bool, ...]:
        if len(self._outcomes) != len(self.decisions):
            self._outcomes = tuple(d.choice.outcome for d in self.decisions)
        return self._outcomes

    # What values can be.

    def domain(self, value: Value, possible: Iterable[Any]) -> None:
        """`value` is one of these."""
        found = tuple(dict.fromkeys(possible))
        if 0 < len(found) <= MAX_DOMAIN:
            self.tables[value] = (value, {v: v for v in found})

    def derive(self, op: str, out: Value, operands: Sequence[Operand]) -> None:
        """`out` is a pure function of operands that may have known domains."""
        roots = {self.tables[v][0] for v in operands if isinstance(v, Value) and v in self.tables}
        if len(roots) != 1 or any(isinstance(v, Value) and v not in self.tables for v in operands):
            return
        (root,) = roots
        table: dict[Any, Any] = {}
        for case in self.tables[root][1]:
            given = tuple(self.tables[v][1][case] if isinstance(v, Value) else v for v in operands)
            try:
                table[case] = compute(op, given)
            except ComputeError:
                return
        self.tables[out] = (root, table)

    def _table(self, cond: Value) -> tuple[Value, Mapping[Any, Any]]:
        if cond not in self.tables:
            self.tables[cond] = (cond, {True: True, False: False})
        return self.tables[cond]

    def decide(self, cond: Value, at: Location | None) -> bool:
        """The outcome of a condition on this path."""
        root, table = self._table(cond)
        allowed = self.allowed.get(root)
        outcomes = {bool(v) for k, v in table.items() if allowed is None or k in allowed}
        if len(outcomes) == 1:
            if len({bool(v) for v in table.values()}) > 1:
                self.leans.append((self.place, self.narrowed[root]))
            return outcomes.pop()
        self.trace.flush_reads()
        number = len(self.decisions)
        if number >= MAX_PATHS:  # each has another outcome, and that is a path
            raise too_many(at)
        choice = self.script[number] if number < len(self.script) else Choice(True, None)
        states = tuple(sink.state for sink in self.trace.sinks)
        self.decisions.append(Decision((len(self.trace.nodes), number), cond, choice, at, states))
        if choice.number is not None:
            self.trace.names.jump(choice.number)
        left = frozenset(k for k, v in table.items() if bool(v) == choice.outcome)
        self.allowed[root] = left if allowed is None else left & allowed
        self.narrowed[root] = self.narrowed.get(root, frozenset()) | {number}
        return choice.outcome

    def settle(self, value: Traced) -> Any:
        """The value itself, by asking for each that it can be; None if that is not known."""
        if not isinstance(value.value, Value) or value.value not in self.tables:
            return None
        root, table = self.tables[value.value]
        allowed = self.allowed.get(root)
        possible = list(dict.fromkeys(v for k, v in table.items() if allowed is None or k in allowed))
        for one in possible[:-1]:
            if value == one:
                return one
        if allowed is not None and len(set(table.values())) > len(possible):
            self.leans.append((self.place, self.narrowed[root]))
        return possible[-1]

    def consult(self, sink: Any, name: Any) -> None:
        """A variable was asked for, so whether it is there matters."""
        while sink is not None:
            self.consulted.append((self.place, sink.number, name))
            sink = sink.parent

    # Where paths meet.

    def consulted_from(self, place: Place) -> list[tuple[Place, int, Any]]:
        return self.consulted[bisect.bisect_left(self.consulted, place, key=lambda c: c[0]) :]

    def at_point(self, point: int, kind: str, names: Sequence[str], frame: FrameType) -> None:
        fresh = len(self.decisions) >= len(self.script)
        if self.decisions:  # what was read on the way here belongs to that way
            self.trace.flush_reads()
        visits = self.heads.setdefault(point, []) if kind == "head" and self.loops else None
        # Between two visits that make a round the model has decided something.
        head = visits is not None and (not visits or visits[-1].place[1] < len(self.decisions))
        if kind == "head" and not self.loops:
            decided = self.peeled.setdefault(point, [])
            if not decided or decided[-1] < len(self.decisions):
                decided.append(len(self.decisions))
            if len(decided) > MAX_PEELED:
                at = self.decisions[-1].at if self.decisions else None
                raise GraphBreak("a loop whose end the model decides cannot be said as one", at)
        if not head and not (self.decisions and fresh):
            return
        here = _Flattener(self.trace).snapshot(point, names, frame)
        if visits is not None and head:
            for before in reversed(visits):
                values = _same_round(before, here)
                if values is not None and fresh:
                    raise Ended(Back(before, values), len(self.trace.nodes))
            visits.append(here)
            for inner in self.heads:  # a round of an outer loop begins, so that of an inner one has ended
                if inner > point:
                    self.heads[inner] = []
        if not self.decisions or not fresh:
            return
        for target in self.targets:
            joined = target.joined_by(here)
            if joined is not None:
                for there, mine in zip(target.snapshot.sinks, here.sinks, strict=True):
                    self.consulted += [(self.place, mine, n) for s, n in target.asked() if s == there]
                self.trace.flush_reads()
                raise Ended(joined, len(self.trace.nodes))
        self.snapshots.append(here)


def _same_round(before: Snapshot, here: Snapshot) -> Mapping[Value, Operand] | None:
    """What the values of the first visit have become in the second one, if only values changed."""
    if before.key != here.key or before.sinks != here.sinks:
        return None
    old, new = list(before.values), list(here.values)
    for a, b in zip(before.env, here.env, strict=True):
        if a.keys() != b.keys() or any(a[n][0] != b[n][0] for n in a):
            return None
        for name in a:
            old += a[name][1]
            new += b[name][1]
    return _changes(old, new, before, here)


def _changes(
    old: Sequence[Value], new: Sequence[Value], before: Snapshot, here: Snapshot
) -> Mapping[Value, Operand] | None:
    """What each old value is now; None if one has become several."""
    found: dict[Value, Operand] = {}
    if not all(found.setdefault(a, b) == b for a, b in zip(old, new, strict=True)):
        return None
    for a, b in zip(before.soft, here.soft, strict=True):
        if a is not None:
            found.setdefault(a, b)
    return found


@dataclass(frozen=True, eq=False)
class Target:
    """A place of a finished path that others may join. `used`: what that path's rest asked for or leaned on."""

    snapshot: Snapshot
    since: int  # the condition after which the paths differ
    runs: Sequence[Paths]

    def joined_by(self, here: Snapshot) -> Joined | None:
        there = self.snapshot
        if (here.point, here.turns) != (there.point, there.turns) or here.key != there.key:
            return None
        if len(here.env) != len(there.env):
            return None
        old, new = list(there.values), list(here.values)
        missing: set[tuple[int, Any]] = set()
        for number, a, b in zip(there.sinks, there.env, here.env, strict=True):
            for name in a.keys() | b.keys():
                if name in a and name in b and a[name][0] == b[name][0]:
                    old += a[name][1]
                    new += b[name][1]
                else:
                    missing.add((number, name))
        values = _changes(old, new, there, here)
        return None if values is None or self._matters(missing) else Joined(there, values)

    def asked(self) -> set[tuple[int, Any]]:
        """Variables that the path asked for from here on, with the numbers of their states."""
        place, prefix = self.snapshot.place, self.snapshot.script
        runs = [r for r in self.runs if r.outcomes[: len(prefix)] == prefix]
        return {(sink, name) for r in runs for at, sink, name in r.consulted_from(place)}

    def _matters(self, missing: set[tuple[int, Any]]) -> bool:
        """Whether the rest of the path would be another one without these variables, or without what was known."""
        place, prefix = self.snapshot.place, self.snapshot.script
        differing = set(range(self.since, len(prefix)))
        if missing and missing & self.asked():
            return True
        runs = [r for r in self.runs if r.outcomes[: len(prefix)] == prefix]
        return any(at >= place and on & differing for r in runs for at, on in r.leans)


class _Flattener:
    """Takes a snapshot: what user code holds, as a key and the traced values in it."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.values: list[Value] = []
        self.soft: list[Value | None] = []
        self.sinks: list[Any] = [trace.root]

    def snapshot(self, point: int, names: Sequence[str], frame: FrameType) -> Snapshot:
        known = frame.f_locals
        held = tuple((n, self.flat(known[n])) for n in names if n in known and not n.startswith(TURN))
        turns = tuple(known[n] for n in names if n.startswith(TURN))
        states: list[Any] = []
        env: list[Mapping[Any, tuple[Any, tuple[Value, ...]]]] = []
        at = 0
        while at < len(self.sinks):  # finding one may find others
            sink = self.sinks[at]
            at += 1
            self.values.append(sink.state)
            self.soft += [*sink.joined, sink.last]
            parent = self.sinks.index(sink.parent) if sink.parent in self.sinks else None
            states.append((sink.role, tuple(sink.scopes), sink.over, len(sink.joined), parent))
            env.append({name: self._apart(sink, name) for name in sink.env})
        paths = self.trace.paths
        return Snapshot(
            point,
            paths.place,
            (held, tuple(states)),
            tuple(self.values),
            tuple(env),
            tuple(sink.number for sink in self.sinks),
            paths.outcomes,
            tuple(sink.state for sink in self.trace.sinks),
            tuple(self.soft),
            turns,
        )

    def _apart(self, sink: Any, name: Any) -> tuple[Any, tuple[Value, ...]]:
        """One variable with values of its own."""
        kept, self.values = self.values, []
        key = self.flat(sink.env[name])
        found, self.values = tuple(self.values), kept
        return (key, name in sink.settled), found

    def flat(self, value: Any) -> Any:
        if isinstance(value, Traced):
            if not isinstance(value.value, Value):
                return ("constant", freeze(value.value))
            self.values.append(value.value)
            return ("traced", value.value.type, value.needs)
        if isinstance(value, ProgramStateGroup):
            return ("group", tuple(self.flat(s) for s in value.states), self.flat(value.parent))
        if isinstance(value, ProgramState):
            return ("state", self._state(value.sink), self.flat(value.ret_value))
        if type(value) in PLAIN:
            return freeze(value)
        if type(value) in (list, tuple):
            return (type(value).__name__, tuple(self.flat(v) for v in value))
        if type(value) is dict:
            return ("dict", tuple((self.flat(k), self.flat(v)) for k, v in value.items()))
        if isinstance(value, range):
            return repr(value)
        if callable(value) or isinstance(value, ModuleType):
            return ("object", id(value))
        return ("opaque", id(value), self.trace)  # equal in no other run

    def _state(self, sink: Any) -> Any:
        if "settled" in vars(sink):  # else of a program that was called
            if sink not in self.sinks:
                self.sinks.append(sink)
            return self.sinks.index(sink)
        return (self.flat(dict(sink.env)), self.flat(sink.full_text()))
