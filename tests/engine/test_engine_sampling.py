"""Random answers of the engine: the same in any batch, pool and transport; log-probabilities are the model's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
import transformers

from runtime.api import (
    Delta,
    Finish,
    Generate,
    LogprobOptions,
    SamplingParams,
    Score,
    TextSegment,
    collect,
)
from runtime.config import embedded_model_path
from runtime.engine.async_engine import AsyncEngine
from runtime.engine.engine import Engine

PROMPTS = ["The capital of Japan is", "Once upon a time there was a", "Q: What is 48 + 27?\nA:"]
FIELDS = {
    "temperature": 0.8,
    "top_p": 0.9,
    "max_new_tokens": 40,
    "ignore_eos": True,
    "frequency_penalty": 0.7,
    "presence_penalty": 0.3,
    "repetition_penalty": 1.2,
    "logit_bias": {300: 1.0},
}
LOGPROBS: dict[str, Any] = {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 2}


def drawn(answers: list[dict[str, Any]]) -> list[list[int]]:
    return [[t[1] for t in a["meta_info"]["output_token_logprobs"]] for a in answers]


@pytest.fixture(scope="module")
def reference() -> list[dict[str, Any]]:
    """Each request alone, on an engine that reuses nothing."""
    with Engine(disable_radix_cache=True) as engine:
        return [engine.generate(PROMPTS[i % 3], {**FIELDS, "seed": i}, **LOGPROBS) for i in range(6)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunked_prefill_size": 5, "max_running_requests": 2},
        {"max_total_tokens": 130, "schedule_conservativeness": 0.0},
    ],
    ids=["together", "chunks", "retractions"],
)
def test_draws_and_penalties_do_not_depend_on_how_work_is_cut(
    reference: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    with Engine(**options) as engine:
        params = [{**FIELDS, "seed": i} for i in range(6)]
        answers = engine.generate([PROMPTS[i % 3] for i in range(6)], params, **LOGPROBS)
        info = engine.get_server_info()
    assert drawn(answers) == drawn(reference)
    assert [a["text"] for a in answers] == [a["text"] for a in reference]
    for name in ("input_token_logprobs", "output_token_logprobs"):
        for a, b in zip(answers, reference, strict=True):
            values = [t[0] for t in a["meta_info"][name] if t[0] is not None]
            assert values == pytest.approx([t[0] for t in b["meta_info"][name] if t[0] is not None], abs=1e-4)
    assert info["kv_cache"]["used_tokens"] == 0
    assert bool(info["retractions"]) == ("max_total_tokens" in options)


def test_logprobs_are_those_of_transformers_whatever_is_sampled(reference: list[dict[str, Any]]) -> None:
    """Of the raw logits: temperature, penalties and bias do not show in them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(embedded_model_path(), dtype=torch.float32)
    for answer in reference[:3]:
        meta = answer["meta_info"]
        prompt, output = meta["input_token_logprobs"], meta["output_token_logprobs"]
        assert len(prompt) == meta["prompt_tokens"] and len(output) == meta["completion_tokens"] == 40
        ids = [t[1] for t in (*prompt, *output)]
        with torch.inference_mode():
            logs = model.eval()(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        assert prompt[0][0] is None and meta["input_top_logprobs"][0] is None
        tops = [*meta["input_top_logprobs"], *meta["output_top_logprobs"]]
        for i, (value, token, _) in enumerate((*prompt, *output)):
            if i:
                assert value == pytest.approx(logs[i - 1, token].item(), abs=1e-3)
                best = logs[i - 1].topk(2)
                assert [t[0] for t in tops[i]] == pytest.approx(best.values.tolist(), abs=1e-3)
        counted = [t[0] for t in prompt[1:]]
        assert meta["normalized_prompt_logprob"] == pytest.approx(sum(counted) / len(counted))


def call(text: str, stream: bool, logprobs: LogprobOptions | None = None, **fields: Any) -> Generate:
    sampling = SamplingParams(**fields)
    return Generate(prompt=(TextSegment(text),), sampling=sampling, id=text, stream=stream, logprobs=logprobs)


async def gather(engine: AsyncEngine, request: Generate) -> list[list[Delta]]:
    found: list[list[Delta]] = [[] for _ in range(request.sampling.n)]
    async for delta in engine.generate([request]):
        found[delta.index].append(delta)
    return found


@pytest.mark.parametrize("stop", [(), ("\n",), (" the",), ("and", ".\n")])
async def test_a_stream_adds_up_to_the_answer_without_one(engine: AsyncEngine, stop: tuple[str, ...]) -> None:
    fields: dict[str, Any] = {"n": 3, "seed": 5, "max_new_tokens": 30, "stop": stop}
    options = LogprobOptions(start=0, top=1, text=True)
    pieces = await gather(engine, call(PROMPTS[1], True, options, **fields))
    whole = await gather(engine, call(PROMPTS[1], False, options, **fields))
    assert all(len(deltas) == 1 for deltas in whole) and any(len(deltas) > 2 for deltas in pieces)
    for a, b in zip(pieces, whole, strict=True):
        streamed, direct = collect(a), collect(b)
        for name in ("text", "ids", "ids_text", "finish", "segments"):
            x, y = getattr(streamed, name), getattr(direct, name)
            assert (x() if callable(x) else x) == (y() if callable(y) else y)
        assert [t.id for t in streamed.output_logprobs] == [t.id for t in direct.output_logprobs]
        assert [t.text for t in streamed.output_logprobs] == [t.text for t in direct.output_logprobs]
        assert len(direct.output_logprobs) == direct.usage.completion_tokens
        assert streamed.usage.completion_tokens == direct.usage.completion_tokens
        assert not any(s in direct.text for s in stop) or direct.finish.type == "length"
    assert len({collect(d).text for d in whole}) > 1  # the samples differ


async def test_ends_minimum_and_bias(engine: AsyncEngine) -> None:
    text = "12 + 35 ="
    [[plain]] = await gather(engine, call(text, False, temperature=0, max_new_tokens=8, ignore_eos=True))
    first = plain.ids[0]
    [[ended]] = await gather(engine, call(text, False, temperature=0, stop_token_ids=(first,)))
    assert (ended.text, ended.ids, ended.finish) == ("", (), Finish(type="stop", matched=first))
    assert ended.usage is not None and ended.usage.completion_tokens == 1
    fields: dict[str, Any] = {"temperature": 0, "stop_token_ids": (first,), "max_new_tokens": 8}
    [[later]] = await gather(engine, call(text, False, min_new_tokens=3, **fields))
    assert len(later.ids) >= 3 and first not in later.ids[:3]
    [[ignored]] = await gather(engine, call(text, False, ignore_eos=True, **fields))
    assert ignored.ids == plain.ids and ignored.finish == Finish(type="length", length=8)
    [[pushed]] = await gather(engine, call(text, False, logit_bias={77: 100.0}, max_new_tokens=4))
    assert pushed.ids == (77,) * 4
    [[banned]] = await gather(
        engine, call(text, False, temperature=0, logit_bias={first: -100.0}, max_new_tokens=4)
    )
    assert first not in banned.ids
    [[none]] = await gather(engine, call(text, False, max_new_tokens=0))
    assert none.text == "" and none.finish is not None and none.finish.type == "length"


async def test_callers_without_a_stream_that_leave_free_everything(engine: AsyncEngine) -> None:
    async def leave(i: int) -> None:
        request = call(f"{PROMPTS[1]} {i}", False, max_new_tokens=2000, ignore_eos=True)
        task = asyncio.ensure_future(gather(engine, request))
        await asyncio.sleep(0.01 * (i % 3))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    await asyncio.gather(*(leave(i) for i in range(60)))
    while (stats := await engine.stats())["num_running_reqs"] or stats["num_waiting_reqs"]:
        await asyncio.sleep(0.02)
    assert stats["kv_cache"]["used_tokens"] == 0


async def test_scores_are_sums_over_the_choices_tokens(engine: AsyncEngine) -> None:
    prompt = "The capital of Japan is"
    choices = (" Tokyo", " Paris", " Nairobi")
    await engine.prefill((TextSegment(prompt),))
    result = await engine.score(
        Score(prompt=(TextSegment(prompt),), choices=choices, unconditional=True, id="s")
    )
    assert result.cached_tokens > 0 and result.prompt_tokens == len(engine.tokenizer.encode(prompt))
    assert max(result.choices, key=lambda c: c.mean) is result.choices[0]
    for choice, score in zip(choices, result.choices, strict=True):
        ids = [t.id for t in score.tokens]
        assert engine.tokenizer.encode(prompt + choice)[-len(ids) :] == ids
        request = call(prompt + choice, False, LogprobOptions(start=0), max_new_tokens=0)
        [[whole]] = await gather(engine, request)
        wanted = [t.logprob for t in (whole.input_logprobs or ())[-len(ids) :]]
        assert [t.logprob for t in score.tokens] == pytest.approx(wanted, abs=1e-4)
        assert score.unconditional is not None
        assert [t.id for t in score.unconditional] == ids and score.unconditional[0].logprob is None
