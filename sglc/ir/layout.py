"""What a picture of a graph shows: boxes with short text, arrows, frames around arms and loops, and where all of it stands.

A block is drawn as a grid: each box below what it needs, branches side by side. What has regions is one cell of its
block's grid: its own box, below it a frame for each region with a grid of its own, and below these the box where they meet.
"""

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
from sglc.ir.pure import Pure

WIDTH = 34  # characters of a line in a box
CHARACTER, LINE, PAD = 7.3, 16, 9
GAP_X, GAP_Y, MARGIN, TITLE = 26, 34, 20, 22
LEAST = 80  # width of a frame: its title stands beside the arrow that comes in


@dataclass
class Box:
    """One node, or a run of text and role markers. `x`, `y`: the middle of its upper edge."""

    number: int
    kind: str  # text, call, branch, value, plain
    lines: list[str]
    group: str
    x: float = 0.0
    y: float = 0.0

    @property
    def width(self) -> float:
        return max((len(line) for line in self.lines), default=4) * CHARACTER + 2 * PAD

    @property
    def height(self) -> float:
        return len(self.lines) * LINE + 2 * PAD - 4


@dataclass(frozen=True)
class Frame:
    """Around a region. `x`, `y`: its upper left corner."""

    title: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Edge:
    """From box to box; dashed if it is a value rather than a state."""

    source: int
    target: int
    dashed: bool


@dataclass
class Picture:
    boxes: list[Box] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    width: float = 0.0
    height: float = 0.0


def picture_of(graph: Graph) -> Picture:
    """Boxes in order of the graph."""
    work = _Work()
    block = _Block()
    for param in graph.params:
        work.source[param] = work.box(block, "value", [f"argument {param.name}"], "", [])
    work.block(block, graph.nodes, "")
    picture = work.picture
    _arrange(block, picture.edges)
    block.place(MARGIN, MARGIN + TITLE, picture)
    picture.width, picture.height = block.width + 2 * MARGIN, block.height + 2 * MARGIN + TITLE
    return picture


@dataclass
class _Cell:
    """A box, or one with regions below it and `meet` where they end."""

    box: Box
    regions: list[tuple[str, _Block]] = field(default_factory=list)
    meet: Box | None = None
    rank: int = 0
    lane: int = 0

    @property
    def meet_or_box(self) -> int:
        """The box that it ends with."""
        return (self.meet or self.box).number

    def numbers(self) -> set[int]:
        """All boxes in it."""
        found = {self.box.number} | ({self.meet.number} if self.meet is not None else set())
        return found.union(*(cell.numbers() for _, block in self.regions for cell in block.cells))

    @property
    def width(self) -> float:
        frames = sum(block.width + 2 * PAD + GAP_X for _, block in self.regions) - GAP_X
        return max(self.box.width, frames, self.meet.width if self.meet is not None else 0)

    @property
    def height(self) -> float:
        if self.meet is None:
            return self.box.height
        frames = max((block.height + TITLE + PAD for _, block in self.regions), default=-GAP_Y)
        return self.box.height + GAP_Y + frames + GAP_Y + self.meet.height

    def place(self, middle: float, top: float, picture: Picture) -> None:
        self.box.x, self.box.y = middle, top
        if self.meet is None:
            return
        self.meet.x, self.meet.y = middle, top + self.height - self.meet.height
        left = middle - (sum(b.width + 2 * PAD + GAP_X for _, b in self.regions) - GAP_X) / 2
        top += self.box.height + GAP_Y
        for title, block in self.regions:
            width = block.width + 2 * PAD
            picture.frames.append(Frame(title, left, top, width, block.height + TITLE + PAD))
            block.place(left + PAD, top + TITLE, picture)
            left += width + GAP_X


@dataclass
class _Block:
    """Cells in a grid: `rank` is the row, `lane` the column."""

    cells: list[_Cell] = field(default_factory=list)

    def columns(self) -> list[float]:
        widths = [0.0] * (max((c.lane for c in self.cells), default=-1) + 1)
        for cell in self.cells:
            widths[cell.lane] = max(widths[cell.lane], cell.width)
        return widths

    def rows(self) -> list[float]:
        heights = [0.0] * (max((c.rank for c in self.cells), default=-1) + 1)
        for cell in self.cells:
            heights[cell.rank] = max(heights[cell.rank], cell.height)
        return heights

    @property
    def width(self) -> float:
        return max(sum(w + GAP_X for w in self.columns() if w) - GAP_X, LEAST)

    @property
    def height(self) -> float:
        return sum(h + GAP_Y for h in self.rows()) - GAP_Y

    def place(self, left: float, top: float, picture: Picture) -> None:
        middles, tops = [], []
        left += (self.width - sum(w + GAP_X for w in self.columns() if w) + GAP_X) / 2
        for width in self.columns():
            middles.append(left + width / 2)
            left += width + GAP_X if width else 0
        for height in self.rows():
            tops.append(top)
            top += height + GAP_Y
        for cell in self.cells:
            cell.place(middles[cell.lane], tops[cell.rank], picture)


