"""A graph as a Mermaid flowchart."""

from __future__ import annotations

from sglc.ir.core import Graph
from sglc.ir.layout import Box, picture_of


def to_mermaid(graph: Graph) -> str:
    """States flow from top to bottom; arms of an `if` and bodies of a `loop` are subgraphs."""
    picture = picture_of(graph)
    lines = ["flowchart TD"]
    _boxes(picture.boxes, "", lines, "  ")
    for one, two, dashed in picture.edges:
        lines.append(f"  n{one} {'-.->' if dashed else '-->'} n{two}")
    return "\n".join(lines) + "\n"


def _boxes(boxes: list[Box], group: str, lines: list[str], indent: str) -> None:
    inner = sorted({b.group for b in boxes if b.group.startswith(group) and b.group != group})
    for box in boxes:
        if box.group == group:
            text = "<br/>".join(line.replace('"', "#quot;").replace("<", "#lt;") for line in box.lines)
            shape = (
                ("([", "])") if box.kind == "call" else ("{{", "}}") if box.kind == "branch" else ("[", "]")
            )
            lines.append(f'{indent}n{box.number}{shape[0]}"{text}"{shape[1]}')
    for name in inner:
        if "/" not in name[len(group) :].strip("/"):
            lines.append(
                f'{indent}subgraph g{name.strip("/").replace("/", "_")}["{name.rpartition(".")[2]}"]'
            )
            _boxes([b for b in boxes if b.group.startswith(name)], name, lines, indent + "  ")
            lines.append(f"{indent}end")
