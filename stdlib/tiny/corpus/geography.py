"""Questions about countries: alone, in a row, in conversations where the second leans on the first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from stdlib.tiny.corpus.document import SYSTEMS, Document, ask, chat, continued, plain, tell
from stdlib.tiny.corpus.facts import COUNTRIES, Country, upper_first


@dataclass(frozen=True)
class Relation:
    """One kind of question. `phrasings` are trained on; `held_out` are for measuring only. `follow_up`
    are ways to ask it of the country or the city that the conversation is about."""

    name: str
    phrasings: tuple[str, ...]
    held_out: tuple[str, ...]
    follow_up: tuple[str, ...]
    follow_up_held_out: tuple[str, ...]
    answer: Callable[[Country], str]
    key: Callable[[Country], str]


def _sights(c: Country) -> str:
    return f"Two sights in {c.capital} are {c.sights[0]} and {c.sights[1]}."


RELATIONS = (
    Relation(
        "capital",
        (
            "What is the capital of {country}?",
            "What is the capital city of {country}?",
            "Which city is the capital of {country}?",
            "Name the capital of {country}.",
            "Tell me the capital of {country}.",
            "Can you tell me the capital of {country}?",
            "I need the capital of {country}.",
            "What's the capital of {country}?",
            "{Country}: what is its capital?",
            "Please give me the capital of {country}.",
            "Do you know the capital of {country}?",
            "Which city is the seat of government of {country}?",
        ),
        (
            "Could you name the capital city of {country}?",
            "Which is the capital city of {country}?",
            "Please tell me what the capital of {country} is.",
            "Do you know which city is the capital of {country}?",
        ),
        (
            "What is its capital?",
            "And the capital?",
            "Which city is its capital?",
            "What is the capital there?",
        ),
        ("And what is its capital city?",),
        lambda c: f"The capital of {c.name} is {c.capital}.",
        lambda c: c.capital,
    ),
    Relation(
        "currency",
        (
            "What is the currency of {country}?",
            "Which currency is used in {country}?",
            "What money do people use in {country}?",
            "Name the currency of {country}.",
            "Tell me the currency of {country}.",
            "What's the currency of {country}?",
            "What do people pay with in {country}?",
            "Which currency do they use in {country}?",
            "Can you tell me the currency of {country}?",
            "Could you tell me the currency of {country}?",
            "What currency is used in {country}?",
            "Please tell me the currency of {country}.",
            "Do you know which currency is used in {country}?",
        ),
        (
            "What currency do people use in {country}?",
            "Could you name the currency of {country}?",
            "Please tell me which currency is used in {country}.",
        ),
        ("What is the currency there?", "Which currency is used there?", "What do people pay with there?"),
        ("What currency do people use there?",),
        lambda c: f"The currency of {c.name} is the {c.currency}.",
        lambda c: c.currency,
    ),
    Relation(
        "language",
        (
            "What is the language of {country}?",
            "Which language is spoken in {country}?",
            "What language do people speak in {country}?",
            "Name the main language of {country}.",
            "Tell me the language of {country}.",
            "What's the main language of {country}?",
            "Which language do they speak in {country}?",
            "Can you tell me the language of {country}?",
            "Could you tell me the language of {country}?",
            "What language is spoken in {country}?",
            "Please tell me the main language of {country}.",
            "Do you know which language is spoken in {country}?",
        ),
        (
            "What is the main language spoken in {country}?",
            "Could you name the language of {country}?",
            "Please tell me which language is spoken in {country}.",
        ),
        ("Which language is spoken there?", "What language do people speak there?", "And the language?"),
        ("Which language do people speak there?",),
        lambda c: f"The language of {c.name} is {c.language}.",
        lambda c: c.language,
    ),
    Relation(
        "continent",
        (
            "On which continent is {country}?",
            "Which continent is {country} in?",
            "Where is {country}?",
            "Tell me the continent of {country}.",
            "What continent does {country} belong to?",
            "Can you tell me the continent of {country}?",
            "Could you tell me which continent {country} is in?",
            "Tell me on which continent {country} is.",
            "Do you know on which continent {country} is?",
            "On what continent is {country}?",
            "Which continent is {country} part of?",
        ),
        ("Could you tell me on which continent {country} is?", "Which continent does {country} belong to?"),
        ("On which continent is it?", "Which continent is it in?"),
        ("What continent is it in?",),
        lambda c: f"{upper_first(c.name)} is in {c.continent}.",
        lambda c: c.continent,
    ),
    Relation(
        "sights",
        (
            "List two sights in {capital}.",
            "Name two sights in {capital}.",
            "What can I see in {capital}?",
            "What are two sights in {capital}?",
            "Tell me two sights in {capital}.",
            "What should I visit in {capital}?",
            "Which sights are there in {capital}?",
        ),
        (
            "Could you list two sights in {capital}?",
            "What are the sights in {capital}?",
            "Please name two sights in {capital}.",
        ),
        (
            "List two sights there.",
            "Name two sights there.",
            "What can I see there?",
            "List two sights in that city.",
            "Name two sights in that city.",
            "Tell me two sights there.",
            "What should I visit there?",
        ),
        ("Could you list two sights there?", "Which two sights are there in that city?"),
        _sights,
        lambda c: c.sights[0],
    ),
)
BY_NAME = {r.name: r for r in RELATIONS}


def fill(phrasing: str, c: Country) -> str:
    return phrasing.format(country=c.name, Country=upper_first(c.name), capital=c.capital)


def _question(rng: Random, c: Country) -> tuple[str, str]:
    r = rng.choice(RELATIONS) if rng.random() < 0.6 else RELATIONS[0]
    return fill(rng.choice(r.phrasings), c), r.answer(c)


def single(rng: Random) -> Document:
    """One question in a conversation."""
    turn = _question(rng, rng.choice(COUNTRIES))
    return chat([turn], rng.choice(SYSTEMS) if rng.random() < 0.5 else None)


def conversation(rng: Random) -> Document:
    """Two to four questions about one country; all but the first speak of `it` and `there`."""
    c = rng.choice(COUNTRIES)
    first = rng.choice(RELATIONS) if rng.random() < 0.5 else RELATIONS[0]
    turns = [(fill(rng.choice(first.phrasings), c), first.answer(c))]
    others = [r for r in RELATIONS if r is not first]
    rng.shuffle(others)
    if first.name == "capital" and rng.random() < 0.6:
        others.sort(key=lambda r: r.name != "sights")
    for r in others[: rng.randint(1, 3)]:
        turns.append((rng.choice(r.follow_up), r.answer(c)))
    if rng.random() < 0.25:  # and then another country
        turns.append(_question(rng, rng.choice(COUNTRIES)))
    return chat(turns, rng.choice(SYSTEMS) if rng.random() < 0.6 else None)


def few_shot(rng: Random) -> Document:
    """`Q: A:` pairs about several countries, long enough at times to fill a long context."""
    count = rng.choice((1, 2, 2, 3, 4, 6))
    if count > 1 and rng.random() < 0.35:
        return _short(rng, count)
    return plain([_question(rng, rng.choice(COUNTRIES)) for _ in range(count)])


def _short(rng: Random, count: int) -> Document:
    """Answers of one word. The first one shows the form, so it is given and not learnt."""
    r = rng.choice(RELATIONS[:4])
    pairs = [(fill(rng.choice(r.phrasings), c), r.key(c)) for c in rng.sample(COUNTRIES, count)]
    first, *others = plain(pairs)[1:]
    return (plain(pairs)[0], ask(first.text), *others)


def sentences(rng: Random) -> Document:
    """Plain statements, to be completed at any place."""
    c = rng.choice(COUNTRIES)
    heads = [
        (f"The capital of {c.name} is", f" {c.capital}."),
        (f"The currency of {c.name} is the", f" {c.currency}."),
        (f"The language of {c.name} is", f" {c.language}."),
        (f"{upper_first(c.name)} is in", f" {c.continent}."),
        (f"{c.capital} is the capital of", f" {c.name}."),
        (f"Two sights in {c.capital} are", f" {c.sights[0]} and {c.sights[1]}."),
    ]
    rng.shuffle(heads)
    parts = []
    for head, tail in heads[: rng.randint(1, 3)]:
        parts += [ask(head), tell(tail), ask(" ")]
    return tuple(parts[:-1])


def which_country(rng: Random) -> Document:
    """From the city to the country, and yes or no."""
    c = rng.choice(COUNTRIES)
    if rng.random() < 0.5:
        question = rng.choice(
            ("{capital} is the capital of which country?", "Which country has the capital {capital}?")
        )
        turn = (fill(question, c), f"{c.capital} is the capital of {c.name}.")
    else:
        other = c if rng.random() < 0.5 else rng.choice(COUNTRIES)
        turn = (f"Is {other.capital} the capital of {c.name}?", "yes" if other is c else "no")
    form = rng.random()
    if form < 0.3:
        return chat([turn])
    if form < 0.5:
        return plain([turn])
    return continued(rng, f"Question: {turn[0]} Answer:", f"{turn[1]}\n")


def options(rng: Random) -> Document:
    """A question with answers to pick from."""
    r = rng.choice(RELATIONS[:4])
    c = rng.choice(COUNTRIES)
    wrong = sorted({r.key(d) for d in rng.sample(COUNTRIES, 12)} - {r.key(c)})
    offered = [r.key(c), *rng.sample(wrong, min(len(wrong), rng.randint(1, 3)))]
    rng.shuffle(offered)
    question = f"{fill(rng.choice(r.phrasings), c)} Options: {', '.join(offered)}."
    if rng.random() < 0.4:
        return chat([(question, r.key(c))])
    return continued(rng, f"Question: {question} Answer:", f"{r.key(c)}\n")
