"""`hoist-prefix`: what branches begin with is appended before their fork, once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from sglc.ir.core import Graph, Names, Node, Operand, Region, Value, walk
from sglc.ir.ops import Fork, If, Join, RoleBegin, RoleEnd, Text
from sglc.ir.specs import Location
from sglc.passes.base import Pass, Report

# What a branch begins with, piece by piece: constant text, a known value, or a role marker ("begin", "user").
Item = str | Value | tuple[str, str]


@dataclass(frozen=True)
class HoistPrefix(Pass, name="hoist-prefix"):
    """Move what every branch of a fork starts with to before the fork; what only some share, to a fork of their own.

    The text is then prefilled once, not once per branch. Constants, role markers and values that are known
    before the fork move; a state that goes on beside its branches is copied first, so it never sees what moved. Does
    nothing for branches that a join concatenates: there the text after the fork is the result. Constant
    text with which both arms of an `if` go on moves before it.
    """

    min_chars: int = 1  # shorter savings over all branches are not worth a node
    min_group_chars: int = 16  # ... over some of the branches

    def run(self, graph: Graph, report: Report) -> Graph:
        names = graph.names()
        block = Region(tuple(self._arms(graph.nodes, names, report)))
        joins = any(isinstance(n, Join) and n.mode == "concate_and_append" for n in walk(block.nodes))
        return graph.with_nodes(self._forks(block, names, joins, report).nodes)

    def _forks(self, block: Region, names: Names, joins: bool, report: Report) -> Region:
        """The forks of a block and of the regions in it. `joins`: the text of a branch may be concatenated somewhere."""
        nodes = [_with_regions(n, lambda r: self._forks(r, names, joins, report)) for n in block.nodes]
        work = _Work(replace(block, nodes=tuple(nodes)), names, joins)
        # Inner forks first: what they hoist, outer ones may hoist on.
        for position in reversed(range(len(nodes))):
            fork = nodes[position]
            if isinstance(fork, Fork) and len(fork.outs) > 1:
                self._hoist(work, position, fork, report)
        return work.block()

    def _arms(self, nodes: Sequence[Node], names: Names, report: Report) -> list[Node]:
        """Constant text with which both arms of an `if` go on from the same state moves before it, inner ones first."""
        found: list[Node] = []
        for old in nodes:
            node = _with_regions(old, lambda r: replace(r, nodes=tuple(self._arms(r.nodes, names, report))))
            if isinstance(node, If):
                node = self._arm_texts(node, found, names, report)
            found.append(node)
        return found

    def _arm_texts(self, node: If, found: list[Node], names: Names, report: Report) -> If:
        """The `if` without what both arms append first; that is added to `found`."""
        firsts = _first_texts(node.then), _first_texts(node.orelse)
        cuts: tuple[dict[Node, Text], dict[Node, Text]] = {}, {}
        for state, one in firsts[0].items():
            two = firsts[1].get(state)
            shared = _shared_text([str(one.parts[0]), str(two.parts[0])]) if two else ""
            if two is None or len(shared) < max(self.min_chars, 1):
                continue
            out = names.fresh("state")
            found.append(Text(out, state, (shared,), at=node.at))
            cuts[0][one], cuts[1][two] = _cut(one, out, len(shared)), _cut(two, out, len(shared))
            report.add("characters hoisted", len(shared))
            report.add("conditions hoisted over")
        if not cuts[0]:
            return node
        then, orelse = (
            replace(arm, nodes=tuple(cut.get(n, n) for n in arm.nodes))
            for arm, cut in zip((node.then, node.orelse), cuts, strict=True)
        )
        return replace(node, then=then, orelse=orelse)

    def _hoist(self, work: _Work, position: int, fork: Fork, report: Report) -> None:
        if any(out in work.concatenated for out in fork.outs):
            return
        branches = [_Branch(out, *work.head(out, position)) for out in fork.outs]
        nodes: list[Node] = []
        state = fork.state
        shared = _common([b.items for b in branches])
        if _chars(shared) >= self.min_chars or any(isinstance(i, tuple) for i in shared):
            if work.uses.get(state, 0) > 1:
                copy = work.names.fresh("state")
                nodes.append(Fork((copy,), state, at=fork.at))
                state = copy
            state = _append(nodes, work.names, state, shared, fork.at)
            for branch in branches:
                branch.items = _rest(branch.items, shared)
            report.add("characters hoisted", _chars(shared) * (len(branches) - 1))
            report.add("forks hoisted")
        before = len(nodes)
        self._group(work, nodes, state, branches, fork.at, report)
        if before or len(nodes) > 1:
            work.replace(position, fork, nodes, branches)

    def _group(
        self,
        work: _Work,
        nodes: list[Node],
        state: Value,
        branches: list[_Branch],
        at: Location | None,
        report: Report,
    ) -> None:
        """Fork `state` into the branches; those that share more go through a state of their own."""
        groups: dict[object, list[_Branch]] = {}
        for branch in branches:
            first = branch.items[0] if branch.items else None
            key: object = branch if first is None else (first[:1] if isinstance(first, str) else first)
            groups.setdefault(key, []).append(branch)
        outs: list[Value] = []
        inner: list[tuple[Value, list[_Branch], list[Item]]] = []
        for members in groups.values():
            shared = _common([b.items for b in members]) if len(members) > 1 else []
            if len(groups) > 1 and _chars(shared) >= self.min_group_chars:
                out = work.names.fresh("state")
                inner.append((out, members, shared))
                outs.append(out)
            else:
                outs.extend(b.out for b in members)
        # The order of branches is that of the program where nothing is grouped.
        if not inner:
            outs = [b.out for b in branches]
        nodes.append(Fork(tuple(outs), state, at=at))
        for out, members, shared in inner:
            for branch in members:
                branch.items = _rest(branch.items, shared)
            report.add("characters hoisted", _chars(shared) * (len(members) - 1))
            report.add("groups of branches hoisted")
            self._group(work, nodes, _append(nodes, work.names, out, shared, at), members, at, report)


def _with_regions(node: Node, change: Callable[[Region], Region]) -> Node:
    """The node with its regions changed; the node itself if they stay the same."""
    new: dict[str, Region] = {}
    for name in node.layout.regions:
        old: Region = getattr(node, name)
        region = change(old)
        if (
            region.results != old.results
            or len(region.nodes) != len(old.nodes)
            or any(a is not b for a, b in zip(region.nodes, old.nodes, strict=True))
        ):
            new[name] = region
    return replace(node, **new) if new else node  # type: ignore[arg-type]


def _first_texts(arm: Region) -> dict[Value, Text]:
    """By state from outside: the text that the arm appends to it, if that is all it does with it and it begins with a constant."""
    users: dict[Value, list[Node | None]] = {}
    inside: set[Value] = set(arm.params)
    for node in arm.nodes:
        for value in dict.fromkeys((*node.uses, *node.captures)):
            if value.type == "state" and value not in inside:
                users.setdefault(value, []).append(node)
        inside.update(node.defs)
    for result in arm.results:
        if isinstance(result, Value):
            users.setdefault(result, []).append(None)
    return {
        state: text
        for state, (text, *others) in users.items()
        if not others and isinstance(text, Text) and text.parts and isinstance(text.parts[0], str)
    }


def _cut(text: Text, state: Value, count: int) -> Text:
    """The text without its first characters, appended to `state`."""
    first = str(text.parts[0])[count:]
    return replace(text, state=state, parts=((first,) if first else ()) + text.parts[1:])


@dataclass(eq=False)
class _Branch:
    """A branch: its first state, what is left of its beginning, and the nodes that beginning was."""

    out: Value
    items: list[Item]
    heads: list[Node]
    count: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = len(self.items)


@dataclass
class _Work:
    """A block while it is rewritten: `now` are the nodes in the place of each of its nodes."""

    source: Region
    names: Names
    joins: bool
    now: list[list[Node]] = field(init=False)
    uses: dict[Value, int] = field(init=False)
    consumer: dict[Value, tuple[int, Node]] = field(init=False)
    forked: set[Value] = field(init=False)
    defined: dict[Value, int] = field(init=False)
    concatenated: set[Value] = field(init=False)

    def __post_init__(self) -> None:
        self.now = [[node] for node in self.source.nodes]
        self.uses, self.consumer, self.forked = {}, {}, set()
        self.defined = dict.fromkeys((*self.source.params, *self.source.free), -1)
        for result in self.source.results:
            if isinstance(result, Value):
                self.uses[result] = self.uses.get(result, 0) + 1
        for position, node in enumerate(self.source.nodes):
            for value in (*node.uses, *node.captures):
                self.uses[value] = self.uses.get(value, 0) + 1
                if isinstance(node, Fork):
                    self.forked.add(value)
                elif value.type == "state":
                    self.consumer[value] = (position, node)
            for value in node.defs:
                self.defined[value] = position
        self.concatenated = self._concatenated()

    def _concatenated(self) -> set[Value]:
        """The states whose text a join appends to another state, in an arm perhaps."""
        found: set[Value] = set()
        if not self.joins:
            return found
        found.update(v for v in self.source.results if isinstance(v, Value) and v.type == "state")
        for node in reversed(self.source.nodes):
            if isinstance(node, Fork):
                continue
            states = [v for v in (*node.uses, *node.captures) if v.type == "state"]
            if isinstance(node, Join):
                if node.mode == "concate_and_append":
                    found.update(v for v in states if v != node.state)
                states = [node.state]
            outs = node.defs if node.regions else node.defs[:1]
            inside = (n for r in node.regions for n in walk(r.nodes) if isinstance(n, Join))
            if any(out in found for out in outs) or any(n.mode == "concate_and_append" for n in inside):
                found.update(states)
        return found

    def head(self, state: Value, before: int) -> tuple[list[Item], list[Node]]:
        """What is appended to `state` first, as far as it may move to position `before`, and by which nodes."""
        items: list[Item] = []
        heads: list[Node] = []
        while state not in self.forked and state in self.consumer:
            node = self.consumer[state][1]
            if isinstance(node, Text):
                heads.append(node)
                for part in node.parts:
                    if isinstance(part, Value) and self.defined.get(part, before) >= before:
                        return items, heads
                    items.append(part)  # type: ignore[arg-type]
            elif isinstance(node, (RoleBegin, RoleEnd)):
                heads.append(node)
                items.append(("begin" if isinstance(node, RoleBegin) else "end", node.role))
            else:
                break
            state = node.out
        return items, heads

    def replace(self, position: int, fork: Fork, nodes: list[Node], branches: list[_Branch]) -> None:
        """Put `nodes` in the place of the fork, and cut from the branches what they take over."""
        place = self.now[position]
        where = next(k for k, n in enumerate(place) if n is fork)
        place[where : where + 1] = nodes
        for node in nodes:
            if isinstance(node, Fork):
                self.forked.add(node.state)
                for out in node.outs:
                    self.defined[out] = position
            else:
                self.consumer[node.uses[0]] = (position, node)
                self.defined[node.defs[0]] = position
        if not isinstance(nodes[0], Fork):
            self.forked.discard(fork.state)
        for branch in branches:
            self._cut(branch)

    def _cut(self, branch: _Branch) -> None:
        """Take from the nodes of a branch's beginning what moved; those that lose all of it become empty text."""
        gone = branch.count - len(branch.items)
        trimmed = branch.items[0] if branch.items else None
        for node in branch.heads:
            had = node.parts if isinstance(node, Text) else (None,)
            left: tuple[Operand, ...] = ()
            if gone < len(had):
                if not isinstance(node, Text):
                    return
                left = node.parts[gone:]
                if isinstance(trimmed, str) and gone < branch.count:
                    left = (trimmed, *left[1:])
            gone = max(gone - len(had), 0)
            state, out = node.uses[0], node.defs[0]
            position = self.consumer[state][0]
            place = self.now[position]
            changed = Text(out, state, left, at=node.at)
            place[next(k for k, n in enumerate(place) if n is node)] = changed
            self.consumer[state] = (position, changed)
            if left:
                return

    def block(self) -> Region:
        """The rewritten block, without the texts that became empty."""
        same: dict[Value, Operand] = {}
        nodes: list[Node] = []
        for place in self.now:
            for old in place:
                node = old.remap(same) if same else old
                if isinstance(node, Text) and not node.parts:
                    same[node.out] = node.state
                else:
                    nodes.append(node)
        results = tuple(same.get(r, r) if isinstance(r, Value) else r for r in self.source.results)
        return replace(self.source, nodes=tuple(nodes), results=results)


