"""The engine on the embedded model: the tokens of transformers, however the work is cut; nothing left when callers leave."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
import transformers

from runtime.api import Generate, LogprobOptions, SamplingParams, TextSegment, TokenSegment
from runtime.config import embedded_model_path
from runtime.engine.async_engine import AsyncEngine
from runtime.engine.engine import Engine
from runtime.errors import EngineError, InvalidRequest

COUNT = 24
SHARED = "Q: What is the capital of France?\nA: The capital of France is Paris.\n" * 6
PROMPTS = [
    "The capital of Japan is",
    "12 + 35 =",
    SHARED + "Q: What is the capital of Peru?\nA:",
    SHARED + "Q: What is the currency of Kenya?\nA:",
    SHARED + "Q: What is 48 + 27?\nA:",
    "Once upon a time there was a brave fox called Anna.",
]


@pytest.fixture(scope="module")
def expected() -> list[str]:
    folder = embedded_model_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    texts = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=COUNT,
                do_sample=False,
                eos_token_id=None,
            )
        texts.append(str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)))
    return texts


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunked_prefill_size": 16, "max_running_requests": 3},
        {"page_size": 16, "max_total_tokens": 2048},
        {"disable_radix_cache": True},
        {"max_total_tokens": 260, "schedule_conservativeness": 0.0},
        {"schedule_policy": "dfs-weight", "context_length": 512},
    ],
    ids=["plain", "chunks", "pages", "no cache", "retractions", "dfs"],
)
def test_tokens_equal_transformers(expected: list[str], options: dict[str, Any]) -> None:
    params = {"temperature": 0, "max_new_tokens": COUNT, "ignore_eos": True}
    with Engine(**options) as engine:
        together = [a["text"] for a in engine.generate(PROMPTS, params)]
        assert together == expected
        warm = [engine.generate(p, params)["text"] for p in PROMPTS]
        assert warm == expected
        info = engine.get_server_info()
        assert info["kv_cache"]["used_tokens"] == 0
        if "max_total_tokens" in options and options["max_total_tokens"] < 300:
            assert info["retractions"] > 0
        if options == {}:
            samples = engine.generate(PROMPTS[2], {**params, "n": 3})
            assert [s["text"] for s in samples] == [expected[2]] * 3
            assert sum(s["meta_info"]["cached_tokens"] > 100 for s in samples) >= 2


async def settled(engine: AsyncEngine) -> dict[str, Any]:
    for _ in range(400):
        stats = await engine.stats()
        if not stats["num_running_reqs"] and not stats["num_waiting_reqs"]:
            return stats
        await asyncio.sleep(0.02)
    raise AssertionError(f"still running: {stats}")


def call(text: str, **fields: Any) -> Generate:
    return Generate(prompt=(TextSegment(text),), sampling=SamplingParams(**fields), id=text, stream=True)


async def test_a_thousand_callers_that_leave_free_everything(engine: AsyncEngine) -> None:
    async def leave(i: int) -> None:
        deltas = engine.generate([call(f"{SHARED[: i % 200]} {i}", max_new_tokens=500, ignore_eos=True)])
        if i % 3:
            await anext(deltas)
        else:
            task = asyncio.ensure_future(anext(deltas))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await deltas.aclose()  # type: ignore[attr-defined]

    for start in range(0, 1000, 100):
        await asyncio.gather(*(leave(i) for i in range(start, start + 100)))
    stats = await settled(engine)
    assert stats["kv_cache"]["used_tokens"] == 0
    assert await engine.flush_cache()
    assert (await engine.stats())["kv_cache"]["cached_tokens"] == 0


async def test_streams_of_many_callers_do_not_mix(engine: AsyncEngine) -> None:
    calls = [
        call(f"{a} + {b} =", max_new_tokens=6, temperature=0, stop=("\n",))
        for a in (11, 24)
        for b in (30, 52)
    ]
    texts: dict[str, str] = {c.id: "" for c in calls}
    async for delta in engine.generate(calls):
        texts[delta.id] += delta.text
    assert texts == {f"{a} + {b} =": f" {a + b}" for a in (11, 24) for b in (30, 52)}


async def test_errors_belong_to_their_request(engine: AsyncEngine) -> None:
    bad = Generate(prompt=(TokenSegment((10**8,), ""),), id="bad")
    long = Generate(prompt=(TextSegment("a " * 5000),), id="long")
    scores = Generate(prompt=(TextSegment("a"),), id="scores", logprobs=LogprobOptions(start=0, top=-1))
    good = call("12 + 35 =", max_new_tokens=6, temperature=0, stop=("\n",))
    found = {d.id: d async for d in engine.generate([bad, good, scores, long]) if d.finish is not None}
    assert "-1 were asked for" in str(found["scores"].finish.message)  # type: ignore[union-attr]
    assert found["bad"].finish.type == found["long"].finish.type == "error"  # type: ignore[union-attr]
    assert "outside the vocabulary" in str(found["bad"].finish.message)  # type: ignore[union-attr]
    assert found[good.id].finish.type == "stop"  # type: ignore[union-attr]


def test_options_and_fields_are_checked() -> None:
    with pytest.raises(InvalidRequest, match="'chunk_size' is not known; did you mean"):
        Engine(chunk_size=3)
    with Engine() as engine:
        with pytest.raises(InvalidRequest, match="did you mean 'temperature'"):
            engine.generate("x", {"temprature": 1})
        with pytest.raises(InvalidRequest, match="Either text or input_ids"):
            engine.generate()
        with pytest.raises(InvalidRequest, match="-1 were asked for"):
            engine.generate("x", return_logprob=True, top_logprobs_num=-1)
        with pytest.raises(InvalidRequest, match="start at position -2"):
            engine.generate("x", return_logprob=True, logprob_start_len=-2)
        with pytest.raises(InvalidRequest, match="logit_bias"):
            engine.generate("x", {"logit_bias": {"a": 1.0}})
        biased = {"logit_bias": {"77": 100.0}, "max_new_tokens": 2}  # as JSON has it: keys are strings
        assert engine.generate("x", biased)["text"] == engine.get_tokenizer().decode([77, 77])
        ids = engine.get_tokenizer().encode("12 + 35 =")
        params = {"temperature": 0, "stop": "\n", "max_new_tokens": 5}
        assert engine.generate(input_ids=ids, sampling_params=params)["text"] == " 47"
        pieces = list(engine.generate("12 + 35 =", params, stream=True))
        assert "".join(p["text"] for p in pieces) == " 47"
    with pytest.raises(EngineError, match="closed"):
        engine.async_engine._send([])


def test_lists_of_fields_and_what_is_refused() -> None:
    with Engine(stream_interval=4) as engine:
        two = engine.generate(
            ["12 + 35 =", "1 + 1 ="], {"temperature": 0, "max_new_tokens": 3}, [True, False], [0, -1], [2, 0]
        )
        assert (
            "input_token_logprobs" in two[0]["meta_info"]
            and "input_token_logprobs" not in two[1]["meta_info"]
        )
        assert len(two[0]["meta_info"]["output_top_logprobs"][0]) == 2
        with pytest.raises(InvalidRequest, match="2 prompts but 1 values of return_logprob"):
            engine.generate(["a", "b"], return_logprob=[True])
        with pytest.raises(InvalidRequest, match="lora_path"):
            engine.generate("a", lora_path="x")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="nonsense"):
            asyncio.run(engine.async_generate("a", nonsense=1))
        pieces = list(
            engine.generate(
                "Tell me", {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}, stream=True
            )
        )
        whole = engine.generate("Tell me", {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True})
        assert "".join(p["text"] for p in pieces) == whole["text"]
        assert 3 <= len(pieces) <= 4  # the first token, then every fourth
    with pytest.raises(InvalidRequest, match="--stream-interval 0"):
        Engine(stream_interval=0)
    with pytest.raises(InvalidRequest, match="--log-level is 'loud'"):
        Engine(log_level="loud")
