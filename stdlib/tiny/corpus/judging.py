"""Short texts with a mark for a named criterion, or a feeling; what decides stands in the text."""

from __future__ import annotations

from random import Random

from stdlib.tiny.corpus.document import Document, ask, chat, tell

# criterion -> (sentences that speak for it, sentences that speak against it)
CRITERIA: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "clarity": (
        ("The main point is easy to find.", "Each sentence says one thing.", "The words are simple."),
        ("The main point is hard to find.", "Each sentence says five things.", "The words are confusing."),
    ),
    "evidence": (
        ("The author names three studies.", "Numbers support the claim.", "Every claim has a source."),
        ("The author names no study.", "No numbers support the claim.", "No claim has a source."),
    ),
    "style": (
        ("The tone is lively.", "The rhythm is pleasant.", "The images are fresh."),
        ("The tone is dull.", "The rhythm is clumsy.", "The images are worn out."),
    ),
}
SUBJECTS = ("cities", "schools", "trains", "forests", "computers", "music", "sports", "food")


def essay(rng: Random) -> tuple[str, dict[str, int]]:
    """A text and the mark from 1 to 9 that it deserves on each criterion: 9 is three sentences for, 3 is none."""
    marks, sentences = {}, []
    for name, (good, bad) in CRITERIA.items():
        favourable = rng.randint(0, 3)
        order = rng.sample(range(3), 3)
        sentences += [good[k] if i < favourable else bad[k] for i, k in enumerate(order)]
        marks[name] = 3 + 2 * favourable
    rng.shuffle(sentences)
    return f"This essay is about {rng.choice(SUBJECTS)}. " + " ".join(sentences), marks


def judge(rng: Random) -> Document:
    """The text, then marks for criteria in any order."""
    text, marks = essay(rng)
    names = rng.sample(list(marks), rng.randint(1, 3))
    parts = [ask(f"Essay: {text}\n")]
    for name in names:
        parts += [ask(f"Score for {name} (1-10):"), tell(f" {marks[name]}\n")]
    return tuple(parts)


LIKED = (
    "I loved it.",
    "It was wonderful.",
    "The best day of the year.",
    "Great food and kind people.",
    "I will come again.",
)
DISLIKED = (
    "I hated it.",
    "It was terrible.",
    "The worst day of the year.",
    "Bad food and rude people.",
    "I will never come again.",
)
PLACES = ("The hotel", "The film", "The restaurant", "The book", "The concert", "The trip")


def feeling(rng: Random) -> Document:
    """A review and whether it is positive or negative."""
    positive = rng.random() < 0.5
    words = rng.sample(LIKED if positive else DISLIKED, rng.randint(1, 2))
    review = f"{rng.choice(PLACES)} was on my list for long. " + " ".join(words)
    answer = "positive" if positive else "negative"
    if rng.random() < 0.4:
        return chat([(f"Is this review positive or negative? {review}", answer)])
    return (ask(f"Review: {review}\nThe review is"), tell(f" {answer}\n"))