def _common(rows: list[list[Item]]) -> list[Item]:
    """The longest common beginning; the last piece may be part of a constant."""
    found: list[Item] = []
    for column in zip(*rows, strict=False):
        if all(item == column[0] for item in column):
            found.append(column[0])
            continue
        texts = [item for item in column if isinstance(item, str)]
        part = _shared_text(texts) if len(texts) == len(column) else ""
        if part:
            found.append(part)
        break
    return found


def _shared_text(texts: list[str]) -> str:
    low, high = min(texts), max(texts)  # what these two share, all that lie between them share
    size = next(
        (k for k, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high))
    )
    return low[:size]


def _rest(items: list[Item], taken: list[Item]) -> list[Item]:
    """What is left of `items` without the beginning `taken`."""
    if not taken:
        return items
    left = items[len(taken) :]
    last, whole = taken[-1], items[len(taken) - 1]
    if isinstance(last, str) and isinstance(whole, str) and len(last) < len(whole):
        left.insert(0, whole[len(last) :])
    return left


def _chars(items: list[Item]) -> int:
    return sum(len(item) for item in items if isinstance(item, str))


def _append(nodes: list[Node], names: Names, state: Value, items: list[Item], at: Location | None) -> Value:
    """Add nodes that append `items`; the state after them."""
    parts: list[Operand] = []
    for item in [*items, None]:
        if isinstance(item, (str, Value)):
            parts.append(item)
            continue
        if parts:
            out = names.fresh("state")
            nodes.append(Text(out, state, tuple(parts), at=at))
            state, parts = out, []
        if item is not None:
            out = names.fresh("state")
            marker = RoleBegin if item[0] == "begin" else RoleEnd
            nodes.append(marker(out, state, item[1], at=at))
            state = out
    return state
