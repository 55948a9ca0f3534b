"""Which tool answers a question, and what to hand to it."""

from __future__ import annotations

from random import Random

from stdlib.tiny.corpus.arithmetic import PHRASINGS, operands
from stdlib.tiny.corpus.document import Document, chat, continued
from stdlib.tiny.corpus.facts import COUNTRIES, Country
from stdlib.tiny.corpus.geography import BY_NAME, fill

TOOLS = ("calculator", "search engine")
HEADS = ("The math expression is", "The key word to search is")
KEYWORDS = {
    "capital": "capital of {country}",
    "currency": "currency of {country}",
    "language": "language of {country}",
    "sights": "sights in {capital}",
}
LEADS = (
    "To answer this question: {q} I need to use a",
    "Question: {q} To answer it I need a",
    "{q} The right tool is a",
    "To answer a question: {q}. I need to use a",
    "To answer this question: {q}. I need to use a",
    "To answer my question: {q} I need to use a",
)
HELD_OUT_LEADS = ("To answer the question: {q} I need to use a",)


def arithmetic_question(rng: Random) -> tuple[str, str]:
    """A question for the calculator, and the expression."""
    a, sign, b = operands(rng)
    return rng.choice(PHRASINGS).format(e=f"{a} {sign} {b}"), f"{a} {sign} {b}"


def search_question(rng: Random, c: Country) -> tuple[str, str]:
    """A question for the search engine, and its key words."""
    name = rng.choice(list(KEYWORDS))
    return fill(rng.choice(BY_NAME[name].phrasings), c), fill(KEYWORDS[name], c)


def tool_use(rng: Random) -> Document:
    """The form of programs that branch on the chosen tool."""
    if rng.random() < 0.5:
        tool, (question, argument) = TOOLS[0], arithmetic_question(rng)
    else:
        tool, (question, argument) = TOOLS[1], search_question(rng, rng.choice(COUNTRIES))
    lead = rng.choice(LEADS).format(q=question)
    head = HEADS[TOOLS.index(tool)]
    return (
        *continued(rng, lead, f"{tool}."),
        *continued(rng, f" {head}", f"{argument}.\n"),
    )


def tool_chat(rng: Random) -> Document:
    """The same in a conversation."""
    calculator = rng.random() < 0.5
    question, argument = (
        arithmetic_question(rng) if calculator else search_question(rng, rng.choice(COUNTRIES))
    )
    first = rng.choice(
        (
            f"Which tool do you need to answer this question: {question}",
            f"Choose a tool for this question: {question}",
        )
    )
    second = "What is the expression?" if calculator else "What are the key words?"
    system = "You have two tools: a calculator and a search engine."
    return chat(
        [(first, TOOLS[0] if calculator else TOOLS[1]), (second, argument)],
        system if rng.random() < 0.7 else None,
    )
