"""All paths of a body as one graph.

The nodes after a condition become the arms of an `if`, whose results are what the rest of the paths needs and what differs.
A path that came back to the head of a loop makes a `loop` of what lies between; where a loop has several ways out, one
condition tells whether it goes on, and others after it by which way it was left. Paths that end in ways that no `if` can
have are explored again with fewer places to meet, in the end with none.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sglc.errors import GraphBreak
from sglc.ir.core import Node, Operand, Region, Value, walk
from sglc.ir.ops import If, Loop
from sglc.ir.types import type_of
from sglc.lang.paths import (
    LAST,
    MAX_PATHS,
    Back,
    Choice,
    Decision,
    End,
    Joined,
    Paths,
    Place,
    Returned,
    Round,
    Snapshot,
    Target,
    Unmergeable,
    too_many,
)

if TYPE_CHECKING:
    from sglc.lang.trace import Trace

MAX_ROUNDS = 10_000  # of a loop whose end the model decides


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
