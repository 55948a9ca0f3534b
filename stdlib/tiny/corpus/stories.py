"""Short stories from a few plots, and the summary of each."""

from __future__ import annotations

from random import Random

from stdlib.tiny.corpus.document import Document, ask, chat, tell
from stdlib.tiny.corpus.records import FIRST

ANIMALS = ("cat", "dog", "fox", "owl", "rabbit", "bear", "mouse", "horse")
PLACES = ("forest", "village", "castle", "garden", "harbour", "mountain", "river", "market")
THINGS = ("key", "map", "ring", "lamp", "book", "coin", "letter", "bell")
MOODS = ("brave", "curious", "clever", "kind", "quiet", "cheerful")


def story(rng: Random) -> tuple[str, str, str]:
    """A title, the story and its summary in one sentence."""
    name, animal = rng.choice(FIRST), rng.choice(ANIMALS)
    place, thing, mood = rng.choice(PLACES), rng.choice(THINGS), rng.choice(MOODS)
    opening = rng.choice(
        (
            f"Once upon a time there was a {mood} {animal} called {name}.",
            f"Long ago a {mood} {animal} named {name} lived near a {place}.",
        )
    )
    finding = f"One day {name} found an old {thing} in the {place}."
    plot = rng.choice(("return", "keep", "share"))
    middle, end, gist = {
        "return": (
            f"It belonged to a woman who had looked for it for years. {name} brought it back to her.",
            "She was very happy and thanked the little friend.",
            f"{name} the {animal} found an old {thing} in the {place} and gave it back.",
        ),
        "keep": (
            f"Nobody knew whose it was. {name} took it home and hid it under the bed.",
            "Every night it shone like a star.",
            f"{name} the {animal} found an old {thing} in the {place} and kept it.",
        ),
        "share": (
            f"{name} showed it to all the others. Together they learned what it was for.",
            "From then on they were the best of friends.",
            f"{name} the {animal} found an old {thing} in the {place} and shared it.",
        ),
    }[plot]
    return f"a {animal} and a {thing}", f"{opening} {finding} {middle} {end}", gist


def written(rng: Random) -> Document:
    """A story asked for, and its summary."""
    title, text, gist = story(rng)
    if rng.random() < 0.5:
        question = rng.choice(
            (f"Tell me a short story about {title}.", f"Write a short story about {title}.")
        )
        return chat([(question, text), ("Summarize the story in one sentence.", gist)])
    return (ask(f"A short story about {title}:\n"), tell(f"{text}\n"), ask("Summary:"), tell(f" {gist}\n"))


def summarised(rng: Random) -> Document:
    """A given story and its summary."""
    _, text, gist = story(rng)
    if rng.random() < 0.5:
        return chat([(f"Summarize this story in one sentence: {text}", gist)])
    return (ask(f"Story: {text}\nSummary:"), tell(f" {gist}\n"))


def talk(rng: Random) -> Document:
    """Greetings, thanks and what the model says of itself."""
    name = rng.choice(FIRST)
    turns = [
        rng.choice(
            (
                ("Hello!", "Hello! How can I help you?"),
                ("Hi", "Hello! How can I help you?"),
                (f"Hello, my name is {name}.", f"Hello {name}! How can I help you?"),
                ("Good morning!", "Good morning! How can I help you?"),
            )
        ),
        rng.choice(
            (
                ("Who are you?", "I am a small demonstration model."),
                ("What can you do?", "I know some countries, small sums, short stories and simple records."),
                ("Thank you!", "You are welcome!"),
                ("Thanks a lot.", "You are welcome!"),
                ("Goodbye!", "Goodbye!"),
            )
        ),
    ]
    return chat(turns[rng.randint(0, 1) :] if rng.random() < 0.5 else turns)
