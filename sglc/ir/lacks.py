"""What a backend lacks for one operation, and what to do about it: decided here, told by whoever finds it.

`legalize` and `sglc check` ask before a program runs, execution asks before each call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from runtime.backends.base import Capabilities
from sglc.ir.analysis import Opened
from sglc.ir.core import Module, Node
from sglc.ir.ops import Gen, Image, Select
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


def of_gen(
    able: Capabilities, constraint: str | None, fields: frozenset[str], n: int | None
) -> Iterator[Lack]:
    """`constraint` is the kind of the gen's constraint; `fields` are the names of the sampling fields that are given."""
    if constraint is not None and constraint not in able.constraints:
        enforced = ", ".join(sorted(able.constraints)) or "no constraints"
        yield Lack(
            f"{able.name} cannot enforce a {constraint} (it enforces {enforced})",
            "leave the constraint out and check the answer yourself, or run on a backend that enforces it",
        )
    if n is not None and not able.samples:
        yield Lack(
            f"{able.name} gives one sample at a time, but n is {n}",
            "write gen in the branches of a fork",
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
        kind = module.constraint_of(node.constraint).kind if node.constraint is not None else None
        yield from of_gen(able, kind, given(node.sampling), node.n)


def given(sampling: SamplingFields) -> frozenset[str]:
    """The names of the fields that are not None."""
    return frozenset(n for n in sampling.__dataclass_fields__ if getattr(sampling, n) is not None)
