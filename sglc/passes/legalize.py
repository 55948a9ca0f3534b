"""`legalize`: what a backend cannot do is refused before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.backends.base import Capabilities
from runtime.backends.targets import target
from runtime.errors import InvalidRequest
from sglc.errors import PassError
from sglc.ir.core import Module, Value
from sglc.ir.ops import Gen, Image, RoleBegin, RoleEnd, Select
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
            roles: dict[Value, str | None] = {}
            for node in graph.walk():
                states = [v for v in node.uses if v.type == "state"]
                role = roles.get(states[0]) if states else None
                reason = refusal(module, node, able, role)
                if reason is not None:
                    raise PassError(reason, node.at)
                if isinstance(node, (Gen, Select)):
                    report.add("calls checked")
                if isinstance(node, RoleBegin):
                    role = node.role
                elif isinstance(node, RoleEnd):
                    role = None
                roles.update((v, role) for v in node.defs if v.type == "state")
        return module


def refusal(module: Module, node: object, able: Capabilities, role: str | None) -> str | None:
    """What the backend cannot do of this node, in words; None if it can do all of it."""
    if isinstance(node, Select) and not able.score:
        return f"{able.name} gives no log-probabilities to choose by, so a select cannot run on it"
    if isinstance(node, Image) and not able.images:
        return f"{able.name} runs a model that sees no images"
    if not isinstance(node, Gen):
        return None
    if node.constraint is not None:
        kind = module.constraint_of(node.constraint).kind
        if kind not in able.constraints:
            return f"{able.name} cannot enforce a {kind}"
    if node.n is not None and not able.samples:
        return f"{able.name} gives one sample at a time, but n is {node.n}"
    fields = [n for n in node.sampling.__dataclass_fields__ if getattr(node.sampling, n) is not None]
    lacking = [n for n in fields if able.sampling is not None and n not in able.sampling]
    if lacking:
        return f"{able.name} has no {', '.join(lacking)}"
    if able.chat_only and role != "assistant":
        return f"{able.name} only answers as the assistant, and no assistant message is open"
    return None
