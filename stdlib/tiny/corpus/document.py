"""A training text and which parts of it are learnt.

What a user would write (`ask`) gives context only; what the model is to write (`tell`) is what the loss
is taken over. Half of the arithmetic of training is saved by that, and facts are learnt sooner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

END = "<|endoftext|>"
OPEN, CLOSE = "<|im_start|>", "<|im_end|>"
SPECIALS_TEXT = (END, OPEN, CLOSE)


@dataclass(frozen=True)
class Part:
    text: str
    learn: bool


Document = tuple[Part, ...]
Topic = Callable[[Random], Document]


def ask(text: str) -> Part:
    return Part(text, learn=False)


def tell(text: str) -> Part:
    return Part(text, learn=True)


def text_of(document: Document) -> str:
    return "".join(part.text for part in document)


SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer in one sentence.",
    "You are a friendly guide.",
    "Answer briefly.",
)


def chat(turns: list[tuple[str, str]], system: str | None = None) -> Document:
    """A conversation in ChatML: the questions are context, the answers (with their end mark) are learnt."""
    parts = [ask(f"{OPEN}system\n{system}{CLOSE}\n")] if system else []
    for question, answer in turns:
        parts.append(ask(f"{OPEN}user\n{question}{CLOSE}\n{OPEN}assistant\n"))
        parts.append(tell(f"{answer}{CLOSE}"))
        parts.append(ask("\n"))
    return tuple(parts)


def continued(rng: Random, lead: str, answer: str) -> tuple[Part, Part]:
    """`lead`, then `answer`; the blank between them stands at the end of the lead half of the time.

    Programs write both `... I need to use a` and `... I need to use a `, which are different tokens.
    """
    return (ask(lead + " "), tell(answer)) if rng.random() < 0.5 else (ask(lead), tell(" " + answer))


def plain(pairs: list[tuple[str, str]]) -> Document:
    """The form `Q: ...` newline `A: ...`."""
    parts = []
    for question, answer in pairs:
        parts.append(ask(f"Q: {question}\nA:"))
        parts.append(tell(f" {answer}\n"))
    return tuple(parts)
