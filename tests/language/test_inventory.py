"""The feature table, row by row: one short program for each, run interpreted and compiled where both apply.

Details of a feature are tested where it lives; here each is shown to be there, through the public names only.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sglc as sgl
from runtime.api import ImageSegment, render
from sglc.errors import RunError
from sglc.lang.chat_template import (
    chat_template_registry,
    get_chat_template,
    get_chat_template_by_model_path,
    register_chat_template_matching_function,
)
from sglc.lang.choices import ChoicesDecision, ChoicesSamplingMethod


def everything(state: Any) -> tuple[Any, ...]:
    """What a run has made."""
    return state.text(), state.messages(), state.sink.variables(), state.ret_value, str(state.error())


def both(program: Any, *args: Any, **fields: Any) -> tuple[Any, sgl.Scripted]:
    """The interpreted run and its backend; a compiled one must be the same, calls included."""
    given = fields.pop("scripted", {})
    one, two = sgl.Scripted(**given), sgl.Scripted(**given)
    state = program.run(*args, backend=one, **fields)
    other = program.compile().run(*args, backend=two, **fields)
    assert everything(other) == everything(state)
    assert sorted(render(c.prompt) for c in two.calls) == sorted(render(c.prompt) for c in one.calls)
    return state, one


@pytest.fixture(scope="module")
def engine() -> Iterator[sgl.Engine]:
    with sgl.Engine(random_seed=0) as made:
        yield made


def test_row_01_decorated_functions_with_positional_and_keyword_arguments() -> None:
    @sgl.function
    def tip(s, topic, count=2):  # type: ignore[no-untyped-def]
        s += f"{count} tips on {topic}:" + sgl.gen("tips")
        return s["tips"]

    state, _ = both(tip, "sleep")
    assert both(tip, topic="sleep", count=2)[0].text() == state.text() and state.ret_value == state["tips"]
    assert tip.run("food", 3, backend=sgl.Scripted()).text().startswith("3 tips on food:")
    assert tip("food", backend=sgl.Scripted())["tips"]


def test_row_02_run_batch_takes_dicts_tuples_threads_and_a_progress_bar(capsys: Any) -> None:
    @sgl.function
    def ask(s, q, mark="?"):  # type: ignore[no-untyped-def]
        s += q + mark + sgl.gen("a")

    one = ask.run_batch([{"q": "x"}, {"q": "y", "mark": "!"}], backend=sgl.Scripted(), num_threads=1)
    many = ask.run_batch([("x", "?"), ("y", "!")], backend=sgl.Scripted(), num_threads=2, progress_bar=True)
    compiled = ask.compile().run_batch([{"q": "x"}, {"q": "y", "mark": "!"}], backend=sgl.Scripted())
    assert [s.text() for s in one] == [s.text() for s in many] == [s.text() for s in compiled]
    assert "2/2" in capsys.readouterr().err and ask.run_batch([], backend=sgl.Scripted()) == []


def test_row_03_streams_synchronous_and_asynchronous() -> None:
    @sgl.function
    def ask(s, q):  # type: ignore[no-untyped-def]
        s += q + sgl.gen("a")

    for program in (ask, ask.compile()):
        state = program.run("Q", backend=sgl.Scripted(length=8), stream=True)
        assert "".join(state.text_iter()) == state.text()

        async def chunks(state: Any = state) -> list[Any]:
            return [pair async for pair in state.text_async_iter("a", return_meta_data=True)]

        found = asyncio.run(chunks())
        assert "".join(text for text, _ in found) == state["a"] and all("id" in meta for _, meta in found)


def test_row_04_gen_with_every_argument() -> None:
    @sgl.function
    def ask(s):  # type: ignore[no-untyped-def]
        s += "Q" + sgl.gen(
            "a", 9, 1, ["END"], [7], 0.5, 0.9, 40, 0.05, 0.1, 0.2, True, True, 0, 2, True
        )  # fmt: skip
        s += sgl.gen("r", regex="[0-9]+") + sgl.gen("j", json_schema='{"type": "integer"}')
        s += sgl.gen("c", choices=["x", "y"]) + sgl.gen("many", n=2, seed=5)

    state, backend = both(ask, scripted={"replies": {"Q": "5"}})
    first = backend.calls[0]
    s, logprobs = first.sampling, first.logprobs
    assert (s.max_new_tokens, s.min_new_tokens, s.stop, s.stop_token_ids) == (9, 1, ("END",), (7,))
    assert (s.temperature, s.top_p, s.top_k, s.min_p) == (0.5, 0.9, 40, 0.05)
    assert (s.frequency_penalty, s.presence_penalty, s.ignore_eos) == (0.1, 0.2, True)
    assert logprobs is not None and (logprobs.start, logprobs.top, logprobs.text) == (0, 2, True)
    assert [c.sampling.constraint.kind for c in backend.calls[1:3]] == ["regex", "json_schema"]
    assert state["many"] == ["5", "5"] and backend.calls[-1].sampling.seed == 5
    assert state.get_meta_info("a")["output_token_logprobs"]


def test_row_05_typed_gens(engine: sgl.Engine) -> None:
    @sgl.function
    def ask(s):  # type: ignore[no-untyped-def]
        s += "Age: " + sgl.gen_int("age", max_tokens=4) + "\nName: " + sgl.gen_string("name", max_tokens=12)
        s += (
            "\nTall: "
            + sgl.gen("tall", dtype=bool)
            + "\nSize: "
            + sgl.gen("size", dtype="float", max_tokens=6)
        )

    for program in (ask, ask.compile()):
        state = program.run(backend=engine, temperature=0)
        assert int(state["age"]) is not None and float(state["size"]) is not None
        assert (
            state["tall"] in ("True", "False")
            and state["name"].startswith('"')
            and state["name"].endswith('"')
        )


def test_row_06_select_by_length_normalised_likelihood() -> None:
    @sgl.function
    def pick(s):  # type: ignore[no-untyped-def]
        s += "pick" + sgl.select("c", ["organ", "organism", "antidisestablishment"])

    state, _ = both(pick, scripted={"replies": {"pick": "organism"}})
    assert state["c"] == "organism" and state.get_meta_info("c")["normalized_prompt_logprobs"][1] == 0.0


@pytest.mark.parametrize("method", [sgl.greedy_token_selection, sgl.unconditional_likelihood_normalized])
def test_rows_07_and_08_other_choices_methods_end_to_end(engine: sgl.Engine, method: Any) -> None:
    @sgl.function
    def pick(s):  # type: ignore[no-untyped-def]
        s += "The colour of grass is" + sgl.select("c", [" green", " a long story"], choices_method=method)

    one, two = (p.run(backend=engine) for p in (pick, pick.compile()))
    assert one["c"] == two["c"] and one["c"] in (" green", " a long story")
    meta = one.get_meta_info("c")
    key = "greedy_logprob_matrix" if method is sgl.greedy_token_selection else "unconditional_token_logprobs"
    assert key in meta and meta == two.get_meta_info("c")


def test_row_09_choices_methods_of_the_user() -> None:
    class Last(ChoicesSamplingMethod):
        def __call__(self, *, choices: Any, **scores: Any) -> ChoicesDecision:
            return ChoicesDecision(choices[-1], {"seen": len(scores["input_token_logprobs"])})

    method = Last()

    @sgl.function
    def pick(s):  # type: ignore[no-untyped-def]
        s += "pick" + sgl.select("c", ["a", "b", "z"], choices_method=method)

    state, _ = both(pick)
    assert state["c"] == "z" and state.get_meta_info("c") == {"seen": 3}


def test_row_10_forks_copies_and_gathering_joins() -> None:
    @sgl.function
    def ask(s, q):  # type: ignore[no-untyped-def]
        s += q
        forks = s.fork(3)
        forks += lambda i: f" {i}:" + sgl.gen("x")
        forks.join()
        with s.copy() as other:
            other += "aside" + sgl.gen("y")
        s += "".join([s["x"][0], s["x"][2]]) + s["y"][0]

    state, backend = both(ask, "Q")
    assert len(state["x"]) == 3 and len(state["y"]) == 1
    assert all(render(c.prompt).startswith("Q") for c in backend.calls)


def test_rows_11_and_12_a_join_that_appends() -> None:
    @sgl.function
    def ask(s, q):  # type: ignore[no-untyped-def]
        s += q
        forks = s.fork(2)
        forks += lambda i: f"\n{i}:" + sgl.gen("x")
        forks.join("concate_and_append")
        s += "\nSo:" + sgl.gen("y")

    state, backend = both(ask, "Q")
    written = [backend.answer(c, 0)[0] for c in backend.calls]
    assert state.text() == f"Q\n0:{written[0]}\n1:{written[1]}\nSo:{state['y']}"


@pytest.mark.parametrize("make", [lambda s, o: s.fork(2, o), lambda s, o: s.copy(o).__enter__()])
def test_row_13_shifted_positions_are_refused_and_zero_is_the_plain_fork(make: Any) -> None:
    @sgl.function
    def ask(s, offsets):  # type: ignore[no-untyped-def]
        s += "Q"
        make(s, offsets)
        s += sgl.gen("a")

    assert ask.run([0, 0], backend=sgl.Scripted())["a"]
    with pytest.raises(
        ValueError, match=r"test_inventory.py:\d+: position_ids_offset=.* positions cannot be shifted"
    ):
        ask.run([5, 9], backend=sgl.Scripted())


def test_row_14_scopes_variables_meta_info_and_what_is_returned() -> None:
    @sgl.function
    def ask(s, q):  # type: ignore[no-untyped-def]
        with s.var_scope("all"):
            s += q + sgl.gen("a")
        s.set_var("mine", "m" + s["a"])
        s["other"] = 3
        return s.get_var("mine")

    state, _ = both(ask, "Q")
    assert state["all"] == "Q" + state["a"] and state["other"] == 3 and state.ret_value == state["mine"]
    assert state.get_meta_info("a")["finish_reason"]["type"] == "stop"


def test_row_15_roles_as_functions_methods_contexts_and_edges() -> None:
    @sgl.function
    def functions(s, q):  # type: ignore[no-untyped-def]
        s += sgl.system("Be brief.") + sgl.user(q) + sgl.assistant(sgl.gen("a"))

    @sgl.function
    def methods(s, q):  # type: ignore[no-untyped-def]
        s += s.system("Be brief.")
        s.user(q)
        s.assistant(sgl.gen("a"))

    @sgl.function
    def contexts(s, q):  # type: ignore[no-untyped-def]
        with s.system():
            s += "Be brief."
        with s.user():
            s += q
        with s.assistant():
            s += sgl.gen("a")

    @sgl.function
    def edges(s, q):  # type: ignore[no-untyped-def]
        s += sgl.system_begin() + "Be brief." + sgl.system_end() + sgl.user_begin() + q + sgl.user_end()
        s += sgl.assistant_begin() + sgl.gen("a") + sgl.assistant_end()

    made = [
        both(p, "Hi", scripted={"chat_template": "chatml"})[0] for p in (functions, methods, contexts, edges)
    ]
    assert len({m.text() for m in made}) == 1
    assert [m["role"] for m in made[0].messages()] == ["system", "user", "assistant"]


def test_row_16_images_from_a_path_bytes_and_pil_several_in_a_state(tmp_path: Path) -> None:
    from PIL import Image

    picture = Image.new("RGB", (2, 2), "red")
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    path = tmp_path / "red.png"
    path.write_bytes(buffer.getvalue())
    pieces = [sgl.image(str(path)), sgl.image(buffer.getvalue()), sgl.image(picture)]

    @sgl.function
    def look(s):  # type: ignore[no-untyped-def]
        s += sgl.user(pieces[0] + pieces[1] + pieces[2] + "What is it?")
        s += sgl.assistant(sgl.gen("a"))

    able = sgl.Scripted().capabilities
    import msgspec

    state, backend = both(look, scripted={"capabilities": msgspec.structs.replace(able, images=True)})
    sent = [p for p in backend.calls[0].prompt if isinstance(p, ImageSegment)]
    assert len(sent) == 3 and sent[0].data == sent[1].data
    assert [p["type"] for p in state.messages()[0]["content"]] == ["text", *["image_url"] * 3]


def test_row_17_video() -> None:
    from PIL import Image

    frames = [Image.new("RGB", (2, 2), (k, 0, 0)) for k in range(9)]
    assert len(sgl.video(frames, 3).pieces) == 3


def test_row_18_reasoning_apart_from_the_answer() -> None:
    @sgl.function
    def ask(s, q):  # type: ignore[no-untyped-def]
        s += sgl.user(q)
        s += sgl.assistant(sgl.separate_reasoning(sgl.gen("a"), model_type="qwen3"))

    state, _ = both(ask, "Why?", scripted={"replies": {"Why": "<think>so</think>Thus."}})
    assert (state["a"], state["a_reasoning_content"]) == ("Thus.", "so")


def test_row_19_several_samples_in_one_call() -> None:
    @sgl.function
    def ask(s, q):  # type: ignore[no-untyped-def]
        s += q + sgl.gen("many", n=4)

    state, backend = both(ask, "Q")
    assert len(state["many"]) == 4 and len(backend.calls) == 1 and state.text() == "Q" + state["many"][0]


def test_row_20_api_speculation() -> None:
    import msgspec

    def body(s, q):  # type: ignore[no-untyped-def]
        s += q + "A:" + sgl.gen("a", stop="\n") + "\nB:" + sgl.gen("b", stop="\n")

    able = msgspec.structs.replace(sgl.Scripted().capabilities, prefill=False)
    whole = "one\nB:two\n"
    replies = {"Q": lambda prompt: whole[len(prompt) - 3 :]}
    one, two = (sgl.Scripted(replies, capabilities=able) for _ in range(2))
    fast = sgl.function(body, num_api_spec_tokens=32).run("Q", backend=one)
    assert everything(fast) == everything(sgl.function(body).run("Q", backend=two))
    assert (len(one.calls), len(two.calls)) == (1, 2) and fast["b"] == "two"


def test_row_21_fourteen_chat_templates_and_matching() -> None:
    names = (
        "default claude chatml qwen qwen2-vl chatml-llava vicuna_v1.1 yi-1.5 llama-2-chat llama-3-instruct yi-vl "
        "gemma-it dbrx-instruct c4ai-command-r"
    ).split()
    assert set(names) <= set(chat_template_registry)
    for name in names:
        text = get_chat_template(name).get_prompt([{"role": "user", "content": "Hello?"}])
        assert "Hello?" in text
    assert get_chat_template_by_model_path("meta/Llama-3-8B-Instruct").name == "llama-3-instruct"
    assert get_chat_template_by_model_path("Qwen2-VL-7B-Instruct").name == "qwen2-vl"

    @register_chat_template_matching_function
    def mine(path: str) -> Any:
        return get_chat_template("claude") if "my-odd-model" in path else None

    assert get_chat_template_by_model_path("my-odd-model").name == "claude"


def test_row_22_flushing_the_cache_and_asking_the_server(engine: sgl.Engine) -> None:
    assert sgl.flush_cache(engine) is not False
    info = sgl.get_server_info(engine)
    assert info is not None and info == sgl.get_server_args(engine) and json.dumps(info)
    assert sgl.flush_cache() is False and sgl.get_server_args() is None


def test_row_23_nothing_hangs_after_an_error() -> None:
    @sgl.function
    def ask(s, q):  # type: ignore[no-untyped-def]
        s += q + "BOOM" + sgl.gen("a")
        s += sgl.gen("b")

    for program in (ask, ask.compile()):
        state = program.run("Q", backend=sgl.Scripted(fail_on="BOOM"))
        error = state.error()
        assert isinstance(error, RunError) and f"{Path(__file__).name}:" in str(error)
        for name in ("a", "b"):
            with pytest.raises(RunError):
                state[name]
        assert state.text() == "QBOOM"


def test_row_24_runtimes_and_endpoints() -> None:
    @sgl.function
    def ask(s, q):  # type: ignore[no-untyped-def]
        s += q + sgl.gen("a", max_tokens=4, temperature=0)

    with sgl.Runtime() as runtime:
        there = ask.run("Once upon", backend=runtime)["a"]
        again = ask.compile().run("Once upon", backend=sgl.RuntimeEndpoint(runtime.url))["a"]
    assert there == again


@pytest.mark.parametrize("name", ["OpenAI", "Anthropic", "VertexAI", "LiteLLM"])
def test_rows_25_to_28_providers_are_backends(name: str) -> None:
    """What they send and take: tests/backends/test_api_backends.py."""
    assert callable(getattr(sgl, name))


def test_row_29_the_global_configuration(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @sgl.function
    def ask(s, q):  # type: ignore[no-untyped-def]
        s += q + sgl.gen("a")

    backend = sgl.Scripted()
    monkeypatch.setattr(sgl.global_config, "default_backend", None)
    sgl.set_default_backend(backend)
    monkeypatch.setattr(sgl.global_config, "verbosity", 2)
    monkeypatch.setattr(sgl.global_config, "skip_special_tokens_in_output", False)
    text = ask.run("Q").text()
    assert text in capsys.readouterr().out and backend.calls[0].sampling.skip_special_tokens is False


LONG = "A text that all rows share and that is longer than sixty-four characters, so it is worth it. "


@sgl.function
def shares(s, q):  # type: ignore[no-untyped-def]
    s += LONG + q + sgl.gen("a")


def test_row_30_a_program_becomes_a_graph() -> None:
    module = shares.trace()
    assert "graph @shares(%q: str)" in str(module) and "gen" in str(module)


def test_row_31_binding_and_warming_prefixes() -> None:
    backend = sgl.Scripted()
    shares.cache(backend)
    shares.bind(q="x").run_batch([{}, {}], backend=backend)
    assert backend.prefills == [LONG, LONG + "x"]
    with pytest.raises(AssertionError):
        shares.bind(unknown=1)


def test_row_32_straight_programs_compile() -> None:
    compiled = shares.compile()
    assert compiled.run("x", backend=sgl.Scripted()).text() == shares.run("x", backend=sgl.Scripted()).text()
    assert compiled.breaks == [] and len(compiled.modules()) == 1


def test_row_33_forks_roles_joins_scopes_and_branches_compile() -> None:
    @sgl.function
    def ask(s, q):  # type: ignore[no-untyped-def]
        with s.var_scope("talk"):
            s += sgl.user(q)
            with s.assistant():
                s += sgl.select("kind", ["sum", "word"])
        forks = s.fork(2)
        forks += lambda i: sgl.user(f"{i}") + sgl.assistant(sgl.gen("part"))
        forks.join()
        if s["kind"] == "sum":
            s += sgl.user("Add.") + sgl.assistant(sgl.gen("end"))
        else:
            s += sgl.user("Join." + s["part"][1])

    for kind in ("sum", "word"):
        both(ask, "Q", scripted={"replies": {"Q": kind}, "chat_template": "chatml"})
    assert ask.compile().breaks == []


def test_rows_34_to_37_are_shown_by_the_command_line(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from sglc.cli import app

    file = tmp_path / "program.py"
    file.write_text(
        "import sglc as sgl\n"
        "@sgl.function\n"
        "def ask(s, q):\n"
        "    s += q\n"
        "    forks = s.fork(2)\n"
        "    for i, f in enumerate(forks):\n"
        '        f += "\\nScore for part " + str(i) + ":" + sgl.gen("n", regex="[0-9]", max_tokens=2)\n'
        "    forks.join()\n",
        encoding="utf-8",
    )

    def emitted(*options: str) -> str:
        done = CliRunner().invoke(app, ["compile", str(file), *options])
        assert done.exit_code == 0, done.output
        return done.output

    raw, ir, plan = emitted("--emit", "raw"), emitted("--emit", "ir"), emitted("--emit", "plan")
    assert raw.count("Score for part") == 2 and ir.count("Score for part") == 1
    assert "constraint @c0 = regex" in emitted("--passes", "precompile-constraints")
    assert "states=" in emitted("--passes", "precompile-constraints") and "wave" in plan
