"""Conditions and loops on what the model wrote: compiled = interpreted, with the same calls, whatever the path."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

import sglc as sgl
from runtime.api import Generate
from runtime.plan_bounds import bounds_of
from runtime.plan_verify import verify
from sglc.errors import RunError
from sglc.ir.ops import If, Loop
from sglc.ir.parser import parse_module
from sglc.plan.lower import lower
from sglc.plan.render import from_json, to_json

WORDS = ["red", "green", "blue"]
TABLE = {"red": "warm", "green": "fresh", "blue": "cold"}


@sgl.function
def router(s, q):
    s += "Q: " + q + sgl.select("tool", ["calc", "search", "chat"])
    if s["tool"] == "calc":
        s += " expression: " + sgl.gen("expression", max_tokens=4)
        s += " result: " + sgl.gen("result", max_tokens=2)
    elif s["tool"] == "search":
        s += " query: " + sgl.gen("query", stop="w1")
    else:
        s += " reply: "
    s += " and so: " + sgl.gen("answer")


@sgl.function
def nested(s, q):
    s += q + sgl.select("a", ["x", "y"])
    if s["a"] == "x":
        s += " first " + sgl.select("b", WORDS)
        if s["b"] != "red":
            s += " not red"
            if s["b"] == "blue":
                s += sgl.gen("c")
    else:
        s += sgl.gen("c", max_tokens=3) + "."
    s += "end" + sgl.gen("d")
    return s["a"]


@sgl.function
def matched(s, q):
    s += q + sgl.select("c", WORDS)
    match s["c"]:
        case "red":
            s += " stop"
        case "green" | "blue":
            s += " go " + sgl.gen("speed", max_tokens=2)
    s += "."


@sgl.function
def dispatched(s, q):
    s += q + sgl.select("c", WORDS)
    s += " is " + TABLE[s["c"]] + sgl.gen("x")


@sgl.function
def members(s, q):
    s += q + sgl.select("c", WORDS)
    if s["c"] in ("red", "blue"):
        s += " in a tuple"
    if s["c"] in {"blue"} or s["c"] == "green":
        s += " in a set" + sgl.gen("x")
    if not (s["c"] == "red" and s["c"] < "s"):
        s += " not"
    s += sgl.gen("y")


@sgl.function
def early(s, q):
    s += q + sgl.select("ok", ["yes", "no"])
    if s["ok"] == "no":
        s["why"] = "refused"
        return "nothing"
    s += " then " + sgl.gen("more")
    return s["more"]


@sgl.function
def only_one_arm(s, q):
    s += q + sgl.select("ok", ["yes", "no"])
    if s["ok"] == "yes":
        s += sgl.gen("reason", n=2) + "!"
    s += " end"


@sgl.function
def in_a_row(s, q):
    for k in range(6):
        s += f"{k}? " + sgl.select(f"a{k}", ["yes", "no"])
        if s[f"a{k}"] == "yes":
            s += " why? " + sgl.gen(f"w{k}", max_tokens=3)
    return [s[f"a{k}"] for k in range(6)]


@sgl.function
def strings(s, q):
    s += q + sgl.gen("x", max_tokens=3)
    x = s["x"].strip()
    if x.startswith("w1") or "7" in x:
        s += " one " + x.upper()
    elif x.endswith("3"):
        s += " three " + sgl.gen("y")
    if x < q:
        s += " less"
    s += sgl.gen("z")


@sgl.function
def bounded(s, q):
    s += q
    for k in range(5):
        s += f"round {k}: " + sgl.gen("x", max_tokens=2)
        s += sgl.select("go", ["on", "done"])
        if s["go"] == "done":
            break
    else:
        s += " never done"
    s += " after " + sgl.gen("y")
    return k


@sgl.function
def skips(s, q):
    for word in WORDS:
        s += word + q + sgl.select("keep", ["yes", "no"])
        if s["keep"] == "no":
            continue
        s += " kept " + sgl.gen(word)
    s += "."


@sgl.function
def unbounded(s, q):
    s += q + sgl.select("go", ["on", "done"])
    while s["go"] != "done":
        s += " once more " + sgl.gen("x", max_tokens=2)
        s += sgl.select("go", ["on", "done"])
    s += " after " + sgl.gen("y")
    return s["go"]


@sgl.function
def until(s, q):
    tries = ""
    while True:
        s += q + " try: " + sgl.gen("x", max_tokens=2)
        tries = tries + s["x"] + ";"
        s += sgl.select("ok", ["no", "yes"])
        if s["ok"] == "yes":
            break
        s += " again"
    s += tries
    return tries


@sgl.function
def loop_with_arms(s, q):
    s += q + sgl.select("go", ["on", "done"])
    while s["go"] == "on":
        s += sgl.select("kind", WORDS)
        if s["kind"] == "red":
            s += " r " + sgl.gen("x", max_tokens=2)
        elif s["kind"] == "blue":
            s += " b"
        s += sgl.select("go", ["on", "done"])
    s += sgl.gen("y")


@sgl.function
def loop_with_forks(s, q):
    s += q + sgl.select("go", ["on", "done"])
    while s["go"] == "on":
        forks = s.fork(2)
        for k, f in enumerate(forks):
            f += f" branch {k} " + sgl.gen("x", max_tokens=2)
        s += forks[0]["x"] + "|" + forks[1]["x"]
        forks.join("concate_and_append")
        s += sgl.select("go", ["on", "done"])
    s += sgl.gen("y")


@sgl.function
def loop_of_messages(s, q):
    s += sgl.system("Be brief.") + sgl.user(q)
    s += sgl.assistant(sgl.select("go", ["on", "done"]))
    while s["go"] == "on":
        s += sgl.user("More? " + q)
        s += sgl.assistant(sgl.gen("x", max_tokens=2) + sgl.select("go", ["on", "done"]))
    s += sgl.user("Bye.") + sgl.assistant(sgl.gen("bye"))


@sgl.function
def nested_loops(s, q):
    s += q + sgl.select("outer", ["on", "done"])
    while s["outer"] == "on":
        s += " inner: " + sgl.select("inner", ["on", "done", "out"])
        while s["inner"] == "on":
            s += sgl.gen("x", max_tokens=1) + sgl.select("inner", ["on", "done", "out"])
        s += " outer: " + sgl.select("outer", ["on", "done"])
    s += sgl.gen("y")


@sgl.function
def two_ways(s, q):
    s += q
    while True:
        s += " a " + sgl.select("a", ["go", "stop"])
        if s["a"] == "stop":
            break
        s += " b " + sgl.gen("x", max_tokens=2) + sgl.select("b", ["go", "stop"])
        if s["b"] == "stop":
            break
    s += " end " + sgl.gen("y")


@sgl.function
def leaves(s, q):
    s += q
    while True:
        s += sgl.select("a", ["go", "skip", "stop"])
        if s["a"] == "skip":
            s += " skipped "
            continue
        if s["a"] == "stop":
            return "stopped"
        s += " x " + sgl.gen("x", max_tokens=2)
        if "1" in s["x"]:
            s += " found " + s["x"]
            return s["x"]


@sgl.function
def breaks_out(s, q):
    s += q
    while True:
        s += " o " + sgl.select("o", ["on", "done"])
        if s["o"] == "done":
            break
        while True:
            s += " i " + sgl.gen("x", max_tokens=1)
            if "5" in s["x"]:
                break
            if "1" in s["x"]:
                s += " one"
                continue
            s += sgl.select("i", ["on", "done"])
            if s["i"] == "done":
                break
        s += " o2"
    s += sgl.gen("y")


@sgl.function
def forks_in_arms(s, q):
    s += q + sgl.select("deep", ["yes", "no"])
    if s["deep"] == "yes":
        forks = s.fork(3)
        for k, f in enumerate(forks):
            f += f" way {k}: " + sgl.gen("way", max_tokens=3)
        s += " " + forks[1]["way"]
        forks.join()
    else:
        s += sgl.gen("short")
    s += " so " + sgl.gen("end")


@sgl.function
def arms_in_forks(s, q):
    s += q
    forks = s.fork(3)
    for k, f in enumerate(forks):
        f += f" {k}: " + sgl.select("ok", ["yes", "no"])
        if f["ok"] == "yes":
            f += sgl.gen("x", max_tokens=2)
        f += " over " + sgl.gen("z")
    forks.join("concate_and_append")
    s += sgl.gen("end")


@sgl.function
def some_branches_have_it(s, q):
    s += q
    forks = s.fork(3)
    for k, f in enumerate(forks):
        f += f" {k}: " + sgl.select("ok", ["yes", "no"])
        if f["ok"] == "yes":
            f += sgl.gen("x", max_tokens=2)
    forks.join()
    s += sgl.gen("end")


@sgl.function
def messages_in_arms(s, q):
    s += sgl.user(q)
    with s.assistant():
        s += sgl.select("ok", ["yes", "no"])
    if s["ok"] == "yes":
        s += sgl.user("Why?") + sgl.assistant(sgl.gen("why"))
    else:
        s += sgl.user("Why not?") + sgl.assistant(sgl.gen("why", max_tokens=3))
    s += sgl.user("Bye.") + sgl.assistant(sgl.gen("bye"))


@sgl.function
def a_message_more(s, q):
    s += sgl.user(q) + sgl.assistant(sgl.select("ok", ["yes", "no"]))
    if s["ok"] == "no":
        s += sgl.user("Why?") + sgl.assistant(sgl.gen("why"))
    s += sgl.user("Bye.") + sgl.assistant(sgl.gen("bye"))


@sgl.function
def inside_a_message(s, q):
    with s.user():
        s += q
    with s.assistant():
        s += sgl.select("ok", ["yes", "no"])
        if s["ok"] == "yes":
            s += " because " + sgl.gen("why")
        s += "."
    with s.var_scope("tail"):
        s += " t "
        if s["ok"] == "yes":
            s += sgl.gen("u", max_tokens=2)
    s += s["tail"]


@sgl.function
def judge(s, text):
    s += "Judge: " + text + sgl.select("verdict", ["good", "bad"])
    if s["verdict"] == "bad":
        s += sgl.gen("why", max_tokens=3)
    return s["verdict"]


@sgl.function
def calls_in_arms(s, q):
    s += q + sgl.select("check", ["yes", "no"])
    if s["check"] == "yes":
        state = judge(q + "?")
        s += state.text()
        if state.ret_value == "bad":
            s += " bad"
    s += sgl.gen("x")


PROGRAMS: list[Any] = [
    router, nested, matched, dispatched, members, early, only_one_arm, in_a_row, strings, bounded, skips, unbounded,
    until, loop_with_arms, loop_with_forks, loop_of_messages, two_ways, leaves, nested_loops, forks_in_arms, arms_in_forks,
    some_branches_have_it, messages_in_arms,
    a_message_more, inside_a_message, calls_in_arms,
]  # fmt: skip
ROWS = [f"question {k}" for k in range(12)]


def test_loops_that_cannot_be_merged_run_interpreted() -> None:
    compiled = breaks_out.compile()
    for q in ROWS:
        one, two = sgl.Scripted(), sgl.Scripted()
        assert seen(compiled.run(q=q, backend=two)) == seen(breaks_out.run(q=q, backend=one))
        assert calls(two) == calls(one)
    (stop,) = compiled.breaks
    assert "cannot be said as one" in stop.reason and stop.at is not None
    assert stop.at.file == __file__ and stop.at.line > breaks_out.func.__code__.co_firstlineno


def seen(state: Any) -> dict[str, Any]:
    variables = state.sink.variables()
    return {
        "text": state.text(),
        "messages": state.messages(),
        "variables": variables,
        "result": state.ret_value,
        "meta": {n: (state.get_meta_info(n) or {}).get("completion_tokens") for n in variables},
        "error": str(state.error()),
    }


def calls(backend: sgl.Scripted) -> Counter[Any]:
    return Counter(
        (repr(c.prompt), repr(c.sampling)) if isinstance(c, Generate) else (repr(c.prompt), repr(c.choices))
        for c in backend.calls
    )


@pytest.mark.parametrize("template", ["default", "chatml"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_compiled_equals_interpreted(program: Any, template: str) -> None:
    compiled = program.compile(verify=True)
    texts = set()
    for q in ROWS:
        one, two = sgl.Scripted(chat_template=template), sgl.Scripted(chat_template=template)
        expected, found = seen(program.run(q=q, backend=one)), seen(compiled.run(q=q, backend=two))
        assert found == expected
        assert calls(two) == calls(one)
        texts.add(tuple(expected["variables"]))
    assert compiled.breaks == []
    if program is not dispatched:
        ways = [n for m in compiled.modules() for g in m.graphs.values() for n in g.walk()]
        assert any(isinstance(n, (If, Loop)) for n in ways), "nothing was decided by the model"


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_streams_and_batches_take_the_same_way(program: Any) -> None:
    compiled = program.compile()
    for q in ROWS[:4]:
        whole = program.run(q=q, backend=sgl.Scripted())
        stream = compiled.run(q=q, backend=sgl.Scripted(), stream=True)
        assert "".join(stream.text_iter()) == whole.text()
        for name in whole.sink.variables():
            again = compiled.run(q=q, backend=sgl.Scripted(), stream=True)
            if isinstance(whole[name], str):
                assert "".join(again.text_iter(name)) == whole[name]
    rows = [{"q": q} for q in ROWS]
    one, two = sgl.Scripted(), sgl.Scripted()
    assert [seen(s) for s in compiled.run_batch(rows, backend=two)] == [
        seen(program.run(q=q, backend=one)) for q in ROWS
    ]
    assert calls(two) == calls(one)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_text_json_and_bounds(program: Any) -> None:
    from sglc.lang.chat_template import get_chat_template

    module = program.trace()
    assert str(parse_module(str(module))) == str(module)
    plan = lower(module, get_chat_template("default"))
    verify(plan)
    assert from_json(to_json(plan)) == plan
    limit = bounds_of(plan, max_tokens=16)
    for q in ROWS:
        backend = sgl.Scripted()
        program.run(q=q, backend=backend, max_new_tokens=16).sync()
        assert len(backend.calls) <= limit.calls


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_failing_calls_fail_the_same_run(program: Any) -> None:
    """The same error at the same place. Whether a read raises it or the state has it may depend on which is first."""
    compiled = program.compile(passes="canonicalize")

    def error(runner: Any, q: str, wrong: str) -> str:
        try:
            state = runner.run(q=q, backend=sgl.Scripted(fail_on=wrong))
            return str(state.error())
        except RunError as raised:
            return str(raised)

    failed = 0
    for q in ROWS[:5]:
        for wrong in ("w1", "yes", "done", "question 3"):
            expected = error(program, q, wrong)
            assert error(compiled, q, wrong) == expected
            failed += expected != "None"
    assert failed
