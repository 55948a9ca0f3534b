"""What a backend lacks for one operation, and what to do about it: decided here, told by whoever finds it.

`legalize` and `sglc check` ask before a program runs, execution asks before each call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from runtime.api import Constraint
from runtime.backends.base import Capabilities
from sglc.ir.analysis import Opened
from sglc.ir.core import Module, Node
from sglc.ir.ops import Gen, Image, Select
from sglc.ir.restate import MOST, restated
from sglc.ir.specs import SamplingFields

LOGPROB_FIELDS = frozenset(
    {"return_logprob", "logprob_start_len", "top_logprobs_num", "return_text_in_logprobs"}
)


@dataclass(frozen=True, slots=True)
class Lack:
    """`message` says what the backend cannot do, `remedy` what the user can."""

    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}"


def of_select(able: Capabilities) -> Iterator[Lack]:
    if not able.score:
        yield Lack(
            f"{able.name} gives no log-probabilities to choose by",
            "let it write the answer with gen and compare, or run on a backend that scores choices",
        )


def of_image(able: Capabilities) -> Iterator[Lack]:
    if not able.images:
        yield Lack(f"{able.name} runs a model that sees no images", "use a vision model")


def of_gen(able: Capabilities, constraint: Constraint | None, fields: frozenset[str]) -> Iterator[Lack]:
    """`fields` are the names of the sampling fields that are given."""
    if (
        constraint is not None
        and constraint.kind not in able.constraints
        and restated(able, constraint) is None
    ):
        enforced = ", ".join(sorted(able.constraints)) or "no constraints"
        few = f"; a regex with at most {MOST} texts is enforced too" if "choices" in able.constraints else ""
        yield Lack(
            f"{able.name} cannot enforce a {constraint.kind} (it enforces {enforced}{few})",
            "leave the constraint out and check the answer yourself, or run on a backend that enforces it",
        )
    if fields & LOGPROB_FIELDS and not able.logprobs:
        yield Lack(f"{able.name} gives no log-probabilities", "leave return_logprob out for this backend")
    missing = [] if able.sampling is None else sorted(fields - able.sampling - LOGPROB_FIELDS)
    if missing:
        yield Lack(
            f"{able.name} has no {', '.join(missing)}", "leave it out, or run on a backend that has it"
        )


def of_place(able: Capabilities, opened: Opened) -> Iterator[Lack]:
    """A gen where `opened` messages may be open."""
    if able.chat_only and any(begin is None or begin.role != "assistant" for begin in opened):
        yield Lack(
            f"{able.name} only answers as the assistant, and no assistant message is open here",
            "write sgl.user(...) and sgl.assistant(sgl.gen(...))",
        )


def of_begun(able: Capabilities, begun: bool) -> Iterator[Lack]:
    """A gen in an assistant's message that holds text already, if `begun`."""
    if begun and able.chat_only and not able.continues:
        yield Lack(
            f"{able.name} answers with whole messages, and this one holds text already",
            "write each gen in a message of its own, or let the model fill in the whole message: "
            "@function(num_api_spec_tokens=...)",
        )


def of_node(able: Capabilities, module: Module, node: Node) -> Iterator[Lack]:
    """All that is lacking for a node, its place apart."""
    if isinstance(node, Select):
        yield from of_select(able)
    elif isinstance(node, Image):
        yield from of_image(able)
    elif isinstance(node, Gen):
        constraint = module.constraint_of(node.constraint) if node.constraint is not None else None
        yield from of_gen(able, constraint, given(node.sampling))


def given(sampling: SamplingFields) -> frozenset[str]:
    """The names of the fields that are not None."""
    return frozenset(n for n in sampling.__dataclass_fields__ if getattr(sampling, n) is not None)
