"""gen(type=...): JSON of that type, and its value; in every way of running. Grammars as constraints of programs."""

from __future__ import annotations

import datetime
import decimal
import enum
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import jsonschema
import msgspec
import pydantic
import pytest

import sglc as sgl
from grammar.compile import compile_constraint
from grammar.vocabulary import Vocabulary
from sglc.errors import RunError
from sglc.lang.type_schema import schema_of
from sglc.lang.typed import parse


class House(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Wand(pydantic.BaseModel):
    wood: Literal["oak", "yew"]
    length: int = pydantic.Field(ge=9, le=20)


class Wizard(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=8)
    house: House
    wand: Wand | None = None
    marks: list[int] = pydantic.Field(max_length=2)


@dataclass
class Point:
    x: int
    y: bool


class Movie(TypedDict):
    title: Literal["Alien", "Heat"]


class Pair(NamedTuple):
    left: bool
    right: Literal[1, 2]


Answer = Literal["yes", "no"]
Maybe = Point | None

VALUES = [
    (Wizard, Wizard(name="Ann", house=House.BLUE, marks=[1])),
    (Point, Point(3, True)),
    (Movie, {"title": "Heat"}),
    (Pair, Pair(True, 2)),
    (House, House.RED),
    (Answer, "no"),
    (Maybe, None),
    (list[Wand], [Wand(wood="yew", length=9)]),
    (dict[str, int], {"a": 1}),
    (tuple[int, str], (1, "b")),
    (float, 2.5),
    (bool, False),
]


@dataclass
class Bounded:
    least: Annotated[int, pydantic.Field(ge=2, le=3)]


class Shelf(pydantic.BaseModel):
    tags: set[str]
    counts: dict[int, bool]
    names: dict[Annotated[str, pydantic.Field(pattern="^[ab]+$")], int]
    price: decimal.Decimal
    lent: datetime.timedelta
    seen: datetime.datetime
    link: pydantic.HttpUrl


class Parcel(msgspec.Struct):
    data: bytes
    cost: decimal.Decimal
    took: datetime.timedelta
    marks: frozenset[int]
    sent: Annotated[datetime.datetime, msgspec.Meta(tz=True)]


WRITTEN = [
    Bounded,
    list[Annotated[int, pydantic.Field(ge=2, le=3)]],
    pydantic.HttpUrl,
    Shelf,
    Parcel,
    House,
    Literal[1, "a"],
    Any,
]


@pytest.mark.parametrize("type", WRITTEN, ids=str)
def test_every_text_of_a_type_is_one_of_its_values(type: Any) -> None:
    """Texts that a walk at random writes, closed within a budget."""
    vocabulary = Vocabulary.of([*(bytes([b]) for b in range(256)), b""], eos=[256])
    automaton = compile_constraint("json_schema", schema_of(type), vocabulary).automaton
    assert automaton is not None
    rng = random.Random(1)
    for more in [0, 3, 9, 30] * 5:
        state, text = 0, b""
        for left in range(automaton.min_tokens + more, 0, -1):
            row = automaton.allowed_within(state, left)
            byte = rng.choice([b for b in range(257) if row[b >> 5] >> (b & 31) & 1])
            if byte == 256:
                break
            state, text = automaton.step(state, byte), text + bytes([byte])
        if re.search(rb"[0-9][eE]", text) is None:  # beyond 1e308 a decimal has no value
            parse(type, text.decode())


def test_numbers_beyond_a_float_and_whole_ones_with_a_point() -> None:
    assert parse(float, "1e400") == float("inf") and parse(list[Any], "[1e999]") == [float("inf")]
    assert parse(Literal[1, "a"], "1.0") == 1
    with pytest.raises(RunError):
        parse(float, "NaN")


REFUSED: list[tuple[Any, str]] = [
    (dict[int, str], "names of a JSON object are texts, not of kind int"),
    (list[dict[House, int]], "not of kind enum"),
    (datetime.datetime, r"use Annotated\[datetime, msgspec.Meta\(tz=True\)\]"),
    (complex, "use a pydantic model"),
]


@pytest.mark.parametrize(("type", "problem"), REFUSED, ids=str)
def test_types_whose_schema_would_say_less_are_refused(type: Any, problem: str) -> None:
    with pytest.raises(TypeError, match=problem):
        sgl.gen("x", type=type)


@pytest.fixture(scope="module")
def engine() -> Iterator[sgl.Engine]:
    with sgl.Engine() as engine:
        yield engine


def written(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump_json()
    return msgspec.json.encode(value).decode()


@pytest.mark.parametrize(("type", "value"), VALUES, ids=str)
def test_a_value_is_what_its_own_text_says(type: Any, value: Any) -> None:
    schema = json.loads(schema_of(type))
    jsonschema.validate(json.loads(written(value)), schema)
    assert parse(type, written(value)) == value
    assert parse(type, [written(value)] * 2) == [value, value]


def test_objects_have_no_properties_that_would_be_lost() -> None:
    schema = json.loads(schema_of(Wizard))
    assert (
        schema["additionalProperties"] is False and schema["$defs"]["Wand"]["additionalProperties"] is False
    )
    assert json.loads(schema_of(dict[str, int]))["additionalProperties"] == {"type": "integer"}
    assert "title" in json.loads(schema_of(Movie))["$defs"]["Movie"]["properties"]


@sgl.function
def typed(s: sgl.ProgramState, topic: str) -> None:
    s += f"A record about {topic}: " + sgl.gen("wizard", type=Wizard, max_tokens=90, temperature=1.0, seed=3)
    s += "\nYes or no? " + sgl.gen("answer", type=Answer, max_tokens=8, temperature=0)
    forks = s.fork(2)
    for k, f in enumerate(forks):
        f += f" {k}: " + sgl.gen("point", type=Maybe, max_tokens=30, temperature=1.0, seed=k)
    forks.join()
    s += "\n" + sgl.gen("flags", type=list[bool], n=2, max_tokens=12, temperature=1.0, seed=9)


def seen(state: sgl.ProgramState) -> tuple[Any, ...]:
    assert isinstance(state.parsed("wizard"), Wizard) and state.parsed("answer") in ("yes", "no")
    assert all(p is None or isinstance(p, Point) for p in state.parsed("point"))
    assert [type(v) for v in state.parsed("flags")] == [list, list]
    return state.text(), state.parsed("wizard"), state.parsed("point"), state.parsed("flags")


def test_every_way_of_running(engine: sgl.Engine) -> None:
    compiled = typed.compile()
    wanted = [seen(typed.run(topic=t, backend=engine)) for t in ("tea", "rain")]
    assert seen(compiled.run(topic="tea", backend=engine)) == wanted[0] and not compiled.breaks
    for runnable in (typed, compiled):
        rows = runnable.run_batch([{"topic": "tea"}, {"topic": "rain"}], backend=engine)
        assert [seen(r) for r in rows] == wanted
    streamed = typed.run(topic="tea", backend=engine, stream=True)
    assert "".join(streamed.text_iter()) == wanted[0][0] and streamed.parsed("wizard") == wanted[0][1]


def test_the_body_may_go_on_with_the_value(engine: sgl.Engine) -> None:
    @sgl.function
    def program(s: sgl.ProgramState) -> int:
        s += "Where? " + sgl.gen("p", type=Point, max_tokens=30, temperature=0)
        point = s.parsed("p")
        s += f" so {point.x + 1}" + sgl.gen("b", max_tokens=2, temperature=0)
        return point.x

    compiled = program.compile()
    one, two = (p.run(backend=engine) for p in (program, compiled))
    assert one.text() == two.text() and one.ret_value == two.ret_value == one.parsed("p").x
    assert len(compiled.breaks) == 1 and "parsed" in str(compiled.breaks[0])


def test_errors_say_what_to_do() -> None:
    backend = sgl.Scripted({"x": "{}", "y": "{}", "z": "{}"})

    @sgl.function
    def program(s: sgl.ProgramState, both: bool) -> None:
        s += "x" + sgl.gen("p", type=Point)
        s += "y" + sgl.gen("q")
        if both:
            s += "z" + sgl.gen("p", type=Movie)

    state = program.run(both=False, backend=backend)
    with pytest.raises(RunError, match=r"'\{\}' is no Point"):
        state.parsed("p")
    with pytest.raises(KeyError, match=r"give the type: parsed\('q', SomeType\)"):
        state.parsed("q")
    assert state.parsed("q", dict) == {}
    state = program.run(both=True, backend=backend)
    with pytest.raises(KeyError, match="several types"):
        state.parsed("p")
    with pytest.raises(TypeError, match=r"gen\(type=object\)"):
        sgl.gen("x", type=object)
    with pytest.raises(ValueError, match="regex and type cannot be given together"):
        sgl.gen("x", regex="a", type=int)


def test_grammars_hold_compiled_and_not(engine: sgl.Engine) -> None:
    grammar = 'root ::= "(" root ")" | [0-9]+ " apples"'

    @sgl.function
    def program(s: sgl.ProgramState, q: str) -> None:
        s += q + sgl.gen("g", ebnf=grammar, max_tokens=24, temperature=1.0, seed=4)
        s += "\n" + sgl.gen(
            "l", ebnf='start: "a".."c" ("+" "a".."c")~0..2', max_tokens=9, temperature=1.0, seed=5
        )

    one, two = (p.run(q="How many?", backend=engine) for p in (program, program.compile(verify=True)))
    assert one.text() == two.text()
    core = one["g"].strip("()")
    assert core.endswith(" apples") and one["g"].count("(") == one["g"].count(")")
    assert set(one["l"]) <= set("abc+")
    module = program.compile().program.trace()
    from sglc.ir.parser import parse_module

    assert str(parse_module(str(module))) == str(module) and "ebnf" in str(module)
