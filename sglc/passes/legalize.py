"""`legalize`: what a backend cannot do is refused before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.backends.targets import target
from runtime.errors import InvalidRequest
from sglc.errors import PassError
from sglc.ir.analysis import open_messages
from sglc.ir.core import Module
from sglc.ir.lacks import of_node, of_place
from sglc.ir.ops import Gen, Select
from sglc.passes.base import Pass, Report


@dataclass(frozen=True)
class Legalize(Pass, name="legalize"):
    """Check every node against the capabilities of `backend`; without one, nothing is done.

    Licence: changes nothing. Raises PassError with the program's file and line for the first node that the backend would have
    to drop something of: a constraint, a select, an image, a sampling field, a gen outside of the assistant's message.
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
        return module
