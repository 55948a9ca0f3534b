"""Programs that break somewhere: the compiled run is the interpreted one, with the place of the break."""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import sglc as sgl
from sglc.ir.ops import Break
from sglc.ir.printer import print_module

LOG: list[Any] = []
COUNT = {"calls": 0}


def log(*what: Any) -> None:
    LOG.append(what)


class Store:
    def __init__(self) -> None:
        self.seen: list[str] = []


STORE = Store()


@sgl.function
def prints(s, q):
    s += "Ask " + q + sgl.gen("a", max_tokens=3)
    x = s["a"]
    log("got", x)  # BREAK
    s += " then " + sgl.gen("b", max_tokens=3)
    log("end", s["b"])
    return x


@sgl.function
def in_turn(s, q):
    found = []
    for k, f in enumerate(s.fork(3)):
        f += f"{q} {k} " + sgl.gen("x", max_tokens=2)
        found.append(f["x"])
    log(found)  # BREAK
    s += " ".join(found) + sgl.select("pick", ["yes", "no"])


@sgl.function
def catches(s, q):
    s += q + sgl.gen("a", max_tokens=2)
    try:  # BREAK
        log("try")
        raise ValueError(s["a"])
    except ValueError as error:
        s += f" caught {error} " + sgl.gen("b")


@sgl.function
def looks_inside(s, q):
    s += q + sgl.gen("a", max_tokens=2)
    words = 0
    for letter in s["a"]:  # BREAK
        words += letter == "e"
    s += f" {words} " + sgl.gen("b", max_tokens=1)


@sgl.function
def dispatches(s, q):
    s += q + sgl.select("tool", ["one", "two"])
    table = {"one": "first", "two": "second"}
    log(table)  # BREAK
    s += table[s["tool"]] + sgl.gen("b")


def numbers(text):
    LOG.append("numbers begin")
    yield from (f"{text}{k}" for k in range(2))
    LOG.append("numbers end")


@sgl.function
def generates(s, q):
    s += q + sgl.gen("a", max_tokens=2)
    for part in numbers(q):  # BREAK
        s += part + sgl.gen("b", max_tokens=1)


@sgl.function
def closes(s, q):
    seen = []
    s += q + sgl.gen("a", max_tokens=2)

    def keep(text):  # BREAK
        seen.append(text)
        LOG.append(text)

    keep(s["a"])
    s += str(len(seen)) + sgl.gen("b")
    return seen


def countdown(s, n):
    LOG.append(n)
    if n:
        s += f"{n} " + sgl.gen(f"n{n}", max_tokens=1)
        countdown(s, n - 1)


@sgl.function
def recurses(s, q):
    s += q + sgl.gen("a", max_tokens=2)
    countdown(s, 3)  # BREAK
    s += sgl.gen("end", max_tokens=2)


@sgl.function
def remembers(s, q):
    s += q + sgl.gen("a", max_tokens=2)
    STORE.seen.append(s["a"])  # BREAK
    COUNT["calls"] += 1
    s += str(COUNT["calls"]) + sgl.gen("b", max_tokens=2)


@sgl.function
def in_one_way(s, q):
    s += q + sgl.select("mood", ["calm", "angry"])
    if s["mood"] == "angry":
        log("angry")  # BREAK
        s += " sorry " + sgl.gen("b", max_tokens=2)
    else:
        s += " good " + sgl.gen("c", max_tokens=2)


@sgl.function
def foreign(s, q):
    with s.user():
        s += q
    with s.assistant():
        s += sgl.gen("a", max_tokens=3)
    with contextlib.suppress(KeyError):  # BREAK
        log(s["a"])
        s["nothing"]
    with s.user():
        s += "more"
    with s.assistant():
        s += sgl.gen("b", max_tokens=3)


@sgl.function
def raises(s, q):
    s += q + sgl.gen("a", max_tokens=2)
    log("before")  # BREAK
    if len(s["a"]) >= 0:
        raise LookupError(q)
    s += sgl.gen("never")


ALL = [
    prints,
    in_turn,
    catches,
    looks_inside,
    dispatches,
    generates,
    closes,
    recurses,
    remembers,
    in_one_way,
    foreign,
    raises,
]


@pytest.fixture(autouse=True)
def fresh() -> None:
    LOG.clear()
    STORE.seen.clear()
    COUNT["calls"] = 0


