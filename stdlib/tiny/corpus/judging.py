"""Short texts with a mark for a named criterion, or a feeling; what decides stands in the text."""

from __future__ import annotations

from random import Random

from stdlib.tiny.corpus.document import Document, Part, ask, chat, continued

# criterion -> mark -> sentences that earn it
CRITERIA: dict[str, dict[int, tuple[str, ...]]] = {
    "clarity": {
        9: ("The main point is easy to find.", "Each sentence says one thing.", "The words are simple."),
        6: ("The main point comes late.", "Some sentences are long.", "A few words are hard."),
        3: ("The main point is hard to find.", "Each sentence says five things.", "The words are confusing."),
    },
    "evidence": {
        9: ("The author names three studies.", "Numbers support the claim.", "Every claim has a source."),
        6: ("The author names one study.", "One number supports the claim.", "Some claims have a source."),
        3: ("The author names no study.", "No numbers support the claim.", "No claim has a source."),
    },
    "style": {
        9: ("The tone is lively.", "The rhythm is pleasant.", "The images are fresh."),
        6: ("The tone is plain.", "The rhythm is even.", "The images are common."),
        3: ("The tone is dull.", "The rhythm is clumsy.", "The images are worn out."),
    },
}
SUBJECTS = ("cities", "schools", "trains", "forests", "computers", "music", "sports", "food")


def essay(rng: Random) -> tuple[str, dict[str, int]]:
    """A text with one or two sentences for each criterion, and the marks that these earn."""
    marks = {name: rng.choice(list(by_mark)) for name, by_mark in CRITERIA.items()}
    sentences = [
        s for name, mark in marks.items() for s in rng.sample(CRITERIA[name][mark], rng.randint(1, 2))
    ]
    rng.shuffle(sentences)
    return f"This essay is about {rng.choice(SUBJECTS)}. " + " ".join(sentences), marks


def judge(rng: Random) -> Document:
    """The text, then marks for criteria in any order."""
    text, marks = essay(rng)
    names = rng.sample(list(marks), rng.randint(1, 3))
    parts: list[Part] = [ask(f"Essay: {text}\n")]
    for name in names:
        parts += continued(rng, f"Score for {name} (1-10):", f"{marks[name]}\n")
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
    return continued(rng, f"Review: {review}\nThe review is", f"{answer}\n")
