"""JSON records of people, cities and fantasy characters, and text about them."""

from __future__ import annotations

import json
from random import Random

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


def person(rng: Random) -> tuple[str, dict[str, object]]:
    name = f"{rng.choice(FIRST)} {rng.choice(LAST)}"
    city = rng.choice(COUNTRIES).capital
    return f"the person {name}", {
        "name": name,
        "age": rng.randint(18, 80),
        "job": rng.choice(JOBS),
        "city": city,
    }


def city(rng: Random) -> tuple[str, dict[str, object]]:
    c = rng.choice(COUNTRIES)
    record: dict[str, object] = {
        "name": c.capital,
        "country": c.name,
        "language": c.language,
        "currency": c.currency,
    }
    return f"the city of {c.capital}", record


def character(rng: Random) -> tuple[str, dict[str, object]]:
    name = f"{rng.choice(FANTASY_FIRST)} {rng.choice(FANTASY_LAST)}"
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
    lead = rng.choice(LEADS).format(what=what)
    text = json.dumps(fields)
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
