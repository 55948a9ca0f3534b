"""`legalize`: what a backend cannot do as written is said in another way, or refused before anything is sent."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from runtime.backends.base import Capabilities
from runtime.backends.targets import target
from runtime.errors import InvalidRequest
from sglc.errors import PassError
from sglc.ir.analysis import open_messages
from sglc.ir.core import Module
from sglc.ir.lacks import of_node, of_place
from sglc.ir.ops import Gen, Select
from sglc.ir.restate import restated
from sglc.passes.base import Pass, Report


@dataclass(frozen=True)
class Legalize(Pass, name="legalize"):
    """Check every node against the capabilities of `backend`; without one, nothing is done.

    Licence: the same languages and calls. A constraint becomes one of a kind that the backend enforces if that says exactly
    the same: a regex with few texts is a list of choices. Raises PassError with the program's file and line for the first
    node that the backend would have to drop something of: a constraint, a select, an image, a sampling field, a gen outside of
    the assistant's message. A run does the same with each call, so compiled or not, a program is told the same.
    """

    backend: str = ""

    def run_module(self, module: Module, report: Report) -> Module:
        if not self.backend:
            return module
        try:
            able = target(self.backend)
        except InvalidRequest as error:
            raise PassError(f"legalize{{backend={self.backend}}}: {error.message}") from None
        for graph in module.graphs.values():
            opened = open_messages(graph)
            for node in graph.walk():
                lacking = list(of_node(able, module, node))
                if isinstance(node, Gen):
                    lacking += of_place(able, opened.get(node.state, (None,)))
                if lacking:
                    raise PassError(str(lacking[0]), node.at)
                if isinstance(node, (Gen, Select)):
                    report.add("calls checked")
                if isinstance(node, Gen) and node.n is not None and not able.samples:
                    report.add("samples drawn by calls of their own", node.n)
        return _restated(module, able, report)


def _restated(module: Module, able: Capabilities, report: Report) -> Module:
    """The module with its constraints as the backend enforces them; those that no gen has stay."""
    changed = {n: restated(able, c) or c for n, c in module.constraints.items()}
    new = [name for name, constraint in changed.items() if constraint is not module.constraints[name]]
    if not new:
        return module
    report.add("constraints restated", len(new))
    facts = {name: told for name, told in module.facts.items() if name not in new}
    return dataclasses.replace(module, constraints=changed, facts=facts)
