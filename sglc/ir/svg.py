"""A graph as a picture, drawn without another program: boxes by rank, branches side by side."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from types import MappingProxyType

from sglc.ir.core import Graph
from sglc.ir.layout import Box, picture_of

CHARACTER, LINE, PAD, GAP_X, GAP_Y, MARGIN = 7.3, 16, 9, 26, 34, 20
COLOURS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "text": ("#f4f4f2", "#9a9a94"),
        "call": ("#dcebfb", "#2f6fb0"),
        "branch": ("#fdeecf", "#b07d1c"),
        "value": ("#e9f5e6", "#4d8a3f"),
        "plain": ("#ffffff", "#777777"),
    }
)


def to_svg(graph: Graph) -> str:
    """Text that is appended is grey, calls of the model blue, forks, joins and conditions yellow, values green. Solid lines
    are states, dashed ones values."""
    picture = picture_of(graph)
    wide = max((_width(b) for b in picture.boxes), default=100.0) + GAP_X
    tops: dict[int, float] = {}
    top = float(MARGIN + 24)
    for rank in range(max((b.rank for b in picture.boxes), default=0) + 1):
        tops[rank] = top
        top += max((_height(b) for b in picture.boxes if b.rank == rank), default=0) + GAP_Y
    lanes = max((b.lane for b in picture.boxes), default=0) + 1
    width, height = MARGIN * 2 + lanes * wide, top - GAP_Y + MARGIN
    where = {b.number: (MARGIN + b.lane * wide + wide / 2, tops[b.rank], b) for b in picture.boxes}
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="ui-monospace, monospace" font-size="12">',
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#666"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>',
        f'<text x="{MARGIN}" y="{MARGIN}" font-weight="bold" font-size="14">{escape(graph.name)}</text>',
    ]
    for one, two, dashed in picture.edges:
        x, y, box = where[one]
        to_x, to_y, _ = where[two]
        y += _height(box)
        style = ' stroke-dasharray="4 3"' if dashed else ""
        bend = max((to_y - y) / 2, 12)
        lines.append(
            f'<path d="M{x:.0f} {y:.0f} C{x:.0f} {y + bend:.0f} {to_x:.0f} {to_y - bend:.0f} {to_x:.0f} {to_y:.0f}" '
            f'fill="none" stroke="#888"{style} marker-end="url(#arrow)"/>'
        )
        inner = where[two][2].group
        if box.kind == "branch" and inner != box.group and inner.startswith(box.group):
            told = inner.rpartition(".")[2]
            lines.append(f'<text x="{to_x + 6:.0f}" y="{to_y - 8:.0f}" fill="#b07d1c">{escape(told)}</text>')
    for x, y, box in where.values():
        fill, line = COLOURS[box.kind]
        w, h = _width(box), _height(box)
        round_ = 10 if box.kind == "call" else 3
        lines.append(
            f'<rect x="{x - w / 2:.0f}" y="{y:.0f}" width="{w:.0f}" height="{h:.0f}" rx="{round_}" fill="{fill}" '
            f'stroke="{line}"/>'
        )
        for k, text in enumerate(box.lines):
            lines.append(
                f'<text x="{x:.0f}" y="{y + PAD + 11 + k * LINE:.0f}" text-anchor="middle">{escape(text)}</text>'
            )
    return "\n".join([*lines, "</svg>"]) + "\n"


def _width(box: Box) -> float:
    return max((len(line) for line in box.lines), default=4) * CHARACTER + 2 * PAD


def _height(box: Box) -> float:
    return len(box.lines) * LINE + 2 * PAD - 4