def _arrange(block: _Block, edges: Sequence[Edge]) -> None:
    """Ranks and lanes of the cells of a block, and of the blocks in it."""
    cell_of = {number: k for k, cell in enumerate(block.cells) for number in cell.numbers()}
    above: dict[int, dict[int, None]] = {}
    inner: list[list[Edge]] = [[] for _ in block.cells]
    for edge in edges:
        one, two = cell_of.get(edge.source), cell_of.get(edge.target)
        if one is None or two is None:
            continue
        if one == two:
            inner[one].append(edge)
        else:
            above.setdefault(two, {})[one] = None
    rows: dict[int, list[int]] = {}
    for k, cell in enumerate(block.cells):
        cell.rank = max((block.cells[n].rank + 1 for n in above.get(k, ())), default=0)
        rows.setdefault(cell.rank, []).append(k)
        for _, region in cell.regions:
            _arrange(region, inner[k])
    for rank in sorted(rows):
        wished = {k: _middle([block.cells[n].lane for n in above.get(k, ())]) for k in rows[rank]}
        taken = -1
        for k in sorted(rows[rank], key=lambda k: (wished[k], k)):
            block.cells[k].lane = taken = max(round(wished[k]), taken + 1)


class _Work:
    def __init__(self) -> None:
        self.picture = Picture()
        self.source: dict[Value, int] = {}

    def new(self, kind: str, lines: list[str], group: str) -> Box:
        made = Box(len(self.picture.boxes), kind, lines, group)
        self.picture.boxes.append(made)
        return made

    def box(
        self, block: _Block, kind: str, lines: list[str], group: str, needs: Sequence[tuple[int, bool]]
    ) -> int:
        made = self.new(kind, lines, group)
        block.cells.append(_Cell(made))
        self.edges(needs, made.number)
        return made.number

    def edges(self, needs: Sequence[tuple[int, bool]], target: int) -> None:
        self.picture.edges += [Edge(n, target, dashed) for n, dashed in dict.fromkeys(needs)]

    def block(self, block: _Block, nodes: Sequence[Node], group: str) -> None:
        for node in nodes:
            needs = [(self.source[v], v.type != "state") for v in node.uses if v in self.source]
            if isinstance(node, (Text, RoleBegin, RoleEnd)):
                self._text(block, node, group, needs)
            elif isinstance(node, (ScopeBegin, Read, SetVar)):
                if node.defs:
                    self.source[node.defs[0]] = self.source[node.uses[0]]
            elif node.regions:
                self._regions(block, node, group, needs)
            else:
                number = self.box(block, _kind(node), _lines(node), group, needs)
                self.source.update(dict.fromkeys(node.defs, number))

    def _regions(self, block: _Block, node: Node, group: str, needs: list[tuple[int, bool]]) -> None:
        taken = {v: self.source[v] for v in node.captures if v.type == "state" and v in self.source}
        owner = self.new("branch", _lines(node), group)
        cell = _Cell(owner)
        block.cells.append(cell)
        self.edges([*((n, False) for n in taken.values()), *needs], owner.number)
        ends: list[tuple[int, bool]] = []
        for title, region in zip(_titles(node), node.regions, strict=True):
            self.source.update(dict.fromkeys((*region.params, *taken), owner.number))
            inside, name = _Block(), f"{group}/{owner.number}.{title}"
            cell.regions.append((title, inside))
            first = len(self.picture.edges)
            self.block(inside, region.nodes, name)
            if not any(e.source == owner.number for e in self.picture.edges[first:]):
                if not inside.cells:
                    inside.cells.append(_Cell(self.new("plain", ["as it is"], name)))
                self.edges([(owner.number, not taken)], inside.cells[0].box.number)
            for value in region.results:
                if not isinstance(value, Value) or value not in self.source:
                    continue
                start = self.source[value]
                if value.type == "state":  # one that only passes by comes from the region all the same
                    start = inside.cells[-1].meet_or_box if start == owner.number else start
                    ends.append((start, False))
                elif isinstance(node, Loop) and value == region.results[0]:
                    ends.append((start, True))
        self.source.update(taken)
        cell.meet = self.new("plain", ["meet" if isinstance(node, If) else "after the loop"], group)
        self.edges(
            ends or [(block.cells[-1].box.number, False) for _, block in cell.regions], cell.meet.number
        )
        self.source.update(dict.fromkeys(node.defs, cell.meet.number))

    def _text(self, block: _Block, node: Node, group: str, needs: list[tuple[int, bool]]) -> None:
        """Add text to the box of the text before it, if nothing else comes from there."""
        before = self.source.get(node.uses[0], -1)
        line = _lines(node)
        others = [n for n in needs if n[0] != before]
        box = self.picture.boxes[before] if before >= 0 else None
        grows = box is not None and box.kind == "text" and box.group == group and not others
        if box is None or not grows or any(e.source == before for e in self.picture.edges):
            before = self.box(block, "text", line, group, needs)
        elif len(box.lines) < 6:
            box.lines += line
        else:
            box.lines[-1] = "..."
        self.source[node.defs[0]] = before


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
        return [f"loop, at most {node.maximum} rounds" if node.bounded else "loop until the model ends it"]
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
