"""What a picture of a graph shows: boxes with short text, edges, and where each box stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sglc.ir.core import Graph, Node, Value
from sglc.ir.ops import (
    Begin,
    Call,
    Fork,
    Gen,
    If,
    Image,
    Join,
    Loop,
    Pack,
    Pure,
    Read,
    Return,
    Reuse,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    Select,
    SetVar,
    Text,
)

WIDTH = 34  # characters of a line in a box


@dataclass
class Box:
    """One node, or a run of text and role markers. `rank`: how far down; `lane`: how far to the right."""

    number: int
    kind: str  # text, call, branch, value, plain
    lines: list[str]
    group: str
    rank: int = 0
    lane: int = 0


@dataclass
class Picture:
    """`edges`: from, to, and whether it is a value rather than a state."""

    boxes: list[Box] = field(default_factory=list)
    edges: list[tuple[int, int, bool]] = field(default_factory=list)


def picture_of(graph: Graph) -> Picture:
    """Boxes in order of the graph, each below what it needs, branches side by side."""
    work = _Work()
    for param in graph.params:
        work.source[param] = work.box("value", [f"argument {param.name}"], "", [])
    work.block(graph.nodes, "")
    work.lanes()
    return work.picture


class _Work:
    def __init__(self) -> None:
        self.picture = Picture()
        self.source: dict[Value, int] = {}
        self.floor = 0  # what is in a region stands below its owner

    def box(self, kind: str, lines: list[str], group: str, needs: Sequence[tuple[int, bool]]) -> int:
        number = len(self.picture.boxes)
        rank = max([self.floor, *(self.picture.boxes[n].rank + 1 for n, _ in needs)])
        self.picture.boxes.append(Box(number, kind, lines, group, rank))
        for n, dashed in dict.fromkeys(needs):
            self.picture.edges.append((n, number, dashed))
        return number

    def block(self, nodes: Sequence[Node], group: str) -> None:
        for node in nodes:
            needs = [(self.source[v], v.type != "state") for v in node.uses if v in self.source]
            if isinstance(node, (Text, RoleBegin, RoleEnd)) and self._grow(node, group, needs):
                continue
            if isinstance(node, (ScopeBegin, Read, SetVar)) and node.uses:
                if node.defs:
                    self.source[node.defs[0]] = self.source[node.uses[0]]
                continue
            number = self.box(_kind(node), _lines(node), group, needs)
            for title, region in zip(_titles(node), node.regions, strict=True):
                self.source.update((p, number) for p in region.params)
                start, outer = len(self.picture.boxes), self.floor
                self.floor = self.picture.boxes[number].rank + 1
                self.block(region.nodes, f"{group}/{number}.{title}")
                self.floor = outer
                if len(self.picture.boxes) > start:
                    self.picture.edges.append((number, start, True))
            if node.regions:
                ends = [(self.source[v], False) for r in node.regions for v in r.results
                        if isinstance(v, Value) and v.type == "state" and v in self.source]  # fmt: skip
                below = max((b.rank for b in self.picture.boxes[number:]), default=0)
                meet = self.box(
                    "plain",
                    ["meet" if isinstance(node, If) else "after the loop"],
                    group,
                    ends or [(number, False)],
                )
                self.picture.boxes[meet].rank = max(self.picture.boxes[meet].rank, below + 1)
                number = meet
            self.source.update(dict.fromkeys(node.defs, number))

    def _grow(self, node: Node, group: str, needs: list[tuple[int, bool]]) -> bool:
        """Add text to the box of the text before it, if nothing else comes from there."""
        before = self.source.get(node.uses[0])
        line = _lines(node)
        if before is None:
            return False
        box = self.picture.boxes[before]
        grows = (
            box.kind == "text"
            and box.group == group
            and not any(a == before for a, _, _ in self.picture.edges)
        )
        others = [n for n in needs if n[0] != before]
        if grows and len(box.lines) < 6 and not others:
            box.lines += line
        elif grows and not others:
            box.lines[-1] = "..."
        else:
            before = self.box("text", line, group, needs)
        self.source[node.defs[0]] = before
        return True

    def lanes(self) -> None:
        """Boxes of one rank stand side by side, in the order of what they come from."""
        ranks: dict[int, list[Box]] = {}
        above: dict[int, list[int]] = {}
        for one, two, _ in self.picture.edges:
            above.setdefault(two, []).append(one)
        for box in self.picture.boxes:
            ranks.setdefault(box.rank, []).append(box)
        for rank in sorted(ranks):
            row = ranks[rank]
            row.sort(
                key=lambda b: (
                    _middle([self.picture.boxes[n].lane for n in above.get(b.number, [])]),
                    b.number,
                )
            )
            taken = -1
            for box in row:
                wished = round(_middle([self.picture.boxes[n].lane for n in above.get(box.number, [])]))
                box.lane = max(wished, taken + 1)
                taken = box.lane


def _middle(lanes: list[int]) -> float:
    return sum(lanes) / len(lanes) if lanes else 0.0


def _kind(node: Node) -> str:
    if isinstance(node, (Gen, Select, Call, Reuse)):
        return "call"
    if isinstance(node, (Fork, Join, If, Loop)):
        return "branch"
    return "value" if isinstance(node, (Pure, Pack)) else "plain"


def _titles(node: Node) -> list[str]:
    return ["then", "else"] if isinstance(node, If) else ["each round"] * len(node.regions)


def _short(text: str) -> str:
    shown = text.replace("\n", "\\n")
    return shown if len(shown) <= WIDTH else shown[: WIDTH - 3] + "..."


def _lines(node: Node) -> list[str]:
    if isinstance(node, Text):
        return [_short("".join("{...}" if isinstance(p, Value) else str(p) for p in node.parts))]
    if isinstance(node, (RoleBegin, RoleEnd)):
        return [f"<{'/' if isinstance(node, RoleEnd) else ''}{node.role}>"]
    if isinstance(node, (Gen, Select, Reuse)):
        first = f"{node.op} {node.name or ''}".strip()
        if isinstance(node, Select):
            return [
                first,
                _short(", ".join("{...}" if isinstance(c, Value) else str(c) for c in node.choices)),
            ]
        limit = node.sampling.max_tokens if isinstance(node, Gen) else None
        return [first, f"at most {limit} tokens"] if limit is not None else [first]
    if isinstance(node, Call):
        return [f"call {node.symbol.name}"]
    if isinstance(node, Fork):
        return [f"fork into {len(node.outs)}"]
    if isinstance(node, Loop):
        return [f"loop, at most {node.maximum} rounds"]
    if isinstance(node, Begin):
        return ["begin"]
    if isinstance(node, Return):
        return ["return"]
    if isinstance(node, Image):
        return [f"{node.kind}, {len(node.data):,} bytes"]
    if isinstance(node, (Join, ScopeEnd)):
        return [node.op.replace("_", " ")]
    constants = [a for a in node.operands if not isinstance(a, Value) and a is not None]
    return [_short(" ".join([node.op, *(repr(c) for c in constants)]))]
