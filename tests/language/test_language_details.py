"""Details of the language that programs of the field rely on, and that are easily lost."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
from typing import Any

import msgspec
import pytest

import sglc as sgl
from runtime.api import ChoiceScore, ScoreResult, TokenLogprob
from sglc.errors import RunError
from sglc.exec.conversation import media_type
from sglc.lang.chat_template import (
    ChatTemplate,
    get_chat_template,
    matching_function_registry,
    register_chat_template_matching_function,
)
from sglc.lang.choices import METHODS, decide

CHAT = msgspec.structs.replace(sgl.Scripted().capabilities, images=True, chat_only=True, prefill=False)


def runs(program: Any) -> list[Any]:
    return [program.run, program.compile().run]


# -- gen ------------------------------------------------------------------------------------------------------


def test_the_order_of_the_arguments_of_gen() -> None:
    wanted = (
        "name max_tokens min_tokens stop stop_token_ids temperature top_p top_k min_p frequency_penalty presence_penalty "
        "ignore_eos return_logprob logprob_start_len top_logprobs_num return_text_in_logprobs dtype choices "
        "choices_method regex json_schema"
    ).split()
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    kinds = inspect.signature(sgl.gen).parameters.values()
    assert [p.name for p in kinds if p.kind is positional] == wanted
    left_out = {"min_tokens", "dtype", "choices", "choices_method", "regex", "json_schema"}
    for typed in (sgl.gen_int, sgl.gen_string):
        kinds = inspect.signature(typed).parameters.values()
        assert [p.name for p in kinds if p.kind is positional] == [n for n in wanted if n not in left_out]


def test_every_argument_of_a_typed_gen_arrives() -> None:
    spec = sgl.gen_int(
        "x", 9, "END", [7], 0.5, 0.9, 40, 0.05, 0.1, 0.2, True, True, 0, 2, True, n=2, seed=5
    ).spec
    plain = sgl.gen(
        "x", 9, None, "END", [7], 0.5, 0.9, 40, 0.05, 0.1, 0.2, True, True, 0, 2, True, n=2, seed=5
    )
    assert isinstance(plain, type(sgl.gen("y"))) and spec.sampling == plain.spec.sampling
    assert (spec.name, spec.n, spec.dtype) == ("x", 2, "int")
    with pytest.raises(TypeError):
        sgl.gen_int("x", min_tokens=3)


@pytest.mark.parametrize("other", [{"dtype": int}, {"regex": "[0-9]"}])
def test_a_schema_beside_another_constraint_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(other))} and json_schema cannot be given together"):
        sgl.gen("x", json_schema="{}", **other)


@pytest.mark.parametrize(
    "other", [{"regex": "[0-9]"}, {"json_schema": "{}"}, {"ebnf": 'root ::= "a"'}, {"type": int}]
)
def test_choices_beside_another_constraint_are_refused(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"choices and {next(iter(other))} cannot be given together"):
        sgl.gen("x", choices=["a", "b"], **other)
    assert isinstance(sgl.gen("x", choices=[], **other), type(sgl.gen("y")))  # as if they were not given


def test_a_model_is_no_json_schema() -> None:
    with pytest.raises(TypeError, match=r"gen\(json_schema=...\): .* use type="):
        sgl.gen("x", json_schema=int)


@pytest.mark.parametrize("piece", [sgl.gen("a"), sgl.select("c", ["x"]), sgl.user("x")])
def test_a_piece_in_an_f_string_is_refused_and_not_written_out(piece: Any) -> None:
    @sgl.function
    def ask(s):  # type: ignore[no-untyped-def]
        s += f"answer: {piece}"

    for run in runs(ask):
        with pytest.raises(TypeError, match="cannot stand in an f-string: append it with"):
            run(backend=sgl.Scripted())
    assert "a" in f"{sgl.gen('a')!r}"


def test_a_schema_may_be_a_dict() -> None:
    assert sgl.gen("a", json_schema={"type": "integer"}) == sgl.gen("a", json_schema='{"type": "integer"}')


# -- states ---------------------------------------------------------------------------------------------------


def test_meta_info_is_waited_for_no_longer_than_asked() -> None:
    held = threading.Event()

    def hold(prompt: str) -> str:
        held.wait(30)
        return "done"

    backend = sgl.Scripted({"Q": hold})

    @sgl.function
    def ask(s):  # type: ignore[no-untyped-def]
        s += "Q" + sgl.gen("a")

    for run in runs(ask):
        held.clear()
        state = run(backend=backend, stream=True)
        with pytest.raises(TimeoutError, match=r"0\.01 s"):
            state.get_meta_info("a", timeout=0.01)
        held.set()
        assert state.get_meta_info("a", timeout=30)["completion_tokens"] == 1


def test_a_scope_is_read_too_early_by_its_body_and_in_time_by_readers_of_a_stream() -> None:
    entered, goes_on = threading.Event(), threading.Event()

    @sgl.function
    def early(s):  # type: ignore[no-untyped-def]
        with s.var_scope("v"):
            s += "Q"
            s["v"]

    @sgl.function
    def slow(s):  # type: ignore[no-untyped-def]
        with s.var_scope("v"):
            entered.set()
            goes_on.wait(30)
            s += "Q"

    with pytest.raises(RunError, match="the scope 'v' is read while it is open"):
        list(early.run(backend=sgl.Scripted(), stream=True).text_iter())
    state = slow.run(backend=sgl.Scripted(), stream=True)
    entered.wait(30)
    threading.Timer(0.05, goes_on.set).start()
    assert state["v"] == "Q"


def test_an_unknown_join_is_refused_in_any_run() -> None:
    @sgl.function
    def ask(s):  # type: ignore[no-untyped-def]
        s.fork(2).join("append")

    for run in runs(ask):
        with pytest.raises(ValueError, match=r"test_language_details.py:\d+: join\(mode='append'\)"):
            run(backend=sgl.Scripted())


def test_an_image_of_an_open_message_goes_into_the_branches() -> None:
    @sgl.function
    def look(s):  # type: ignore[no-untyped-def]
        s += sgl.user_begin() + sgl.image(b"GIF89a...") + "look "
        forks = s.fork(2)
        forks += lambda i: f"at {i}" + sgl.user_end() + sgl.assistant(sgl.gen("a"))
        return [f.messages()[0]["content"][1]["image_url"]["url"] for f in forks]

    for run in runs(look):
        backend = sgl.Scripted(capabilities=CHAT)
        state = run(backend=backend)
        assert all(url.startswith("data:image/gif;base64,") for url in state.ret_value)
        assert all([p["type"] for p in c.messages[0].content] == ["text", "image_url"] for c in backend.calls)


def test_an_image_before_a_gen_in_the_same_message_is_sent() -> None:
    @sgl.function
    def look(s):  # type: ignore[no-untyped-def]
        s += sgl.assistant(sgl.image(b"\x89PNG...") + sgl.gen("a"))

    for run in runs(look):
        backend = sgl.Scripted(capabilities=CHAT)
        run(backend=backend).sync()
        assert [p["type"] for p in backend.calls[0].messages[-1].content] == ["text", "image_url"]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\xff\xd8\xff\xe0", "jpeg"),
        (b"GIF89a", "gif"),
        (b"\x89PNG\r\n", "png"),
        (b"RIFF1234WEBPVP8 ", "webp"),
        (b"?", "png"),
    ],
)
def test_images_are_told_by_how_they_begin(data: bytes, kind: str) -> None:
    assert media_type(data) == f"image/{kind}"


def test_a_model_that_sees_no_images_is_not_shown_one_in_any_run() -> None:
    @sgl.function
    def look(s, q):  # type: ignore[no-untyped-def]
        s += q + sgl.image(b"\x89PNG...") + sgl.gen("a")

    compiled = look.compile()
    for batch in (look.run_batch, compiled.run_batch):
        backend = sgl.Scripted()
        (state,) = batch([{"q": "Q"}], backend=backend)
        assert "sees no images" in str(state.error()) and state.text() == "Q" and backend.calls == []
    (found,) = compiled.breaks
    assert "sees no images" in found.reason and found.at.file == __file__
    sighted = sgl.Scripted(capabilities=msgspec.structs.replace(sgl.Scripted().capabilities, images=True))
    assert compiled.run("Q", backend=sighted).error() is None


def test_messages_of_branches_that_are_appended_are_messages() -> None:
    @sgl.function
    def ask(s):  # type: ignore[no-untyped-def]
        s += sgl.system("S")
        forks = s.fork(2)
        forks += lambda i: sgl.user(f"{i}") + sgl.assistant(sgl.gen("a"))
        forks.join("concate_and_append")
        s += sgl.user("z") + sgl.assistant(sgl.gen("b"))

    for run in runs(ask):
        backend = sgl.Scripted({"z": "last", "0": "zero", "1": "one"}, capabilities=CHAT)
        state = run(backend=backend)
        said = [(m["role"], m["content"]) for m in state.messages()]
        assert said == [
            ("system", "S"),
            ("user", "0"),
            ("assistant", "zero"),
            ("user", "1"),
            ("assistant", "one"),
            ("user", "z"),
            ("assistant", "one"),
        ]
        assert [m.content for m in backend.calls[-1].messages] == ["S", "0", "zero", "1", "one", "z"]
        assert state.text() == get_chat_template("default").get_prompt(state.messages())


def test_images_of_branches_that_are_appended_are_of_the_open_message() -> None:
    @sgl.function
    def look(s):  # type: ignore[no-untyped-def]
        s += sgl.user_begin() + "look "
        forks = s.fork(2)
        forks += lambda i: sgl.image(b"\x89PNG" + bytes([i])) + f"{i}"
        forks.join("concate_and_append")
        s += sgl.user_end() + sgl.assistant(sgl.gen("a"))

    for run in runs(look):
        backend = sgl.Scripted(capabilities=CHAT)
        content = run(backend=backend).messages()[0]["content"]
        assert [p["type"] for p in content] == ["text", "image_url", "image_url"]
        assert backend.calls[0].messages[0].content == content


def test_messages_that_a_condition_decides_are_appended_interpreted() -> None:
    @sgl.function
    def ask(s, q):  # type: ignore[no-untyped-def]
        forks = s.fork(2)
        for f in forks:
            f += sgl.user(q) + sgl.assistant(sgl.select("c", ["x", "y"]))
            if f["c"] == "x":
                f += sgl.user("more")
        forks.join("concate_and_append")
        s += sgl.user("end")

    compiled = ask.compile()
    for kind in ("x", "y"):
        one, two = (p.run("Q", backend=sgl.Scripted({"Q": kind})) for p in (ask, compiled))
        assert one.messages() == two.messages() and len(one.messages()) == (7 if kind == "x" else 5)
    (found,) = compiled.breaks
    assert found.at.file == __file__ and "messages a condition or a loop decides" in found.reason


@pytest.mark.parametrize("looked_at", [False, True])
def test_an_error_is_logged_once_if_nobody_looked_at_it(looked_at: bool, caplog: Any) -> None:
    @sgl.function
    def ask(s):  # type: ignore[no-untyped-def]
        s += "BOOM" + sgl.gen("a")

    for run in runs(ask):
        caplog.clear()
        state = run(backend=sgl.Scripted(fail_on="BOOM"))
        state.sync()
        if looked_at:
            assert state.error() is not None
        del state
        gc.collect()
        told = [r for r in caplog.records if "nobody looked at its error" in r.getMessage()]
        assert len(told) == (0 if looked_at else 1)


# -- programs and streams -------------------------------------------------------------------------------------


async def coroutine(s: Any) -> None:
    s += "x"


def generator(s: Any) -> Any:
    yield s


def many(s: Any, *words: str) -> None:
    s += words[0]


def any_name(s: Any, **fields: str) -> None:
    s += str(fields)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (coroutine, "coroutine is async, so calling it runs nothing of it: write a plain def"),
        (generator, "generator is a generator"),
        (many, r"the argument `\*words: 'str'` of many cannot be given by name"),
        (any_name, r"the argument `\*\*fields: 'str'` of any_name"),
    ],
)
def test_functions_that_a_run_cannot_call_are_no_programs(body: Any, told: str) -> None:
    with pytest.raises(TypeError, match=told):
        sgl.function(body)


def test_the_last_chunk_of_a_variable_tells_why_it_ended() -> None:
    @sgl.function
    def ask(s):  # type: ignore[no-untyped-def]
        s += "Q" + sgl.gen("a", max_tokens=2)

    for run in runs(ask):
        state = run(backend=sgl.Scripted({"Q": "one two three"}), stream=True)

        async def pairs(state: Any = state) -> list[Any]:
            return [pair async for pair in state.text_async_iter("a", return_meta_data=True)]

        found = asyncio.run(pairs())
        assert found[-1][1]["finish_reason"] == {"type": "length", "length": 2}
        assert found[-1][1] == state.get_meta_info("a") and "".join(t for t, _ in found) == "one two"
        assert list(state.text_iter("a")) == ["one", " two"]


# -- choices --------------------------------------------------------------------------------------------------


def scored(*choices: list[tuple[float | None, float | None]]) -> ScoreResult:
    """Log-probabilities with and without the prompt, token by token."""
    made = []
    for tokens in choices:
        given = tuple(TokenLogprob(g, k) for k, (g, _) in enumerate(tokens))
        without = tuple(TokenLogprob(u, k) for k, (_, u) in enumerate(tokens))
        made.append(ChoiceScore(given, without))
    return ScoreResult(tuple(made))


def test_methods_differ_as_they_should() -> None:
    result = scored(
        [(-0.1, None)],
        [(-0.2, None), (-0.2, -1.4)],
        [(-0.1, None), (-0.05, -0.1), (0.0, 0.1)],
    )
    choices = ("organ", "organism", "antidote")
    found = {name: decide(method, choices, result).decision for name, method in METHODS.items()}
    assert found == {
        "token_length_normalized": "antidote",
        "greedy_token_selection": "antidote",
        "unconditional_likelihood_normalized": "organism",
    }
    meta = decide(METHODS["unconditional_likelihood_normalized"], choices, result).meta_info
    assert meta is not None
    assert meta["normalized_unconditional_prompt_logprobs"] == pytest.approx([-0.1, 0.5, -0.05])


@pytest.mark.parametrize("name", list(METHODS))
def test_equal_choices_and_tokens_without_a_score(name: str) -> None:
    tie = scored([(-1.0, -2.0)], [(-1.0, -2.0)])
    assert decide(METHODS[name], ("b", "a"), tie).decision == "b"
    bare = scored([(None, None), (-3.0, -3.5)], [(None, None), (-1.0, -2.0)])
    assert decide(METHODS[name], ("x", "y"), bare).decision == "y"


# -- templates and settings -----------------------------------------------------------------------------------


def test_a_stop_string_of_a_template_is_not_its_letters() -> None:
    assert ChatTemplate("mine", None, {}, "<|end|>").stop_str == ("<|end|>",)  # type: ignore[arg-type]


def test_registering_a_matching_function_gives_it_back() -> None:
    def rule(path: str) -> ChatTemplate | None:
        return get_chat_template("chatml") if path == "only-here" else None

    assert register_chat_template_matching_function(rule) is rule
    matching_function_registry.remove(rule)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("verbosty", "did you mean 'verbosity'"),
        ("flashinfer_workspace_size", r"given to it: Engine\("),
        ("enable_parallel_encoding", "a join appends the text"),
    ],
)
def test_a_setting_without_effect_cannot_be_made(name: str, told: str) -> None:
    with pytest.raises(AttributeError, match=told):
        setattr(sgl.global_config, name, 1)


def test_texts_are_printed_after_every_run(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    @sgl.function
    def ask(s, q):  # type: ignore[no-untyped-def]
        s += q + sgl.gen("a")

    monkeypatch.setattr(sgl.global_config, "verbosity", 2)
    for program in (ask, ask.compile()):
        program.run("Q", backend=sgl.Scripted({"Q": "1", "R": "2"}))
        program.run_batch([{"q": "Q"}, {"q": "R"}], backend=sgl.Scripted({"Q": "1", "R": "2"}), num_threads=1)
        assert capsys.readouterr().out.split() == ["Q1", "Q1", "R2"]
