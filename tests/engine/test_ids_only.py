"""An engine without a tokenizer: ids in, the same ids out as an engine with one gives."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from runtime.config import embedded_model_path
from runtime.engine.engine import Engine
from runtime.errors import Unsupported
from runtime.server.launch import ServerProcess
from tests.server.calls import call, events

GREEDY = {"temperature": 0, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def plain() -> Iterator[Engine]:
    with Engine() as engine:
        yield engine


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """From a folder that has nothing but config and weights."""
    folder = tmp_path_factory.mktemp("model")
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        if (embedded_model_path() / name).exists():
            shutil.copy(embedded_model_path() / name, folder)
    with Engine(str(folder), skip_tokenizer_init=True) as engine:
        yield engine


@pytest.fixture(scope="module")
def prompts(plain: Engine) -> list[list[int]]:
    return [plain.get_tokenizer().encode(text) for text in ("12 + 35 =", "The capital of Peru is")]


def test_the_same_ids_as_with_a_tokenizer(plain: Engine, bare: Engine, prompts: list[list[int]]) -> None:
    answers = bare.generate(input_ids=prompts, sampling_params=GREEDY, return_logprob=True)
    texts = plain.generate(input_ids=prompts, sampling_params=GREEDY, return_logprob=True)
    for answer, text in zip(answers, texts, strict=True):
        assert set(answer) == {"token_ids", "meta_info", "index"}
        assert plain.get_tokenizer().decode(answer["token_ids"]) == text["text"]
        own, other = answer["meta_info"], text["meta_info"]
        assert own["completion_tokens"] == other["completion_tokens"]
        assert own["output_token_logprobs"] == other["output_token_logprobs"]
        assert own["finish_reason"] == other["finish_reason"]


def test_streams_give_new_ids(bare: Engine, prompts: list[list[int]]) -> None:
    whole = bare.generate(input_ids=prompts[1], sampling_params=GREEDY)["token_ids"]
    pieces = list(bare.generate(input_ids=prompts[1], sampling_params=GREEDY, stream=True))
    assert len(pieces) > 1 and [i for p in pieces for i in p["token_ids"]] == whole

    async def streamed() -> list[int]:
        pieces: Any = await bare.async_generate(input_ids=prompts[1], sampling_params=GREEDY, stream=True)
        return [i async for p in pieces for i in p["token_ids"]]

    assert asyncio.run(streamed()) == whole


def test_stop_ids_and_samples(bare: Engine, prompts: list[list[int]]) -> None:
    whole = bare.generate(input_ids=prompts[1], sampling_params=GREEDY)["token_ids"]
    stop = {**GREEDY, "stop_token_ids": [whole[-1]]}
    stopped = bare.generate(input_ids=prompts[1], sampling_params=stop)
    assert stopped["token_ids"] == whole[: whole.index(whole[-1])]
    assert stopped["meta_info"]["finish_reason"] == {"type": "stop", "matched": whole[-1]}
    samples = bare.generate(input_ids=prompts[1], sampling_params={**GREEDY, "n": 2})
    assert [s["token_ids"] for s in samples] == [whole, whole]


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        (
            {"prompt": "text"},
            "a prompt that is not token ids needs a tokenizer, and the engine was started with",
        ),
        ({"input_ids": [1, 2], "sampling_params": {"stop": "x"}}, "stop strings need a tokenizer"),
        ({"input_ids": [1, 2], "sampling_params": {"regex": "a"}}, "constraints need a tokenizer"),
    ],
)
def test_what_needs_text_is_refused(bare: Engine, fields: dict[str, Any], part: str) -> None:
    with pytest.raises(Unsupported, match=part):
        bare.generate(**fields)


def test_the_server_takes_and_gives_ids(bare: Engine, prompts: list[list[int]]) -> None:
    whole = bare.generate(input_ids=prompts[0], sampling_params=GREEDY)["token_ids"]
    server = ServerProcess(skip_tokenizer_init=True)
    try:
        body = {"input_ids": prompts[0], "sampling_params": GREEDY}
        status, answer, _ = call(f"{server.url}/generate", body)
        assert status == 200 and answer["token_ids"] == whole and "text" not in answer
        streamed = [data for _, data in events(f"{server.url}/generate", {**body, "stream": True})]
        assert streamed[-1] == "[DONE]" and streamed[-2]["token_ids"] == whole
        for path, refused in (
            ("/generate", {"text": "a"}),
            ("/tokenize", {"text": "a"}),
            ("/detokenize", {"tokens": [1]}),
            ("/v1/completions", {"prompt": "a"}),
            ("/v1/completions", {"prompt": [1, 2]}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ):
            status, answer, _ = call(server.url + path, refused)
            assert status == 400 and answer["error"]["code"] in ("unsupported", "invalid_request"), (
                path,
                answer,
            )
        for path in ("/health_generate", "/page/state", "/get_model_info", "/v1/models"):
            assert call(server.url + path)[0] == 200
    finally:
        server.shutdown()