def outcome(program: Any, backend: Any, **kwargs: Any) -> tuple[Any, ...]:
    """Everything of a run that somebody can see, the calls of the model as a multiset."""
    LOG.clear()
    STORE.seen.clear()
    COUNT["calls"] = 0
    try:
        s = program.run(backend=backend, **kwargs)
        error = s.error()
        seen: Any = (s.text(), s.sink.variables(), s.messages(), s.ret_value, str(error))
        seen += tuple((n, s.get_meta_info(n)) for n in s.sink.variables()) if error is None else ()
    except Exception as raised:
        seen = (type(raised), str(raised))
    return seen, list(LOG), list(STORE.seen), dict(COUNT), calls(backend)


def calls(backend: Any) -> Counter[str]:
    bare = [
        (getattr(c, "prompt", None), getattr(c, "sampling", getattr(c, "choices", None)))
        for c in backend.calls
    ]
    return Counter(map(repr, bare))


def line_of(program: Any) -> int:
    source, first = inspect.getsourcelines(program.func)
    places = [n for n, line in enumerate(source) if line.rstrip().endswith("# BREAK")]
    return first + places[0] if places else -1


@pytest.mark.parametrize("program", ALL, ids=lambda p: p.__name__)
def test_compiled_is_interpreted(program: Any) -> None:
    compiled = program.compile(verify=True)
    for k in range(6):
        expected = outcome(program, sgl.Scripted(), q=f"q{k} ")
        assert outcome(compiled, sgl.Scripted(), q=f"q{k} ") == expected
    assert len(compiled.breaks) == 1
    at = compiled.breaks[0].at
    assert at is not None and at.file == __file__
    assert at.line == line_of(program)


@pytest.mark.parametrize("program", ALL, ids=lambda p: p.__name__)
def test_compiling_never_runs_what_is_behind_the_break(program: Any) -> None:
    backend = sgl.Scripted()
    compiled = program.compile()
    from sglc.lang.chat_template import chat_template_for

    assert compiled.schedule({"q": "q"}, chat_template_for(backend.model)) is None
    assert (LOG, STORE.seen, COUNT["calls"], backend.calls) == ([], [], 0, [])
    (module,) = compiled.modules()
    end = module.graph.nodes[-1]
    assert isinstance(end, Break) and end.reason == compiled.breaks[0].reason
    assert "break " in print_module(module)


def test_what_is_read_in_turn_is_computed_together() -> None:
    """The function reads each branch before it begins the next one; the plan does not wait for that."""

    class Watching(sgl.Scripted):
        together = 0

        def generate(self, requests: Any) -> Any:
            self.together = max(self.together, len(requests))
            return super().generate(requests)

    one, two = Watching(), Watching()
    in_turn.run(q="q", backend=one).sync()
    in_turn.compile().run(q="q", backend=two).sync()
    assert one.together == 1 < two.together
    assert len(one.calls) == len(two.calls)


@pytest.mark.parametrize("program", [prints, catches, foreign, closes], ids=lambda p: p.__name__)
@pytest.mark.parametrize("word", ["q7", "then", "more", "caught"])
def test_failing_calls_give_the_same_error_and_effects(program: Any, word: str) -> None:
    expected = outcome(program, sgl.Scripted(fail_on=word), q="q7 ")
    assert outcome(program.compile(), sgl.Scripted(fail_on=word), q="q7 ") == expected


def test_rows_of_a_batch_with_breaks() -> None:
    rows = [{"q": f"q{k} "} for k in range(12)]
    expected = [s.text() for s in prints.run_batch(rows, backend=sgl.Scripted())]
    effects = Counter(LOG)
    LOG.clear()
    found = prints.compile().run_batch(rows, backend=sgl.Scripted(), num_threads=4)
    assert [s.text() for s in found] == expected and Counter(LOG) == effects


def test_the_command_line_shows_the_break(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from sglc.cli import app

    file = tmp_path / "told.py"
    file.write_text(
        "import sglc as sgl\n\n\n@sgl.function\ndef told(s, q):\n    s += q + sgl.gen('a')\n    print(s['a'])\n"
    )
    result = CliRunner().invoke(app, ["compile", str(file), "--verify"])
    assert result.exit_code == 0, result.output
    assert "break %2 {reason=" in result.stdout and 'gen %1 {name="a"}' in result.stdout
    assert f"graph break at {file}:7: print(...) is called" in result.stderr
