"""Both outcomes of every condition on a value that is not known: the body runs once for each path, and paths meet again.

A run of the body is one path; `Paths` decides its conditions by a script, then takes the first outcome that is possible.
`explore` runs the body for the other outcomes and merges: the nodes after a condition become the arms of an `if`. Where
a path comes to a place of the code with the same variables as another one had there (only the values differ), the rest
is the same, and the path ends: its values join the other's, so that conditions in a row cost one run each. Where it comes
to the beginning of a loop for the second time in that way, the round between becomes a `loop`.

What a choice can be is tracked through comparisons, so that impossible outcomes are never explored; a path whose rest
leaned on such knowledge is not joined by one that does not have it.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any

from runtime.compute import ComputeError, compute
from sglc.errors import GraphBreak
from sglc.ir.core import Node, Operand, Region, Value, walk
from sglc.ir.ops import If, Loop, type_of
from sglc.ir.specs import Location
from sglc.lang.purity import PLAIN, freeze
from sglc.lang.rewrite import TURN
from sglc.lang.state import ProgramState, ProgramStateGroup
from sglc.lang.values import Traced

if TYPE_CHECKING:
    from sglc.lang.trace import Trace

MAX_PATHS = 512  # runs of one body
MAX_ROUNDS = 10_000  # of a loop whose end the model decides
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


@dataclass(frozen=True, eq=False)
class Item:
    """A node of a path, or an `if` or `loop` made of some, and the places between which it lies."""

    start: Place
    stop: Place
    node: Node


@dataclass
class Explorer:
    """Runs a body for all paths and merges them. `run(script, targets, loops)` runs it once."""

    run: Callable[[Sequence[Choice], Sequence[Target], bool], Trace]
    merge_shapes: Callable[[Any, Any], Any]
    loops: bool = True
    runs: list[Paths] = field(default_factory=list)
    count: int = 0
    number: int = 0  # of the next value

    def explore(
        self, script: tuple[Choice, ...] = (), targets: tuple[Target, ...] = ()
    ) -> tuple[list[Item], End]:
        """The nodes after the script's last decision, and how they end."""
        trace = self._path(script, targets)
        paths = trace.paths
        assert paths.end is not None
        end: End = paths.end
        items: list[Item] = []
        renames: list[
            tuple[Place, Mapping[Value, Operand]]
        ] = []  # from a place on, values are called otherwise
        upper = len(trace.nodes)
        for k in range(len(paths.decisions) - 1, len(script) - 1, -1):
            decision = paths.decisions[k]
            items = self._segment(trace, decision.place[0], upper, k + 1) + items
            upper = decision.place[0]
            items, end = self._close(items, end, (upper, k + 1))
            before = tuple(d.choice for d in paths.decisions[:k])
            items, end = self._branch(trace, k, before, items, end, targets, renames)
        first = paths.decisions[len(script) - 1].place[0] if script else 0
        items = self._segment(trace, first, upper, len(script)) + items
        return self._close(items, end, (first, len(script)))

    def _path(self, script: Sequence[Choice], targets: Sequence[Target]) -> Trace:
        self.count += 1
        if self.count > MAX_PATHS:
            raise too_many(self.runs[-1].decisions[-1].at)
        trace = self.run(script, targets, self.loops)
        self.runs.append(trace.paths)
        self.number = max(self.number, trace.names.next)
        return trace

    def _segment(self, trace: Trace, low: int, high: int, decided: int) -> list[Item]:
        return [Item((i, decided), (i + 1, decided), trace.nodes[i]) for i in range(low, high)]

    def fresh(self, type_: str) -> Value:
        self.number += 1
        return Value(str(self.number - 1), type_)

    def _branch(
        self,
        trace: Trace,
        k: int,
        before: tuple[Choice, ...],
        items: list[Item],
        end: End,
        targets: tuple[Target, ...],
        renames: list[tuple[Place, Mapping[Value, Operand]]],
    ) -> tuple[list[Item], End]:
        """The other outcome of decision k, and both merged."""
        paths = trace.paths
        decision = paths.decisions[k]
        starts = [i.start for i in items]
        own = tuple(
            Target(s, k, self.runs)
            for s in paths.snapshots
            if s.place >= (decision.place[0], k + 1) and _position(items, starts, s.place) is not None
        )
        other = not decision.choice.outcome
        # Arms that go on at different places of the path cannot be one `if`: then fewer places are offered.
        offers = dict.fromkeys((own + targets, own[-1:] + targets, targets, ()))
        for allowed in offers:
            script = (*before, Choice(other, self.number))
            try:
                nodes, other_end = self.explore(script, allowed)
                others = [i.node for i in nodes]
                return self._merge(decision, items, starts, end, others, other_end, own, renames)
            except Unmergeable:
                continue
        raise Unmergeable

    def _merge(
        self,
        decision: Decision,
        items: list[Item],
        starts: list[Place],
        end: End,
        others: list[Node],
        other_end: End,
        own: Sequence[Target],
        renames: list[tuple[Place, Mapping[Value, Operand]]],
    ) -> tuple[list[Item], End]:
        place = decision.place
        nodes = [i.node for i in items]
        if isinstance(other_end, Joined) and any(t.snapshot is other_end.target for t in own):
            at = _position(items, starts, other_end.target.place)
            assert at is not None
            changed = {
                _now(a, other_end.target.place, renames): b for a, b in other_end.values.items() if a != b
            }
            branch, outs = self._if(decision, nodes[:at], others, list(changed.items()))
            to = {a: out for a, out in zip(changed, outs, strict=True) if isinstance(a, Value)}
            renames.append((other_end.target.place, to))
            tail = [dataclasses.replace(i, node=i.node.remap(to)) for i in items[at:]]
            made = [Item(place, other_end.target.place, branch)] if branch else []
            return made + tail, _remap_end(end, to)
        if isinstance(end, Returned) and isinstance(other_end, Returned):
            pairs: list[tuple[Operand, Operand]] = [
                (end.state, other_end.state),
                (end.result, other_end.result),
            ]
            branch, outs = self._if(decision, nodes, others, pairs)
            names = [n for n in end.variables if n in other_end.variables]
            shapes = {n: self.merge_shapes(end.variables[n], other_end.variables[n]) for n in names}
            merged = Returned(outs[0], outs[1], shapes, self.merge_shapes(end.shape, other_end.shape))
            return [Item(place, LAST, branch)] if branch else [], merged
        if isinstance(end, (Joined, Back)) and _same_way(end, other_end):
            assert isinstance(other_end, (Joined, Back))
            keys = list(end.values)
            branch, outs = self._if(
                decision, nodes, others, [(end.values[n], other_end.values[n]) for n in keys]
            )
            merged_end = dataclasses.replace(end, values=dict(zip(keys, outs, strict=True)))
            return [Item(place, LAST, branch)] if branch else [], merged_end
        if isinstance(end, Back) and _leaves(other_end, end):
            return [], Round(end.head, decision, tuple(nodes), end, tuple(others), other_end)
        if isinstance(other_end, Back) and _leaves(end, other_end):
            flipped = dataclasses.replace(
                decision, choice=dataclasses.replace(decision.choice, outcome=not decision.choice.outcome)
            )
            return [], Round(other_end.head, flipped, tuple(others), other_end, tuple(nodes), end)
        return self._turn(decision, nodes, end, others, other_end)

    def _if(
        self,
        decision: Decision,
        nodes: Sequence[Node],
        others: Sequence[Node],
        pairs: Sequence[tuple[Operand, Operand]],
    ) -> tuple[If | None, list[Any]]:
        """An `if` whose arms yield what differs; the values of all pairs after it.

        What an arm has only in one of its own arms is nothing that the rest asks for: other paths went on without it.
        """
        hidden = _hidden(nodes) | _hidden(others)
        pairs = [(a, a) if a in hidden or b in hidden else (a, b) for a, b in pairs]
        differing = list(dict.fromkeys(p for p in pairs if not _same(*p)))
        outs = [self.fresh(_common(type_of(a), type_of(b))) for a, b in differing]
        found = dict(zip(differing, outs, strict=True))
        after = [found.get(p, p[0]) if not _same(*p) else p[0] for p in pairs]
        if not nodes and not others and not differing:
            return None, after
        one = Region(tuple(nodes), tuple(a for a, _ in differing))
        two = Region(tuple(others), tuple(b for _, b in differing))
        then, orelse = (one, two) if decision.choice.outcome else (two, one)
        return If(tuple(outs), decision.cond, then, orelse, at=decision.at), after

    # Loops.

    def _close(self, items: list[Item], end: End, floor: Place) -> tuple[list[Item], End]:
        """Make the `loop` of a round whose head lies at or after `floor`."""
        if isinstance(end, Back) and end.head.place >= floor:
            at = _position(items, [i.start for i in items], end.head.place)
            if at is not None:
                raise GraphBreak("a loop has no end that the model decides", self.runs[-1].decisions[-1].at)
        if not isinstance(end, Round) or end.head.place < floor:
            return items, end
        at = _position(items, [i.start for i in items], end.head.place)
        if at is None:
            raise Unmergeable
        loop, exit_nodes, exit_end = self._loop(end, [i.node for i in items[at:]])
        rest = [Item(LAST, LAST, n) for n in exit_nodes]
        return [*items[:at], Item(end.head.place, LAST, loop), *rest], exit_end

    def _turn(
        self, decision: Decision, nodes: Sequence[Node], end: End, others: Sequence[Node], other_end: End
    ) -> tuple[list[Item], End]:
        """Both outcomes of a condition in a loop that has several ways out, or back: one `if` tells whether it goes on."""
        heads = [e.head for e in (end, other_end) if isinstance(e, (Back, Round))]
        if not heads:
            raise Unmergeable
        head = max(heads, key=lambda h: h.place)
        one, two = self._way(head, decision, nodes, end), self._way(head, decision, others, other_end)
        if one.exit is None and two.exit is None:
            raise Unmergeable
        way = self._either(decision, one, two)
        states = tuple(_new(way.values.get(a, a), {}) for a in head.states)
        assert isinstance(way.again, Value) and way.exit is not None
        goes_on = dataclasses.replace(
            decision,
            cond=way.again,
            choice=Choice(True, None),
            states=states,  # type: ignore[arg-type]
        )
        exit_nodes, exit_end = way.exit
        turn = Round(head, goes_on, (), Back(head, way.values), tuple(exit_nodes), exit_end)
        return [Item(decision.place, LAST, n) for n in way.nodes], turn

    def _way(self, head: Snapshot, decision: Decision, nodes: Sequence[Node], end: End) -> Way:
        """How one arm goes on with the loop of `head`, or leaves it."""
        if isinstance(end, Back) and end.head.name == head.name:
            return Way(tuple(nodes), True, end.values, None)
        if isinstance(end, Round) and end.head.name == head.name:
            back = Way(end.back_nodes, True, end.back.values, None)
            leave = self._leaving(head, end.decision, end.exit_nodes, end.exit)
            way = self._either(end.decision, back, leave)
            return dataclasses.replace(way, nodes=(*nodes, *way.nodes))
        if isinstance(end, Round) or (isinstance(end, Back) and end.head.place >= head.place):
            raise Unmergeable
        return self._leaving(head, decision, nodes, end)

    def _leaving(self, head: Snapshot, decision: Decision, nodes: Sequence[Node], end: End) -> Way:
        now = dict(zip(head.states, decision.states, strict=False))
        return Way((), False, now, (tuple(nodes), end))

    def _either(self, decision: Decision, one: Way, two: Way) -> Way:
        """An `if` that goes one way or the other; `one` is for the outcome of the decision."""
        keys = [
            a
            for a in dict.fromkeys((*one.values, *two.values))
            if not (_same(one.values.get(a, a), a) and _same(two.values.get(a, a), a))
        ]
        pairs = [(one.again, two.again)]
        pairs += [(one.values.get(a, a), two.values.get(a, a)) for a in keys]
        wanted = [(way, v) for way in (one, two) for v in self._extras(way)]
        pairs += [(v, None) if way is one else (None, v) for way, v in wanted]
        both = one.exit is not None and two.exit is not None
        pairs += [(True, False)] if both else []
        outs = [self.fresh(_common(type_of(a), type_of(b))) for a, b in pairs]
        regions = (
            Region(one.nodes, tuple(a for a, _ in pairs)),
            Region(two.nodes, tuple(b for _, b in pairs)),
        )
        then, orelse = regions if decision.choice.outcome else regions[::-1]
        branch = If(tuple(outs), decision.cond, then, orelse, at=decision.at)
        values = dict(zip(keys, outs[1:], strict=False))
        extras = dict(zip(wanted, outs[1 + len(keys) :], strict=False))
        exits: list[tuple[tuple[Node, ...], End]] = []
        for way in (one, two):
            if way.exit is None:
                continue
            to: dict[Value, Operand] = {v: out for (w, v), out in extras.items() if w is way}
            for a in keys:
                now = way.values.get(a, a)
                if a.type == "state" and isinstance(now, Value):
                    to[now] = values[a]
            nodes, end = way.exit
            exits.append((tuple(n.remap(to) for n in nodes), _remap_end(end, to)))
        if both:
            exits = [
                self._exits(dataclasses.replace(decision, cond=outs[-1], choice=Choice(True, None)), *exits)
            ]
        all_values = {**one.values, **two.values, **values}
        return Way((branch,), outs[0], all_values, exits[0] if exits else None)

    def _extras(self, way: Way) -> list[Value]:
        """What its exit uses of the nodes before, which lie in an arm."""
        if way.exit is None:
            return []
        own = {v for n in way.nodes for v in n.defs}
        now = set(way.values.values())
        found = [v for v in _free(*way.exit) if v in own and v not in now]
        if any(v.type == "state" for v in found):
            raise Unmergeable
        return found

    def _exits(
        self, decision: Decision, one: tuple[tuple[Node, ...], End], two: tuple[tuple[Node, ...], End]
    ) -> tuple[tuple[Node, ...], End]:
        """Two ways out of a loop as one."""
        items = [Item(LAST, LAST, n) for n in one[0]]
        made, end = self._merge(decision, items, [LAST] * len(items), one[1], list(two[0]), two[1], (), [])
        return tuple(i.node for i in made), end

    def _loop(self, turn: Round, body: list[Node]) -> tuple[Loop, list[Node], End]:
        head, decision = turn.head, turn.decision
        carried = {a: b for a, b in turn.back.values.items() if a != b}
        state_now = dict(zip(head.states, decision.states, strict=False))
        own = {v for n in body for v in n.defs}
        used = _free(turn.exit_nodes, turn.exit)
        extra = [v for v in used if v in own and v not in state_now.values()]
        params = {a: self.fresh(_common(a.type, type_of(b))) for a, b in carried.items()}
        blanks = [self.fresh("any") for _ in extra]
        if any(v.type == "state" for v in extra):
            raise Unmergeable
        back = Region(
            tuple(n.remap(params) for n in turn.back_nodes),
            (True, *(_new(b, params) for b in carried.values()), *(None for _ in extra)),
        )
        leaving = [state_now.get(a, a) if a.type == "state" else a for a in carried]
        out = Region((), (False, *(params.get(v, v) for v in leaving), *extra))
        then, orelse = (back, out) if decision.choice.outcome else (out, back)
        kinds = [*(p.type for p in params.values()), *("any" for _ in extra)]
        again = self.fresh("bool")
        after = [self.fresh(kind) for kind in kinds]
        branch = If((again, *after), params.get(decision.cond, decision.cond), then, orelse, at=decision.at)
        inner = Region(
            (*(n.remap(params) for n in body), branch), (again, *after), (*params.values(), *blanks)
        )
        outs = [self.fresh(kind) for kind in kinds]
        loop = Loop(
            tuple(outs),
            (*carried, *(None for _ in extra)),
            inner,
            MAX_ROUNDS,
            at=decision.at,
        )
        to: dict[Value, Operand] = dict(zip(leaving, outs, strict=False))
        to |= {a: o for a, o in zip(carried, outs, strict=False) if a.type != "state"}
        to |= dict(zip(extra, outs[len(carried) :], strict=True))
        return loop, [n.remap(to) for n in turn.exit_nodes], _remap_end(turn.exit, to)


