"""Results of regions that nothing asks for, taken away.

Paths meet with all variables that they have in common, also with those that the rest never reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sglc.ir.core import Node, Operand, Region
from sglc.ir.ops import If, Loop


def pruned(nodes: Sequence[Node], live: set[Operand]) -> list[Node]:
    """The nodes without results of regions that nothing asks for; `live` are values that are needed after them."""
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
