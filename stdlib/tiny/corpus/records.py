"""JSON records of people, cities and fantasy characters, and text about them."""

from __future__ import annotations

import json
from random import Random
from zlib import crc32

from stdlib.tiny.corpus.document import Document, ask, chat, tell
from stdlib.tiny.corpus.facts import COUNTRIES

FIRST = (
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Henry",
    "Iris",
    "Jack",
    "Kate",
    "Leo",
    "Mia",
    "Noah",
    "Olga",
    "Paul",
    "Rosa",
    "Sam",
    "Tina",
    "Victor",
    "Laura",
    "Martin",
    "Nina",
    "Oscar",
    "Peter",
    "Sarah",
    "Thomas",
    "Vera",
    "William",
    "Zoe",
)
LAST = (
    "Adams",
    "Baker",
    "Carter",
    "Dixon",
    "Evans",
    "Fisher",
    "Green",
    "Hill",
    "Irving",
    "Jones",
    "King",
    "Lewis",
    "Moore",
    "Nelson",
    "Owens",
    "Parker",
    "Quinn",
    "Reed",
    "Scott",
    "Turner",
    "Walker",
    "Young",
    "Stone",
    "Wood",
)
JOBS = (
    "teacher",
    "doctor",
    "baker",
    "farmer",
    "painter",
    "pilot",
    "nurse",
    "writer",
    "cook",
    "gardener",
    "driver",
    "singer",
)
FANTASY_FIRST = (
    "Albus",
    "Brom",
    "Cedric",
    "Draco",
    "Elara",
    "Frodo",
    "Gwen",
    "Harry",
    "Ismira",
    "Luna",
    "Merlin",
    "Neville",
    "Orin",
    "Ron",
    "Selene",
    "Thorin",
)
FANTASY_LAST = (
    "Ashwood",
    "Brightmoon",
    "Darkwater",
    "Evenstar",
    "Frostbeard",
    "Greycloak",
    "Ironfoot",
    "Lightfoot",
    "Potter",
    "Stone",
    "Stormborn",
    "Thornhill",
)
KINDS = ("wizard", "elf", "dwarf", "knight", "witch", "ranger")
HOUSES = ("Lion", "Eagle", "Badger", "Snake")
WEAPONS = {
    "wizard": "staff",
    "elf": "bow",
    "dwarf": "axe",
    "knight": "sword",
    "witch": "wand",
    "ranger": "dagger",
}

PERSON_KEYS = ("name", "age", "job", "city")
CITY_KEYS = ("name", "country", "language", "currency")
CHARACTER_KEYS = ("name", "kind", "house", "weapon", "age")

LEADS = (
    "Fill in a JSON record about {what}.\n",
    "Write a JSON record about {what}.\n",
    "Give me a JSON record about {what}.\n",
    "JSON record about {what}:\n",
)
HELD_OUT_LEADS = ("Please write a JSON record about {what}.\n", "Fill in the JSON record about {what}.\n")


SYLLABLES = (
    "al",
    "bar",
    "cor",
    "den",
    "el",
    "fin",
    "gal",
    "hol",
    "is",
    "jor",
    "kel",
    "lor",
    "mar",
    "nor",
    "os",
    "per",
)
ENDINGS = ("a", "an", "bus", "dor", "eth", "ic", "ius", "on", "or", "wyn")
CHARACTER_LEADS = (
    "{name} is a character. Fill in the record.\n",
    "{name} is a character in a fantasy story. Fill in the record.\n",
    "Fill in a record about the character {name}.\n",
)


def held_out(first: str, last: str) -> bool:
    """Whether nobody in the corpus has this name; one pair in eight is kept for measuring."""
    return crc32(f"{first} {last}".encode()) % 8 == 0


def invented(rng: Random) -> str:
    """A name that was never heard, so that names are copied and not recalled."""
    return (rng.choice(SYLLABLES) + rng.choice((*SYLLABLES, "")) + rng.choice(ENDINGS)).title()


def full_name(rng: Random, first: tuple[str, ...], last: tuple[str, ...], *, kept: bool) -> str:
    """A first and a last name, three in ten of them invented; `kept` draws from the pairs kept for measuring."""
    invent = 0.0 if kept else 0.3
    while True:
        a = invented(rng) if rng.random() < invent else rng.choice(first)
        b = invented(rng) if rng.random() < invent else rng.choice(last)
        if held_out(a, b) == kept:
            return f"{a} {b}"


def person(rng: Random, kept: bool = False) -> tuple[str, dict[str, object]]:
    name = full_name(rng, FIRST, LAST, kept=kept)
    city = rng.choice(COUNTRIES).capital
    return f"the person {name}", {
        "name": name,
        "age": rng.randint(18, 80),
        "job": rng.choice(JOBS),
        "city": city,
    }


def city(rng: Random, kept: bool = False) -> tuple[str, dict[str, object]]:
    c = rng.choice(COUNTRIES)
    record: dict[str, object] = {
        "name": c.capital,
        "country": c.name,
        "language": c.language,
        "currency": c.currency,
    }
    return f"the city of {c.capital}", record


def character(rng: Random, kept: bool = False) -> tuple[str, dict[str, object]]:
    name = full_name(rng, FANTASY_FIRST, FANTASY_LAST, kept=kept)
    kind = rng.choice(KINDS)
    record: dict[str, object] = {
        "name": name,
        "kind": kind,
        "house": rng.choice(HOUSES),
        "weapon": WEAPONS[kind],
        "age": rng.randint(18, 99),
    }
    return f"the fantasy character {name}", record


SUBJECTS = (person, city, character)


def record(rng: Random) -> Document:
    """A record asked for by name, as text or in a conversation."""
    what, fields = rng.choice(SUBJECTS)(rng)
    leads: tuple[str, ...] = LEADS
    if "kind" in fields and rng.random() < 0.5:
        leads = CHARACTER_LEADS
    lead = rng.choice(leads).format(what=what, name=fields["name"])
    text = json.dumps(fields, indent=2 if rng.random() < 0.3 else None)
    if rng.random() < 0.3:  # the form of a program that writes the brace, or the name, itself
        head = "{" if rng.random() < 0.5 else text[: text.index(",") + 1]
        return (ask(lead + head), tell(text.removeprefix(head) + "\n"))
    if rng.random() < 0.4:
        return chat([(lead.strip(), text)])
    return (ask(lead), tell(text + "\n"))


def extraction(rng: Random) -> Document:
    """A sentence, then the record of what it says."""
    what, fields = person(rng)
    text = f"{fields['name']} is {fields['age']} years old, works as a {fields['job']} and lives in {fields['city']}."
    lead = f"{text}\n" + rng.choice(LEADS).format(what=what)
    return (
        chat([(lead.strip(), json.dumps(fields))])
        if rng.random() < 0.4
        else (ask(lead), tell(json.dumps(fields) + "\n"))
    )
