"""Where a model's reasoning ends and its answer begins, by the tags that its family writes around the reasoning."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """`opened`: the model reasons from its first token on, since the prompt holds the opening tag or the model omits it."""

    begin: str = "<think>"
    end: str = "</think>"
    opened: bool = False


REASONING: Mapping[str, ReasoningTags] = MappingProxyType(
    {
        "deepseek-r1": ReasoningTags(opened=True),
        "deepseek-v3": ReasoningTags(),
        "qwen3": ReasoningTags(),
        "qwen3-thinking": ReasoningTags(opened=True),
        "glm45": ReasoningTags(),
        "kimi": ReasoningTags("◁think▷", "◁/think▷"),
        "step3": ReasoningTags(opened=True),
    }
)


def reasoning_tags(model_type: str) -> ReasoningTags:
    """Raises ValueError with the near miss for a family that is not known."""
    found = REASONING.get(model_type.lower())
    if found is None:
        near = difflib.get_close_matches(model_type.lower(), REASONING, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"no reasoning tags are known for {model_type!r}, only for {', '.join(REASONING)}{hint}"
        )
    return found


def split_reasoning(text: str, model_type: str) -> list[str]:
    """[reasoning, answer], both stripped. Text that ends before the reasoning does is all reasoning."""
    tags = reasoning_tags(model_type)
    before, begun, after = text.partition(tags.begin)
    if not begun:
        if not tags.opened and tags.end not in text:
            return ["", text]
        before, after = "", text
    reasoning, _, answer = after.partition(tags.end)
    return [reasoning.strip(), f"{before}{answer}".strip()]
