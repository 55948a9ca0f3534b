"""A graph as a Mermaid flowchart."""

from __future__ import annotations

from sglc.ir.core import Graph
from sglc.ir.layout import Box, picture_of


def to_mermaid(graph: Graph) -> str:
    """States flow from top to bottom; arms of an `if` and bodies of a `loop` are subgraphs."""
    picture = picture_of(graph)
    groups = {name: k for k, name in enumerate(dict.fromkeys(b.group for b in picture.boxes))}
    lines = ["flowchart TD"]
    _boxes(picture.boxes, "", groups, lines, "  ")
    for edge in picture.edges:
        lines.append(f"  n{edge.source} {'-.->' if edge.dashed else '-->'} n{edge.target}")
    return "\n".join(lines) + "\n"


def _boxes(boxes: list[Box], group: str, groups: dict[str, int], lines: list[str], indent: str) -> None:
    for box in boxes:
        if box.group == group:
            text = "<br/>".join(_escaped(line) for line in box.lines)
            shape = (
                ("([", "])") if box.kind == "call" else ("{{", "}}") if box.kind == "branch" else ("[", "]")
            )
            lines.append(f'{indent}n{box.number}{shape[0]}"{text}"{shape[1]}')
    for name, number in groups.items():
        if name.startswith(f"{group}/") and "/" not in name[len(group) + 1 :]:
            lines.append(f'{indent}subgraph g{number}["{name.rpartition(".")[2]}"]')
            _boxes([b for b in boxes if b.group.startswith(name)], name, groups, lines, indent + "  ")
            lines.append(f"{indent}end")


def _escaped(text: str) -> str:
    """As entities, where Mermaid would read a mark of its own."""
    return text.replace("#", "#35;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")
