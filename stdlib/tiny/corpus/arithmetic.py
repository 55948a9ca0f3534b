"""Sums and differences of numbers up to 99. One operand pair in twelve is never trained on."""

from __future__ import annotations

from random import Random
from zlib import crc32

from stdlib.tiny.corpus.document import Document, chat, continued, plain, tell

PHRASINGS = (
    "What is {e}?",
    "Calculate {e}.",
    "How much is {e}?",
    "Compute {e}.",
    "{e} = ?",
    "Tell me {e}.",
    "What does {e} make?",
    "Work out {e}.",
    "Please work out {e}.",
    "Please compute {e}.",
    "Can you compute {e}?",
    "Can you tell me {e}?",
    "Do you know what {e} makes?",
)
HELD_OUT_PHRASINGS = ("Please calculate {e}.", "Can you tell me what {e} is?")


def held_out(a: int, sign: str, b: int) -> bool:
    """Whether this pair is kept for measuring. Only pairs of two-digit numbers are; a + b goes with b + a."""
    if sign == "+" and a > b:
        a, b = b, a
    return a >= 10 and b >= 10 and crc32(f"{a}{sign}{b}".encode()) % 12 == 0


def value(a: int, sign: str, b: int) -> int:
    return a + b if sign == "+" else a - b


def operands(rng: Random) -> tuple[int, str, int]:
    """A pair that may be trained on; the difference is never negative."""
    while True:
        a, b = (
            (rng.randint(10, 99), rng.randint(10, 99))
            if rng.random() < 0.8
            else (rng.randint(0, 99), rng.randint(0, 20))
        )
        sign = rng.choice("+-")
        if sign == "-" and a < b:
            a, b = b, a
        if not held_out(a, sign, b):
            return a, sign, b


def drill(rng: Random) -> Document:
    """A column of equations: the densest practice."""
    parts = []
    for _ in range(rng.randint(4, 12)):
        a, sign, b = operands(rng)
        parts += [*continued(rng, f"{a} {sign} {b} =", str(value(a, sign, b))), tell("\n")]
    return tuple(parts)


def question(rng: Random) -> tuple[str, str]:
    a, sign, b = operands(rng)
    e = f"{a} {sign} {b}"
    return rng.choice(PHRASINGS).format(e=e), f"{e} = {value(a, sign, b)}"


def asked(rng: Random) -> Document:
    turns = [question(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
    return (
        chat(turns, "You are a helpful assistant." if rng.random() < 0.3 else None)
        if rng.random() < 0.5
        else plain(turns)
    )
