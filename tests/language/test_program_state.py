"""What programs can say and read, on the scripted backend: the semantics that users rely on."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import sglc as sgl
from runtime.api import Generate, Score
from runtime.backends.base import Capabilities
from sglc.errors import RunError


def scripted(**options: Any) -> sgl.Scripted:
    return sgl.Scripted(**options)


def generates(backend: sgl.Scripted) -> list[Generate]:
    return [c for c in backend.calls if isinstance(c, Generate)]


def test_text_and_variables_are_in_order() -> None:
    @sgl.function
    def program(s, q):
        s += "Q: " + q + "\nA:" + sgl.gen("a", max_tokens=2) + "!"
        s += sgl.gen("b")
        return s["a"]

    state = program.run("why?", backend=scripted(replies={"A:": " because", "!": " so"}))
    assert state.text() == "Q: why?\nA: because! so"
    assert (state["a"], state["b"], state.ret_value) == (" because", " so", " because")
    assert state.error() is None
    assert repr(state) == f"ProgramState({state.text()})"


def test_generated_tokens_are_sent_back_as_they_were() -> None:
    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x") + "b" + sgl.gen("y")

    backend = scripted()
    state = program.run(backend=backend)
    state.sync()
    second = generates(backend)[1].prompt
    assert [type(p).__name__ for p in second] == ["TextSegment", "TokenSegment", "TextSegment"]
    assert second[1].text == state["x"]


def test_a_stop_of_gen_replaces_that_of_run_and_templates_add_theirs() -> None:
    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x") + sgl.gen("y", stop="Y", temperature=0, max_tokens=7)

    backend = scripted(chat_template="chatml")
    program.run(stop=["R"], max_new_tokens=9, temperature=0.5, backend=backend).sync()
    first, second = (c.sampling for c in generates(backend))
    assert (first.stop, first.max_new_tokens, first.temperature) == (("R", "<|im_end|>"), 9, 0.5)
    assert (second.stop, second.max_new_tokens, second.temperature) == (("Y", "<|im_end|>"), 7, 0.0)


def test_unnamed_gens_are_found_under_none() -> None:
    @sgl.function
    def program(s):
        s += "a" + sgl.gen() + "b" + sgl.gen()

    state = program.run(backend=scripted(replies={"a": "1", "b": "2"}))
    assert state[None] == "2"


def test_unknown_names_raise_key_error_and_in_does_not_wait() -> None:
    gate = threading.Event()

    class Slow(sgl.Scripted):
        async def generate(self, requests: Any) -> Any:
            await asyncio.to_thread(gate.wait, 5)
            async for delta in super().generate(requests):
                yield delta

    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x")
        found.append("x" in s)
        gate.set()

    found: list[bool] = []
    state = program.run(backend=Slow())
    state.sync()
    assert found == [False] and "x" in state
    with pytest.raises(KeyError):
        state["nope"]


@pytest.mark.parametrize("value", [None, 3, 2.5, ["a"]])
def test_only_text_and_pieces_can_be_appended(value: Any) -> None:
    @sgl.function
    def program(s):
        s += value

    with pytest.raises((ValueError, TypeError)):
        program.run(backend=scripted())


def test_roles_in_every_form_say_the_same() -> None:
    @sgl.function
    def as_functions(s):
        s += sgl.system("S") + sgl.user("U" + sgl.gen("u")) + sgl.assistant(sgl.gen("a"))

    @sgl.function
    def as_methods(s):
        s.system("S")
        s += s.user("U" + sgl.gen("u"))  # appended once, although `+=` is written
        s.assistant(sgl.gen("a"))

    @sgl.function
    def as_blocks(s):
        with s.system():
            s += "S"
        with s.user():
            s += "U" + sgl.gen("u")
        with s.assistant():
            s += sgl.gen("a")

    @sgl.function
    def as_markers(s):
        s += (
            sgl.system_begin()
            + "S"
            + sgl.system_end()
            + sgl.user_begin()
            + "U"
            + sgl.gen("u")
            + sgl.user_end()
        )
        s += sgl.assistant_begin() + sgl.gen("a") + sgl.assistant_end()

    states = [
        p.run(backend=scripted(chat_template="chatml"))
        for p in (as_functions, as_methods, as_blocks, as_markers)
    ]
    assert len({s.text() for s in states}) == 1
    assert states[0].text().startswith("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU")
    assert [m["role"] for m in states[0].messages()] == ["system", "user", "assistant"]
    assert states[0].messages()[2]["content"] == states[0]["a"].lstrip()


def test_a_default_system_prompt_is_inserted() -> None:
    @sgl.function
    def program(s):
        s += sgl.user("hi") + sgl.assistant(sgl.gen("a"))

    state = program.run(backend=scripted(chat_template="qwen"))
    assert state.messages()[0] == {"role": "system", "content": "You are a helpful assistant."}
    assert state.text().startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nhi"
    )


def test_nested_roles_are_an_error_with_a_line() -> None:
    @sgl.function
    def program(s):
        s += sgl.user_begin() + sgl.system("no")

    error = program.run(backend=scripted()).error()
    assert (
        isinstance(error, RunError) and "Nested roles are not allowed" in str(error) and ".py:" in str(error)
    )


def test_var_scope_and_reading_it_too_early() -> None:
    @sgl.function
    def program(s):
        s += "x"
        with s.var_scope("v"):
            s += "a" + sgl.gen("g") + "b"
        return s["v"]

    state = program.run(backend=scripted(replies={"a": "-"}))
    assert state.ret_value == "a-b"

    @sgl.function
    def early(s):
        with s.var_scope("v"):
            s += "a"
            s["v"]

    with pytest.raises(RunError, match="read while it is open"):
        early.run(backend=scripted())


def test_fork_copies_and_join_gathers_new_names() -> None:
    @sgl.function
    def program(s):
        s += "p"
        s["old"] = "kept"
        forks = s.fork(3)
        for i, f in enumerate(forks):
            f += f" {i}" + sgl.gen("g")
            f["old"] = "changed"
        forks.join()
        return len(forks)

    state = program.run(backend=scripted(replies={"p 0": "zero", "p 1": "one", "p 2": "two"}))
    assert state["g"] == ["zero", "one", "two"] and state["old"] == "kept"
    assert state.text() == "p" and state.ret_value == 3


def test_join_can_append_the_texts() -> None:
    @sgl.function
    def program(s):
        s += "p"
        forks = s.fork(2)
        forks += lambda i: f" {i}" + sgl.gen("g")
        forks.join("concate_and_append")
        s += "." + sgl.gen("end")

    state = program.run(backend=scripted(replies={"p 0": "zero", "p 1": "one", ".": "!"}))
    assert state.text() == "p 0zero 1one.!"


def test_groups_take_pieces_lists_and_functions_but_no_text() -> None:
    @sgl.function
    def program(s):
        forks = s.fork(2)
        forks += sgl.gen("x")
        forks += ["a", "b"]
        with pytest.raises(ValueError, match="Invalid value"):
            forks += "text"
        return [f.text() for f in forks]

    texts = program.run(backend=scripted(replies={"": "v"})).ret_value
    assert texts == ["va", "vb"]


def test_copy_gives_one_element_lists() -> None:
    @sgl.function
    def program(s):
        s += "p"
        with s.copy() as c:
            c += sgl.gen("x")

    assert program.run(backend=scripted(replies={"p": "v"}))["x"] == ["v"]


def test_nested_forks_and_empty_forks() -> None:
    @sgl.function
    def program(s):
        s += "a"
        for f in s.fork(2):
            f += sgl.gen("x")
            inner = f.fork(2)
            inner += sgl.gen("y")
            inner.join()
        assert len(s.fork(0)) == 0
        return [f["y"] for f in [f]]

    assert len(program.run(backend=scripted()).ret_value[0]) == 2


def test_select_takes_the_best_choice_and_the_first_of_equals() -> None:
    @sgl.function
    def program(s, choices):
        s += "pick" + sgl.select("c", choices)

    assert program.run(["a", "b"], backend=scripted(replies={"pick": "b"}))["c"] == "b"
    assert program.run(["x", "x"], backend=scripted())["c"] == "x"
    meta = program.run(["a", "b"], backend=scripted()).get_meta_info("c")
    assert meta is not None and len(meta["normalized_prompt_logprobs"]) == 2
    with pytest.raises(ValueError, match="empty"):
        sgl.select("c", [])
    with pytest.raises(AssertionError):
        sgl.select("c")


def test_gen_with_choices_is_a_select_and_n_gives_a_list() -> None:
    @sgl.function
    def program(s):
        s += "p" + sgl.gen("c", choices=["a", "b"], max_tokens=3) + "|" + sgl.gen("many", n=3)

    backend = scripted()
    state = program.run(backend=backend)
    assert state["c"] in ("a", "b") and isinstance(backend.calls[0], Score)
    assert len(state["many"]) == 3 and state.text().endswith("|" + state["many"][0])


def test_nested_calls_inherit_the_backend_but_not_the_sampling() -> None:
    @sgl.function
    def inner(s, x):
        s += x + sgl.gen("i")
        return s["i"]

    @sgl.function
    def outer(s):
        s += "o" + inner("in").ret_value + sgl.gen("o")

    backend = scripted()
    outer.run(backend=backend, temperature=0.25).sync()
    assert [c.sampling.temperature for c in generates(backend)] == [1.0, 0.25]


def test_errors_never_hang_and_say_where() -> None:
    @sgl.function
    def program(s):
        s += "good" + sgl.gen("a")
        s += "bad" + sgl.gen("b")
        s += "more" + sgl.gen("c")

    state = program.run(backend=scripted(fail_on="bad"))
    error = state.error()
    assert (
        isinstance(error, RunError)
        and "test_program_state.py:" in str(error)
        and "the script fails" in str(error)
    )
    for name in ("a", "b", "c"):
        with pytest.raises(RunError):
            state[name]
    state += "ignored" + sgl.gen("d")
    with pytest.raises(RunError):
        state["d"]
    assert state.text().startswith("good") and "ignored" not in state.text()
    with pytest.raises(RunError):
        program.run(backend=scripted(fail_on="bad"), raise_on_error=True)


def test_an_error_before_a_fork_reaches_the_branches() -> None:
    @sgl.function
    def program(s):
        s += "bad" + sgl.gen("a")
        forks = s.fork(2)
        forks += sgl.gen("b")
        return forks

    forks = program.run(backend=scripted(fail_on="bad")).ret_value
    for f in forks:
        assert isinstance(f.error(), RunError)
        with pytest.raises(RunError):
            f["b"]


def test_what_a_backend_cannot_do_is_refused_before_anything_is_sent() -> None:
    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x", regex="[0-9]+")

    backend = scripted(capabilities=Capabilities(name="plain"))
    error = program.run(backend=backend).error()
    assert isinstance(error, RunError) and "enforces no constraints" in str(error) and not backend.calls

    @sgl.function
    def chooses(s):
        s += "a" + sgl.select("x", ["a", "b"])

    error = chooses.run(backend=backend).error()
    assert "gives no log-probabilities" in str(error)


def test_streams_add_up_late_and_repeated() -> None:
    @sgl.function
    def program(s):
        s += "Q:" + sgl.gen("a") + " then " + sgl.select("c", ["x", "y"]) + sgl.gen("b")

    state = program.run(backend=scripted(), stream=True)
    assert "".join(state.text_iter()) == state.text()
    for name in ("a", "b", "c"):
        assert "".join(state.text_iter(name)) == state[name]
        assert "".join(state.text_iter(name)) == state[name]
    plain = program.run(backend=scripted())
    assert list(plain.text_iter()) == [plain.text()] and list(plain.text_iter("a")) == [plain["a"]]


async def test_async_streams_carry_meta_info() -> None:
    @sgl.function
    def program(s):
        s += "Q:" + sgl.gen("a")

    state = program.run(backend=scripted(length=8), stream=True)
    pairs = [pair async for pair in state.text_async_iter("a", return_meta_data=True)]
    assert "".join(text for text, _ in pairs) == state["a"] and all("id" in meta for _, meta in pairs)


def test_a_stream_of_a_failing_program_ends_with_its_error() -> None:
    @sgl.function
    def program(s):
        s += "ok" + sgl.gen("a")
        raise KeyError("mine")

    state = program.run(backend=scripted(), stream=True)
    with pytest.raises(RunError, match="mine"):
        list(state.text_iter())
    assert isinstance(state.error(), RunError)


def test_batches_keep_order_and_isolate_errors() -> None:
    @sgl.function
    def program(s, x, y="d"):
        s += f"{x}{y}" + sgl.gen("a")
        if x == "raise":
            raise KeyError(x)
        return x

    rows = [{"x": "a"}, {"x": "bad"}, {"x": "c", "y": "e"}]
    states = program.run_batch(rows, backend=scripted(fail_on="bad"))
    assert [s.ret_value for s in states] == ["a", "bad", "c"]
    assert [s.error() is None for s in states] == [True, False, True]
    assert [s.text()[:2] for s in program.run_batch([("a", "b"), ("c", "d")], backend=scripted())] == [
        "ab",
        "cd",
    ]
    assert program.run_batch([], backend=scripted()) == []
    with pytest.raises(AssertionError):
        program.run_batch("ab", backend=scripted())
    with pytest.raises(Exception, match="mismatch"):
        program.run_batch([(1, 2, 3)], backend=scripted())
    mixed = program.run_batch([{"x": "a"}, {"x": "raise"}], backend=scripted(), return_exceptions=True)
    assert mixed[0].ret_value == "a" and isinstance(mixed[1], KeyError)
    with pytest.raises(KeyError):
        program.run_batch([{"x": "a"}, {"x": "raise"}], backend=scripted(), num_threads=1)


def test_a_batch_runs_each_body_once() -> None:
    runs = []

    @sgl.function
    def program(s, x):
        runs.append(x)
        s += (
            "a long common text that would be worth a call of its own, since it has many characters"
            + x
            + sgl.gen("a")
        )

    program.run_batch([{"x": str(i)} for i in range(5)], backend=scripted())
    assert sorted(runs) == ["0", "1", "2", "3", "4"]


async def test_async_runs() -> None:
    @sgl.function
    def program(s, x):
        s += x + sgl.gen("a")

    states = await asyncio.gather(*(program.arun(str(i), backend=scripted()) for i in range(5)))
    assert [s.text()[0] for s in states] == ["0", "1", "2", "3", "4"]
    assert len(await program.arun_batch([{"x": "a"}] * 3, backend=scripted())) == 3


def test_bind_defaults_and_bad_programs() -> None:
    @sgl.function(num_api_spec_tokens=7)
    def program(s, x, y="d"):
        s += x + y + sgl.gen("a")

    bound = program.bind(x="B")
    assert bound.num_api_spec_tokens == 7
    assert bound.run(backend=scripted()).text().startswith("Bd")
    with pytest.raises(AssertionError, match="no argument 'z'"):
        program.bind(z=1)
    with pytest.raises(TypeError, match="program: missing a required argument: 'x'"):
        program.run(backend=scripted())
    with pytest.raises(AssertionError, match="first argument of a program must be `s`"):
        sgl.function(lambda x: x)
    with pytest.raises(AssertionError, match="Please specify a backend"):
        program.run("x")


def test_a_default_backend_is_used_and_endpoints_are_unwrapped() -> None:
    class Front:
        endpoint = scripted()

    @sgl.function
    def program(s):
        s += "x" + sgl.gen("a")

    sgl.set_default_backend(Front())
    try:
        assert program.run()["a"]
        assert sgl.flush_cache() is True
    finally:
        sgl.set_default_backend(None)
    assert sgl.flush_cache() is False


def test_bad_arguments_of_gen_are_refused_where_they_are_written() -> None:
    import re

    with pytest.raises(re.error):
        sgl.gen("x", regex="[")
    with pytest.raises(ValueError, match="dtype"):
        sgl.gen("x", dtype=dict)
    with pytest.raises(ValueError, match="n=0"):
        sgl.gen("x", n=0)
    assert sgl.gen("x", choices=[]).spec.name == "x"


def test_an_error_that_nobody_looked_at_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    import gc

    @sgl.function
    def program(s):
        s += "bad" + sgl.gen("a")

    state = program.run(backend=scripted(fail_on="bad"))
    state.sync()
    del state
    gc.collect()
    assert "nobody looked at its error" in caplog.text and "the script fails on 'bad'" in caplog.text
    caplog.clear()
    state = program.run(backend=scripted(fail_on="bad"))
    assert state.error() is not None
    del state
    gc.collect()
    assert "nobody" not in caplog.text