@dataclass(frozen=True, eq=False)
class Way:
    """An arm of a condition in a loop: what it does, whether it goes on, and what the values at the head are then.

    `exit`: what comes after the loop where it is left here, as nodes and an end.
    """

    nodes: tuple[Node, ...]
    again: Operand
    values: Mapping[Value, Operand]
    exit: tuple[tuple[Node, ...], End] | None


def _leaves(end: End, back: Back) -> bool:
    """Whether a path that ends so has left the loop to whose head the other one goes back: for an outer loop, or for good."""
    return isinstance(end, (Returned, Joined)) or (isinstance(end, Back) and end.head.place < back.head.place)


def _now(value: Operand, place: Place, renames: Sequence[tuple[Place, Mapping[Value, Operand]]]) -> Operand:
    """What a value is called at a place, after what has been merged."""
    for since, to in renames:
        if since <= place and isinstance(value, Value):
            value = to.get(value, value)
    return value


def _same_way(one: Joined | Back, two: End) -> bool:
    """Whether both paths go on at the same place, with values for the same."""
    if isinstance(one, Joined):
        return isinstance(two, Joined) and one.target is two.target and one.values.keys() == two.values.keys()
    return isinstance(two, Back) and one.head.name == two.head.name and one.values.keys() == two.values.keys()


