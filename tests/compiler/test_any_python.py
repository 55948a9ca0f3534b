"""Any Python is allowed in a program: compiled is interpreted, and the first line that is not compiled is told.

A line marked BREAK is where the compiler says that it stops; programs without one are compiled whole.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import inspect
import itertools
import json
import operator
import re
from collections import defaultdict, namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

import sglc as sgl

EFFECTS: list[Any] = []
PROGRAMS: list[Any] = []


def program(body: Callable[..., Any]) -> Any:
    made = sgl.function(body)
    PROGRAMS.append(made)
    return made


def note(*what: Any) -> None:
    EFFECTS.append(what)


@dataclass
class Memory:
    facts: dict[str, str] = field(default_factory=dict)

    def learn(self, key: str, value: str) -> Memory:
        note(key, value)
        return Memory({**self.facts, key: value})


class Mood(enum.Enum):
    CALM = "calm"
    ANGRY = "angry"


Turn = namedtuple("Turn", "role text")


@program
def tries_again(s: Any, q: str) -> None:
    for attempt in range(3):
        s += q + sgl.gen("n", max_tokens=2)
        try:  # BREAK
            s += f" {int(s['n'])}"
            break
        except ValueError as error:
            note(str(error)[:9], attempt)
    else:
        s += " no number"


@program
def finally_done(s: Any, q: str) -> str:
    s += q + sgl.gen("a")
    try:  # BREAK
        note("in")
        return s["a"]
    finally:
        s += " (end)" + sgl.gen("b", max_tokens=1)
        note("out")


@program
def own_generator(s: Any, q: str) -> None:
    def parts() -> Iterator[str]:  # BREAK
        for k in range(3):
            note("part", k)
            yield f"{q}{k}"

    for part in parts():
        s += part + sgl.gen("x", max_tokens=1)


@program
def counter_in_a_closure(s: Any, q: str) -> int:
    count = 0

    def more() -> int:  # BREAK
        nonlocal count
        count += 1
        return count

    while more() < 3:
        s += f"{q}{count}" + sgl.gen(f"x{count}", max_tokens=1)
    return count


@program
def with_a_dataclass(s: Any, q: str) -> dict[str, str]:
    memory = Memory()  # BREAK
    for key in ("name", "town"):
        s += f"{q} {key}:" + sgl.gen(key, max_tokens=2)
        memory = memory.learn(key, s[key])
    return memory.facts


@program
def comprehension_over_answers(s: Any, q: str) -> list[str]:
    s += q
    forks = s.fork(3)
    forks += lambda i: f" {i}" + sgl.gen("x", max_tokens=2)
    forks.join()
    words = [x.strip().upper() for x in s["x"]]
    s += " ".join(words[:1]) + words[2]
    return words


@program
def sorts_what_was_said(s: Any, q: str) -> list[str]:
    s += q
    forks = s.fork(3)
    forks += lambda i: f" {i}" + sgl.gen("x", max_tokens=2)
    found = sorted((f["x"] for f in forks), key=len)  # BREAK
    s += found[0] + sgl.gen("end", max_tokens=1)
    return found


@sgl.function
def down(s: Any, depth: int, q: str) -> None:
    s += f"{q} at {depth}:" + sgl.gen("x", max_tokens=1)
    if depth:
        s += down(depth - 1, q).text()


@program
def recursion_of_programs(s: Any, q: str) -> None:
    s += q
    s += "[" + down(2, q).text() + "]" + sgl.gen("end")


@sgl.function
def deeper(s: Any, q: str, left: int) -> None:
    s += q + sgl.select("more", ["yes", "no"])
    if left and s["more"] == "yes":
        s += " then " + deeper(q + "+", left - 1)["more"]


@program
def recursion_on_an_answer(s: Any, q: str) -> None:
    s += "deep " + deeper(q, 3)["more"] + sgl.gen("end", max_tokens=1)


@program
def table_of_functions(s: Any, q: str) -> None:
    table = {"up": str.upper, "low": str.lower}  # BREAK
    s += q + sgl.select("how", ["up", "low"])
    s += table[s["how"]](q)
    s += sgl.gen("end", max_tokens=1)


@program
def table_of_texts(s: Any, q: str) -> None:
    table = {"up": "Above: ", "low": "Below: "}
    s += q + sgl.select("how", ["up", "low"])
    s += table[s["how"]] + sgl.gen("end", max_tokens=1)


@program
def matches_and_binds(s: Any, q: str) -> str:
    s += q + sgl.select("kind", ["a", "b", "c"])
    match s["kind"]:
        case "a":
            s += " first" + sgl.gen("x", max_tokens=1)
        case "b" | "c" as other:
            s += " not first: " + other
    return s["kind"]


@program
def walrus(s: Any, q: str) -> None:
    s += q + sgl.gen("a", max_tokens=2)
    if (answer := s["a"].strip()) == "w":
        s += "w!"
    s += answer + sgl.gen("b", max_tokens=1)


@program
def parses_json(s: Any, q: str) -> Any:
    s += q + sgl.gen("a", max_tokens=2)
    data = json.loads(json.dumps({"answer": s["a"]}))  # BREAK
    s += data["answer"] + sgl.gen("b", max_tokens=1)
    return data


@program
def searches(s: Any, q: str) -> None:
    s += q + sgl.gen("a", max_tokens=3)
    found = re.findall(r"w(\d)", s["a"])  # BREAK
    s += f" {found} " + sgl.gen("b", max_tokens=1)


@program
def counts_words(s: Any, q: str) -> dict[str, int]:
    s += q + sgl.gen("a", max_tokens=4)
    seen: dict[str, int] = defaultdict(int)  # BREAK
    for word in s["a"].split():
        seen[word] += 1
    s += f"{len(seen)} words" + sgl.gen("b", max_tokens=1)
    return dict(seen)


@program
def zips_and_enumerates(s: Any, q: str) -> None:
    names, marks = ["x", "y"], ["?", "!"]
    for k, (name, mark) in enumerate(zip(names, marks, strict=True)):
        s += f"{k}{q}{mark}" + sgl.gen(name, max_tokens=1)
    s += s["x"] + s["y"]


@program
def product_of_choices(s: Any, q: str) -> None:
    for a, b in itertools.product("xy", repeat=2):  # BREAK
        s += f"{q}{a}{b}" + sgl.gen(a + b, max_tokens=1)


@program
def unpacks(s: Any, q: str) -> tuple[str, ...]:
    first, *rest = [q, "b", "c"]
    s += first + sgl.gen("a", max_tokens=1)
    turns = [Turn("user", r) for r in rest]  # BREAK
    s += "".join(t.text for t in turns)
    return s["a"], *rest


@program
def enum_of_an_answer(s: Any, q: str) -> str:
    s += q + sgl.select("mood", ["calm", "angry"])
    mood = Mood(s["mood"])  # BREAK
    s += mood.name + sgl.gen("b", max_tokens=1)
    return mood.value


@program
def partial_and_reduce(s: Any, q: str) -> str:
    s += q + sgl.gen("a", max_tokens=2)
    joined = functools.reduce(operator.add, [s["a"], "-", q])  # BREAK
    s += joined + sgl.gen("b", max_tokens=1)
    return joined


@program
def asks_the_loop(s: Any, q: str) -> None:
    s += q + sgl.gen("a", max_tokens=1)

    async def later(text: str) -> str:  # BREAK
        await asyncio.sleep(0)
        return text[::-1]

    s += asyncio.run(later(s["a"])) + sgl.gen("b", max_tokens=1)


@contextmanager
def told(name: str) -> Iterator[None]:
    note("enter", name)
    try:
        yield
    finally:
        note("leave", name)


@program
def own_context(s: Any, q: str) -> None:
    s += q + sgl.gen("a", max_tokens=1)
    with told("block"):  # BREAK
        s += sgl.gen("b", max_tokens=1)


@program
def raises_inside_a_loop(s: Any, q: str) -> None:
    for k in range(3):
        s += f"{q}{k}" + sgl.gen("a", max_tokens=1)
        if k == 1 and s["a"] != "never":
            raise RuntimeError(f"stopped at {k}")  # BREAK


@program
def asserts(s: Any, q: str) -> None:
    s += q + sgl.gen("a", max_tokens=2)
    assert s["a"] != "never", "said never"  # BREAK
    s += " fine" + sgl.gen("b", max_tokens=1)


@program
def conditional_expression(s: Any, q: str) -> str:
    s += q + sgl.select("c", ["x", "y"])
    word = "left" if s["c"] == "x" else "right"
    s += word + sgl.gen(word, max_tokens=1)
    return word


@program
def chained_and_or(s: Any, q: str) -> bool:
    s += q + sgl.select("c", ["x", "y", "z"])
    both = s["c"] == "x" or (s["c"] == "y" and q.startswith("q"))
    if both:
        s += " both" + sgl.gen("a", max_tokens=1)
    return both


@program
def deletes_and_slices(s: Any, q: str) -> str:
    parts = [q, "skip", "keep"]
    del parts[1]  # BREAK
    s += "/".join(parts) + sgl.gen("a", max_tokens=3)
    s += s["a"][1:3] + s["a"][-1:]
    return s["a"][::2]


@program
def formats(s: Any, q: str) -> None:
    s += f"{q} and 1" + f"{q!r:>12}|" + sgl.gen("a", max_tokens=2)
    s += f"<{s['a']:>10}>" + f"{s['a']!r}"


@program
def sets_attributes_of_the_state(s: Any, q: str) -> str:
    s += q + sgl.gen("a", max_tokens=1)
    s.memo = q  # BREAK
    s += s.memo + sgl.gen("b", max_tokens=1)
    return s.memo


TALLY: dict[str, int] = {}


def count(tally: dict[str, int], word: str) -> int:
    tally[word] = tally.get(word, 0) + 1
    return tally[word]


@program
def counts_in_a_table_of_the_module(s: Any, q: str) -> str:
    s += q + sgl.gen("a", max_tokens=1)
    seen = count(TALLY, q)  # BREAK
    s += f" {seen}" + sgl.gen("b", max_tokens=1)
    return str(seen)


@program
def counts_in_a_table_of_its_own(s: Any, q: str) -> str:
    own = {"x": 1}
    seen = count(own, q)
    s += q + f" {seen}{own['x']}" + sgl.gen("a", max_tokens=1)
    return str(seen)


def outcome(runnable: Any, backend: sgl.Scripted, q: str) -> Any:
    EFFECTS.clear()
    TALLY.clear()
    try:
        s = runnable.run(q=q, backend=backend)
        seen: Any = (s.text(), s.messages(), s.sink.variables(), s.ret_value, str(s.error()))
    except Exception as error:
        seen = (type(error), str(error))
    asked = sorted(
        repr((c.prompt, getattr(c, "sampling", getattr(c, "choices", None)))) for c in backend.calls
    )
    return seen, list(EFFECTS), asked


def break_line(made: Any) -> int | None:
    source, first = inspect.getsourcelines(made.func)
    return next((first + k for k, line in enumerate(source) if "# BREAK" in line), None)


@pytest.mark.parametrize("made", PROGRAMS, ids=lambda p: p.__name__)
def test_compiled_is_interpreted_and_the_break_is_told(made: Any) -> None:
    compiled = made.compile(verify=True)
    for k in range(8):
        expected = outcome(made, sgl.Scripted(), f"q{k} ")
        assert outcome(compiled, sgl.Scripted(), f"q{k} ") == expected
    lines = [b.at.line for b in compiled.breaks if b.at is not None and b.at.file == __file__]
    line = break_line(made)
    assert lines == ([] if line is None else [line]) and len(lines) == len(compiled.breaks), compiled.breaks


def test_there_are_many() -> None:
    assert len(PROGRAMS) >= 30
    assert sum(break_line(p) is None for p in PROGRAMS) >= 10
