"""What backends can do, by name, before one is opened: programs are checked and legalised against it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from runtime.backends.base import Capabilities
from runtime.errors import InvalidRequest

_CHAT_FIELDS = frozenset(
    {"temperature", "top_p", "max_tokens", "stop", "frequency_penalty", "presence_penalty", "seed"}
)
OWN_CONSTRAINTS = frozenset({"regex", "json_schema", "ebnf", "structural_tag"})

TARGETS: Mapping[str, Capabilities] = MappingProxyType(
    {
        "engine": Capabilities(
            name="engine",
            score=True,
            prefill=True,
            tokens=True,
            constraints=OWN_CONSTRAINTS,
            samples=True,
            logprobs=True,
        ),
        "scripted": Capabilities(
            name="scripted",
            score=True,
            prefill=True,
            constraints=OWN_CONSTRAINTS,
            samples=True,
            logprobs=True,
        ),
        "openai": Capabilities(
            name="openai",
            constraints=frozenset({"json_schema", "choices"}),
            samples=True,
            images=True,
            sampling=_CHAT_FIELDS,
            chat_only=True,
            continues=False,
        ),
        "anthropic": Capabilities(
            name="anthropic",
            images=True,
            sampling=frozenset({"temperature", "top_p", "top_k", "max_tokens", "stop"}),
            chat_only=True,
        ),
        "vertex": Capabilities(
            name="vertex",
            images=True,
            samples=True,
            sampling=_CHAT_FIELDS | {"top_k"},
            chat_only=True,
            continues=False,
        ),
        "litellm": Capabilities(
            name="litellm", images=True, samples=True, sampling=_CHAT_FIELDS, chat_only=True, continues=False
        ),
    }
)


def target(name: str) -> Capabilities:
    """Raises InvalidRequest for a name that is not known."""
    if name not in TARGETS:
        near = difflib.get_close_matches(name, TARGETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InvalidRequest(
            f"there is no backend {name!r}, only {', '.join(TARGETS)}{hint}", param="backend"
        )
    return TARGETS[name]