def _position(items: Sequence[Item], starts: Sequence[Place], place: Place) -> int | None:
    """Before which item a place lies; None if it is inside of one."""
    at = bisect.bisect_left(starts, place)
    return None if at > 0 and items[at - 1].stop > place else at


def pruned(nodes: Sequence[Node], live: set[Operand]) -> list[Node]:
    """The nodes without results of regions that nothing asks for; `live` are values that are needed after them.

    Paths meet with all variables that they have in common, also with those that the rest never reads.
    """
    found: list[Node] = []
    for item in reversed(nodes):
        if isinstance(item, If):
            kept = [k for k, out in enumerate(item.outs) if out in live]
            arms = [_pruned_arm(region, kept, live) for region in item.regions]
            live.add(item.cond)
            if kept or any(arm.nodes for arm in arms):
                outs = tuple(item.outs[k] for k in kept)
                found.append(dataclasses.replace(item, outs=outs, then=arms[0], orelse=arms[1]))
        elif isinstance(item, Loop):
            found.append(_pruned_loop(item, live))
        else:
            live.update(item.uses)
            found.append(item)
    return found[::-1]


def _pruned_arm(region: Region, kept: Sequence[int], live: set[Operand]) -> Region:
    results = tuple(region.results[k] for k in kept)
    live.update(results)
    return dataclasses.replace(region, nodes=tuple(pruned(region.nodes, live)), results=results)


