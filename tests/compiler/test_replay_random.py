"""Impure statements at random places of random programs: compiled = interpreted, effects in order, no call more."""

from __future__ import annotations

import itertools
import linecache
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import sglc as sgl

_NUMBERS = itertools.count()
_IMPURE = (
    "log('effect')",
    "BOX['n'] = BOX['n'] + 1",
    "print(end='') or log('printed')",
    "log(s.text())",
    "for c in s.text(): log(c) if c == 'e' else None",
)


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """The body of a program; every name that it reads is there."""
    found = ["s += 'start ' + q"]
    for k in range(draw(st.integers(2, 7))):
        kind = draw(
            st.sampled_from(["text", "gen", "read", "select", "fork", "turn", "if", "role", "impure"])
        )
        body = {
            "text": [f"s += 'part {k} '"],
            "gen": [f"s += sgl.gen('v{k}', max_tokens=2)"],
            "read": [f"s += sgl.gen('v{k}', max_tokens=2)", f"x{k} = s['v{k}']", f"s += ' read ' + x{k}"],
            "select": [f"s += sgl.select('v{k}', ['yes', 'no'])"],
            "fork": [
                f"f{k} = s.fork(2)",
                f"for j, f in enumerate(f{k}):",
                f"    f += str(j) + sgl.gen('w{k}', max_tokens=1)",
                f"f{k}.join()",
            ],
            "turn": [
                "for j, f in enumerate(s.fork(2)):",
                f"    f += str(j) + sgl.gen('w{k}', max_tokens=1)",
                f"    s += f['w{k}']",
            ],
            "if": [
                f"s += sgl.select('v{k}', ['yes', 'no'])",
                f"if s['v{k}'] == 'yes':",
                f"    s += ' so ' + sgl.gen('y{k}', max_tokens=1)",
                *draw(st.sampled_from([[], ["    log('arm')"]])),
            ],
            "role": [
                "with s.user():",
                f"    s += 'ask {k}'",
                "with s.assistant():",
                f"    s += sgl.gen('v{k}', max_tokens=2)",
            ],
            "impure": [draw(st.sampled_from(_IMPURE))],
        }[kind]
        found += body
    found.insert(draw(st.integers(0, 1)), "pass")
    return [*found, draw(st.sampled_from(_IMPURE)), "s += sgl.gen('last', max_tokens=2)", "return s['last']"]


def program_of(body: list[str]) -> tuple[Any, list[Any], dict[str, int]]:
    file = f"<random program {next(_NUMBERS)}>"
    source = "@sgl.function\ndef main(s, q):\n" + "".join(f"    {line}\n" for line in body)
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    effects: list[Any] = []
    box = {"n": 0}
    world: dict[str, Any] = {"sgl": sgl, "log": effects.append, "BOX": box, "__name__": "random_program"}
    exec(compile(source, file, "exec"), world)
    return world["main"], effects, box


def outcome(run: Any, backend: Any, effects: list[Any], box: dict[str, int]) -> tuple[Any, ...]:
    effects.clear()
    box["n"] = 0
    try:
        s = run(q="q", backend=backend)
        error = s.error()
        seen: tuple[Any, ...] = (s.text(), s.messages(), s.ret_value, s.sink.variables(), str(error))
        if error is None:
            seen += tuple((n, s.get_meta_info(n)) for n in s.sink.variables())
    except Exception as raised:
        seen = (type(raised), str(raised))
    sent = Counter(
        repr((c.prompt, getattr(c, "sampling", None), getattr(c, "choices", None))) for c in backend.calls
    )
    return seen, list(effects), dict(box), sent


@settings(max_examples=150, deadline=None)
@given(lines())
def test_effects_text_and_calls_are_those_of_the_interpreter(body: list[str]) -> None:
    program, effects, box = program_of(body)
    expected = outcome(program.run, sgl.Scripted(), effects, box)
    compiled = program.compile()
    assert outcome(compiled.run, sgl.Scripted(), effects, box) == expected
    assert len(compiled.breaks) == 1
    at = compiled.breaks[0].at
    assert at is not None and at.file.startswith("<random program")
    for module in compiled.modules():
        assert module.graph.nodes[-1].op == "break"


@settings(max_examples=60, deadline=None)
@given(lines(), st.sampled_from(["part", "read", "ask", "so", "yes"]))
def test_errors_and_effects_of_failing_runs(body: list[str], word: str) -> None:
    """Calls that were under way when another one failed may be more than the interpreter's; never fewer."""
    program, effects, box = program_of(body)
    expected = outcome(program.run, sgl.Scripted(fail_on=word), effects, box)
    found = outcome(program.compile().run, sgl.Scripted(fail_on=word), effects, box)
    assert found[:3] == expected[:3]
    assert not expected[3] - found[3]
