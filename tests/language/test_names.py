"""Every name that programs import is there, and is what it says."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

import sglc as sgl
from sglc.test.test_utils import add_common_sglang_args_and_parse, select_sglang_backend
from sglc.utils import download_and_cache_file, dump_state_text, encode_image_base64, read_jsonl

PUBLIC = (
    "Engine Runtime RuntimeEndpoint Anthropic LiteLLM OpenAI VertexAI function gen gen_int gen_string select image video "
    "system user assistant system_begin system_end user_begin user_end assistant_begin assistant_end set_default_backend "
    "flush_cache get_server_args get_server_info separate_reasoning token_length_normalized greedy_token_selection "
    "unconditional_likelihood_normalized global_config __version__"
).split()
SUBMODULES = {
    "sglc.lang.ir": "REGEX_INT REGEX_FLOAT REGEX_BOOL REGEX_STR SglExpr SglExprList SglFunction SglGen SglImage SglSelect",
    "sglc.lang.interpreter": "ProgramState ProgramStateGroup",
    "sglc.lang.chat_template": "ChatTemplate ChatTemplateStyle get_chat_template get_chat_template_by_model_path "
    "register_chat_template register_chat_template_matching_function chat_template_registry",
    "sglc.lang.choices": "ChoicesDecision ChoicesSamplingMethod token_length_normalized greedy_token_selection "
    "unconditional_likelihood_normalized",
    "sglc.lang.backend.base_backend": "BaseBackend",
    "sglc.lang.backend.runtime_endpoint": "RuntimeEndpoint",
    "sglc.lang.backend.openai": "OpenAI",
    "sglc.lang.backend.anthropic": "Anthropic",
    "sglc.lang.backend.vertexai": "VertexAI",
    "sglc.lang.backend.litellm": "LiteLLM",
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names(name: str) -> None:
    assert getattr(sgl, name) is not None
    assert name in sgl.__all__ or name == "__version__"


@pytest.mark.parametrize("module", list(SUBMODULES))
def test_names_of_submodules(module: str) -> None:
    loaded = importlib.import_module(module)
    for name in SUBMODULES[module].split():
        assert hasattr(loaded, name), f"{module}.{name}"


def test_pieces_are_told_by_the_classes_of_the_field() -> None:
    from sglc.lang.ir import REGEX_INT, SglExprList, SglFunction, SglGen, SglSelect

    assert isinstance(sgl.gen("a"), SglGen) and isinstance(sgl.gen("a", choices=["x"]), SglSelect)
    assert isinstance("x" + sgl.gen("a"), SglExprList) and isinstance(
        sgl.function(lambda s: None), SglFunction
    )
    assert re.fullmatch(REGEX_INT, "-12 \n") and not re.fullmatch(REGEX_INT, "1.2")


def test_rows_and_texts_go_to_and_from_files(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('# a note\n{"q": "ä"}\n\n[1, 2]\n', encoding="utf-8")
    assert list(read_jsonl(rows)) == [{"q": "ä"}, [1, 2]]

    @sgl.function
    def ask(s, q):  # type: ignore[no-untyped-def]
        s += q + sgl.gen("a")

    states = ask.run_batch([{"q": "x"}, {"q": "y"}], backend=sgl.Scripted())
    dump_state_text(tmp_path / "out.txt", states)
    dump_state_text(tmp_path / "out.txt", ["more"], mode="a")
    text = (tmp_path / "out.txt").read_text(encoding="utf-8")
    assert all(s.text() in text for s in states) and "more" in text and text.count(" 0 ") == 2


def test_a_download_is_made_once_and_leaves_no_part(tmp_path: Path) -> None:
    source, copy = tmp_path / "source.txt", tmp_path / "copy.txt"
    source.write_text("one", encoding="utf-8")
    assert download_and_cache_file(source.as_uri(), copy) == str(copy)
    source.write_text("two", encoding="utf-8")
    assert Path(download_and_cache_file(source.as_uri(), copy)).read_text(encoding="utf-8") == "one"
    with pytest.raises(OSError, match="No such file"):
        download_and_cache_file((tmp_path / "none").as_uri(), tmp_path / "other")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.txt", "source.txt"]
    assert encode_image_base64(copy) == encode_image_base64(b"one") == "b25l"


def test_benchmark_programs_choose_their_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--parallel", "8", "--port", "7"])
    args = add_common_sglang_args_and_parse(argparse.ArgumentParser())
    assert (args.parallel, args.host, args.port, args.backend) == (8, "http://127.0.0.1", 7, "srt")
    args.backend = "other"
    with pytest.raises(ValueError, match="--backend other: choose srt"):
        select_sglang_backend(args)


def test_a_runtime_and_an_endpoint_have_the_methods_of_the_field() -> None:
    with sgl.Runtime() as runtime:
        endpoint = sgl.RuntimeEndpoint(runtime.url)
        assert endpoint.get_model_name() == runtime.endpoint.model.model_path
        assert endpoint.get_chat_template().name == "chatml"
        endpoint.cache_prefix("Once upon a time")
        assert endpoint.get_server_args()["model_path"] and endpoint.flush_cache() is True
        whole = json.loads(runtime.generate("Once upon", {"max_new_tokens": 6, "temperature": 0}))["text"]

        async def chunks(**params: Any) -> list[str]:
            return [chunk async for chunk in runtime.async_generate("Once upon", params)]

        found = asyncio.run(chunks(max_new_tokens=6, temperature=0))
        assert "".join(found) == whole and len(found) > 1
        with pytest.raises(Exception, match="temperature"):
            asyncio.run(chunks(temperature=-1))
        assert runtime.get_tokenizer().encode("Once upon")