def _pruned_loop(loop: Loop, live: set[Operand]) -> Loop:
    again, *results = loop.body.results
    kept = {k for k, out in enumerate(loop.outs) if out in live}
    live.add(again)
    while True:  # what goes round is needed if a round needs it
        live.update(results[k] for k in kept)
        nodes = pruned(loop.body.nodes, live)
        needed = {k for k, param in enumerate(loop.body.params) if param in live}
        if needed <= kept:
            break
        kept |= needed
    order = sorted(kept)
    live.update(loop.inits[k] for k in order)
    region = Region(
        tuple(nodes), (again, *(results[k] for k in order)), tuple(loop.body.params[k] for k in order)
    )
    return dataclasses.replace(
        loop,
        outs=tuple(loop.outs[k] for k in order),
        inits=tuple(loop.inits[k] for k in order),
        body=region,
    )


def _hidden(nodes: Sequence[Node]) -> set[Operand]:
    """Values that are defined in regions of the nodes, so that they are not known after them."""
    found: set[Operand] = set()
    for item in nodes:
        for region in item.regions:
            found.update(region.params)
            found.update(v for inner in walk(region.nodes) for v in inner.defs)
    return found


def _same(a: Operand, b: Operand) -> bool:
    return type(a) is type(b) and a == b


def _common(a: str, b: str) -> str:
    return a if a == b else "any"


