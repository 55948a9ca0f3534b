"""A graph as a picture, drawn without another program."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from types import MappingProxyType

from sglc.ir.core import Graph
from sglc.ir.layout import GAP_Y, LINE, MARGIN, PAD, TITLE, Picture, picture_of

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
    are states, dashed ones values; frames are arms and the bodies of loops."""
    picture = picture_of(graph)
    size = f"{picture.width:.0f}", f"{picture.height:.0f}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" '
        f'viewBox="0 0 {size[0]} {size[1]}" font-family="ui-monospace, monospace" font-size="12">',
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#666"/></marker></defs>',
        f'<rect width="{size[0]}" height="{size[1]}" fill="white"/>',
        f'<text x="{MARGIN}" y="{MARGIN}" font-weight="bold" font-size="14">{escape(graph.name)}</text>',
        *_frames(picture),
        *_edges(picture),
        *_boxes(picture),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _frames(picture: Picture) -> list[str]:
    found: list[str] = []
    for frame in picture.frames:
        found.append(
            f'<rect class="frame" x="{frame.x:.0f}" y="{frame.y:.0f}" width="{frame.width:.0f}" '
            f'height="{frame.height:.0f}" rx="6" fill="#b07d1c" fill-opacity="0.05" stroke="#d9b877"/>'
        )
        found.append(
            f'<text x="{frame.x + PAD:.0f}" y="{frame.y + 15:.0f}" fill="#b07d1c">{escape(frame.title)}</text>'
        )
    return found


def _edges(picture: Picture) -> list[str]:
    found: list[str] = []
    for edge in picture.edges:
        one, two = picture.boxes[edge.source], picture.boxes[edge.target]
        top = one.y + one.height
        start = f"M{one.x:.0f} {top:.0f}"
        if one.group.startswith(
            f"{two.group}/"
        ):  # out of a region: down beside the others, where nothing stands
            top = max(two.y - GAP_Y - TITLE, top)
            start += f" V{top:.0f}"
        bend = max((two.y - top) / 2, 12)
        style = ' stroke-dasharray="4 3"' if edge.dashed else ""
        found.append(
            f'<path d="{start} C{one.x:.0f} {top + bend:.0f} {two.x:.0f} {two.y - bend:.0f} '
            f'{two.x:.0f} {two.y:.0f}" fill="none" stroke="#888"{style} marker-end="url(#arrow)"/>'
        )
    return found


def _boxes(picture: Picture) -> list[str]:
    found: list[str] = []
    for box in picture.boxes:
        fill, line = COLOURS[box.kind]
        round_ = 10 if box.kind == "call" else 3
        found.append(
            f'<rect x="{box.x - box.width / 2:.0f}" y="{box.y:.0f}" width="{box.width:.0f}" height="{box.height:.0f}" '
            f'rx="{round_}" fill="{fill}" stroke="{line}"/>'
        )
        for k, text in enumerate(box.lines):
            found.append(
                f'<text x="{box.x:.0f}" y="{box.y + PAD + 11 + k * LINE:.0f}" text-anchor="middle">{escape(text)}</text>'
            )
    return found
