"""Vectors over HTTP: OpenAI's embeddings with the real client, /encode, /judge, and what a server of them refuses."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import sglc as sgl
from runtime.config import embedded_model_path
from runtime.errors import InvalidRequest
from runtime.server.launch import ServerProcess
from tests.server.calls import call

TEXTS = ["The capital of Spain is Madrid.", "Twelve and thirty-five are", "The capital of Spain is Rome."]


@pytest.fixture(scope="module")
def embedder() -> Iterator[ServerProcess]:
    server = ServerProcess(
        is_embedding=True,
        max_sequences=64,
        debug_faults=True,
        json_model_override_args='{"matryoshka_dimensions": [64, 128]}',
    )
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def client(embedder: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{embedder.url}/v1", api_key="none", max_retries=0)


def reference(text: str) -> list[float]:
    folder = embedded_model_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        last = model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0, -1]
    return torch.nn.functional.normalize(last, dim=0).tolist()


def test_embeddings_are_those_of_transformers(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="tiny", input=TEXTS)  # the client asks for base64
    assert [d.index for d in answer.data] == [0, 1, 2] and answer.object == "list" and answer.model == "tiny"
    for data, text in zip(answer.data, TEXTS, strict=True):
        assert data.embedding == pytest.approx(reference(text), abs=1e-4)
    plain = client.embeddings.create(model="tiny", input=TEXTS, encoding_format="float")
    assert [d.embedding for d in plain.data] == [pytest.approx(d.embedding, abs=1e-6) for d in answer.data]
    assert plain.usage.prompt_tokens == plain.usage.total_tokens == answer.usage.total_tokens > 10


def test_every_form_of_input(client: openai.OpenAI, embedder: ServerProcess) -> None:
    ids = [call(f"{embedder.url}/tokenize", {"text": t})[1]["tokens"] for t in TEXTS]
    texts = [d.embedding for d in client.embeddings.create(model="tiny", input=TEXTS).data]
    assert [d.embedding for d in client.embeddings.create(model="tiny", input=ids).data] == [
        pytest.approx(t, abs=1e-6) for t in texts
    ]
    one = client.embeddings.create(model="tiny", input=ids[0])
    assert one.data[0].embedding == pytest.approx(texts[0], abs=1e-6) and len(one.data) == 1
    assert one.usage.prompt_tokens == len(ids[0])

    async def several() -> list[Any]:
        own = openai.AsyncOpenAI(base_url=f"{embedder.url}/v1", api_key="none", max_retries=0)
        async with own:
            calls = [own.embeddings.create(model="tiny", input=t) for t in TEXTS * 4]
            return await asyncio.gather(*calls)

    for i, answer in enumerate(asyncio.run(several())):
        assert answer.data[0].embedding == pytest.approx(texts[i % 3], abs=1e-5)


def test_base64_is_little_endian_float32(embedder: ServerProcess) -> None:
    url = f"{embedder.url}/v1/embeddings"
    _, text, _ = call(url, {"input": "a", "encoding_format": "base64"})
    _, plain, _ = call(url, {"input": "a"})
    numbers = array("f", base64.b64decode(text["data"][0]["embedding"]))
    assert list(numbers) == plain["data"][0]["embedding"] and len(numbers) == 256
    assert text["data"][0]["object"] == "embedding"
    assert text["usage"].keys() == {"prompt_tokens", "total_tokens", "prompt_tokens_details"}


def test_prefixes_are_shared_but_not_between_salts(embedder: ServerProcess) -> None:
    def cached(**fields: Any) -> int:
        _, answer, _ = call(
            f"{embedder.url}/v1/embeddings", {"input": "A sentence of its own, of some length.", **fields}
        )
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert [cached(cache_salt=s) > 0 for s in ("x", "x", "y")] == [False, True, False]


@pytest.mark.parametrize(
    ("fields", "part", "param"),
    [
        ({"input": []}, "the input is empty", "input"),
        ({"input": ["a", 1]}, "mixes texts and token ids", "input"),
        ({"input": [10**6]}, "outside the vocabulary", "input"),
        ({"input": "a " * 9000}, "longer than the model's context length (4096 tokens)", "input"),
        ({"input": ["a"] * 65}, "the number of prompts is 65 but may be at most 64", "input"),
        ({"input": 3}, "input", "input"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions is 0", "dimensions"),
        (
            {"input": "a", "dimensions": 257},
            "dimensions is 257, but embeddings of 'tiny' have 256",
            "dimensions",
        ),
        ({"input": "a", "dimensions": 65}, "was trained for 64, 128 alone", "dimensions"),
        ({"input": "a", "nonsense": 1}, "unknown field", "nonsense"),
    ],
)
def test_what_is_refused(
    embedder: ServerProcess, fields: dict[str, Any], part: str, param: str | None
) -> None:
    status, answer, _ = call(f"{embedder.url}/v1/embeddings", fields)
    assert status == 400 and part in answer["error"]["message"] and answer["error"]["param"] == param
    assert call(f"{embedder.url}/v1/embeddings", {"input": "a", "dimensions": 256})[0] == 200


def test_a_model_that_is_not_served_is_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="text-embedding-3-small", input="a")


def test_shorter_embeddings_of_a_model_that_was_trained_for_them(embedder: ServerProcess) -> None:
    url = f"{embedder.url}/v1/embeddings"
    _, whole, _ = call(url, {"input": "a"})
    _, part, _ = call(url, {"input": "a", "dimensions": 64})
    long, short = whole["data"][0]["embedding"], part["data"][0]["embedding"]
    norm = sum(v * v for v in long[:64]) ** 0.5
    assert short == pytest.approx([v / norm for v in long[:64]], abs=1e-7)


def test_encode(embedder: ServerProcess, client: openai.OpenAI) -> None:
    url = f"{embedder.url}/encode"
    wanted = [d.embedding for d in client.embeddings.create(model="tiny", input=TEXTS).data]
    status, one, _ = call(url, {"text": TEXTS[0], "rid": "mine"})
    assert status == 200 and one["index"] == 0 and one["embedding"] == pytest.approx(wanted[0], abs=1e-5)
    assert one["meta_info"]["id"] == "mine" and one["meta_info"]["prompt_tokens"] >= 4
    status, many, _ = call(url, {"text": TEXTS, "rid": ["a", "b", "c"]}, method="PUT")
    assert [m["meta_info"]["id"] for m in many] == ["a", "b", "c"] and [m["index"] for m in many] == [0, 1, 2]
    assert [m["embedding"] for m in many] == [pytest.approx(w, abs=1e-5) for w in wanted]
    ids = call(f"{embedder.url}/tokenize", {"text": TEXTS[1]})[1]["tokens"]
    for given in (ids, [ids]):
        _, answer, _ = call(url, {"input_ids": given})
        answer = answer if isinstance(answer, dict) else answer[0]
        assert answer["embedding"] == pytest.approx(wanted[1], abs=1e-5)
    assert call(url, {})[0] == call(url, {"text": "a", "input_ids": [1]})[0] == 400


def test_a_server_of_embeddings_says_so_everywhere(embedder: ServerProcess) -> None:
    assert call(f"{embedder.url}/health_generate")[0] == 200
    assert call(f"{embedder.url}/get_model_info")[1]["is_generation"] is False
    assert call(f"{embedder.url}/page/state")[1]["model"]["generates"] is False  # it hides the playground
    message = [{"role": "user", "content": "Hi"}]
    for route, body in {
        "/generate": {"text": "a"},
        "/v1/completions": {"prompt": "a"},
        "/v1/chat/completions": {"messages": message},
        "/v1/responses": {"input": "a"},
        "/v1/messages": {"messages": message, "max_tokens": 3, "model": "tiny"},
        "/v1/calls/score": {"prompt": [{"type": "text", "text": "a"}], "choices": ["a", "b"]},
        "/judge": {"conv": message},
    }.items():
        status, answer, _ = call(embedder.url + route, body)
        told = answer["error"]["message"]
        assert status == 400 and "gives embeddings" in told, (route, answer)


def test_a_model_that_generates_gives_the_hint(server: ServerProcess) -> None:
    for route, body in {
        "/v1/embeddings": {"input": "a"},
        "/encode": {"text": "a"},
    }.items():
        status, answer, _ = call(server.url + route, body)
        assert status == 400 and "--is-embedding" in answer["error"]["message"]
    status, answer, _ = call(f"{server.url}/judge", {"conv": [{"role": "user", "content": "x"}]})
    assert status == 400 and "needs a reward model, and 'tiny' generates text" in answer["error"]["message"]


def test_a_request_can_be_aborted(embedder: ServerProcess) -> None:
    for _ in range(20):  # an abort that comes when the vector is made changes nothing
        assert call(f"{embedder.url}/debug/fault", {"kind": "slow", "seconds": 0.3, "steps": 2})[0] == 200
        found: list[Any] = []
        body = {"text": ["slow", "slow again " * 300], "rid": ["first", "slow one"]}
        thread = threading.Thread(target=lambda: found.append(call(f"{embedder.url}/encode", body)))  # noqa: B023
        thread.start()
        end = time.monotonic() + 20
        while call(f"{embedder.url}/abort_request", {"rid": "slow one"})[0] != 200:
            assert time.monotonic() < end
        thread.join()
        status, answer, _ = found[0]
        assert status in (200, 499)
        if status == 499:
            break
    assert status == 499 and answer["error"]["code"] == "aborted"
    _, facts, _ = call(f"{embedder.url}/debug/check")
    assert facts["problem"] is None and facts["num_running_reqs"] == 0


def test_batches_take_embeddings(client: openai.OpenAI) -> None:
    lines = [
        {
            "custom_id": f"l{i}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"input": t, "model": "tiny"},
        }
        for i, t in enumerate(TEXTS)
    ]
    data = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
    end = time.monotonic() + 60
    while (batch := client.batches.retrieve(batch.id)).status not in ("completed", "failed"):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert batch.output_file_id is not None and batch.request_counts.completed == 3  # type: ignore[union-attr]
    found = [json.loads(t) for t in client.files.content(batch.output_file_id).text.splitlines()]
    assert {f["custom_id"]: len(f["response"]["body"]["data"][0]["embedding"]) for f in found} == {
        f"l{i}": 256 for i in range(3)
    }


def test_a_reward_model_judges_conversations(tmp_path: Path) -> None:
    folder = tmp_path / "reward"
    shutil.copytree(embedded_model_path(), folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(1)
    save_file({**weights, "score.weight": torch.randn(1, 256)}, folder / "model.safetensors")
    conversations = [
        [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": a}]
        for a in ("4", "5")
    ]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model.config.pad_token_id = None
    wanted = []
    for c in conversations:
        text = tokenizer.apply_chat_template(c, tokenize=False)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            wanted.append(model(ids).logits[0].tolist())
    with sgl.Runtime(str(folder)) as runtime:
        many = json.loads(runtime.encode(conversations))
        assert [m["embedding"] for m in many] == [pytest.approx(w, abs=1e-3) for w in wanted]
        one = json.loads(runtime.encode(conversations[0]))
        assert one["embedding"] == many[0]["embedding"] and len(one["embedding"]) == 1
        text = tokenizer.apply_chat_template(conversations[1], tokenize=False)
        assert json.loads(runtime.encode(text))["embedding"] == pytest.approx(wanted[1], abs=1e-3)
        assert [m["index"] for m in json.loads(runtime.encode(["a", "b"]))] == [0, 1]
        with pytest.raises(InvalidRequest, match="is empty"):
            runtime.encode([[]])
        status, answer, _ = call(f"{runtime.url}/v1/embeddings", {"input": "a"})
        assert status == 400 and "send the text to /encode" in answer["error"]["message"]
        assert call(f"{runtime.url}/get_model_info")[1]["is_generation"] is False