def _free(nodes: Sequence[Node], end: End) -> list[Value]:
    """Values from outside that the nodes and the end use."""
    values: tuple[Operand, ...] = ()
    if isinstance(end, Returned):
        values = (end.state, end.result)
    elif isinstance(end, (Joined, Back)):
        values = tuple(end.values.values())
    return list(Region(tuple(nodes), values).free)


def _new(value: Any, to: Mapping[Value, Operand]) -> Any:
    return to.get(value, value) if isinstance(value, Value) else value


def _remap_end(end: End, to: Mapping[Value, Operand]) -> End:
    if isinstance(end, Returned):
        return dataclasses.replace(end, state=_new(end.state, to), result=_new(end.result, to))
    if isinstance(end, (Joined, Back)):
        return _remap_values(end, to)
    decision = dataclasses.replace(
        end.decision, cond=_new(end.decision.cond, to), states=tuple(_new(v, to) for v in end.decision.states)
    )
    return dataclasses.replace(
        end,
        decision=decision,
        back_nodes=tuple(n.remap(to) for n in end.back_nodes),
        back=_remap_values(end.back, to),
        exit_nodes=tuple(n.remap(to) for n in end.exit_nodes),
        exit=_remap_end(end.exit, to),
    )


def _remap_values(end: Any, to: Mapping[Value, Operand]) -> Any:
    return dataclasses.replace(end, values={n: _new(v, to) for n, v in end.values.items()})
