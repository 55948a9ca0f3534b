"""`runtime bench latency` and `offline` with the embedded model, and what their figures are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from runtime.bench.commands import app
from runtime.bench.driver import Answered, Driver, Outcome
from runtime.bench.latency import decode_step, first_tokens
from runtime.bench.report import Spread, figure
from runtime.bench.steps import DEVICE, HOST, StepTrace
from runtime.bench.workload import Asked, Workload, read_rows
from runtime.config import EngineConfig
from runtime.errors import InvalidRequest
from runtime.flags import fields_of


@pytest.fixture(scope="module")
def driver() -> Driver:
    return Driver(EngineConfig(max_total_tokens=4096, max_running_requests=8))


def run(*arguments: str) -> str:
    found = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout


# -- what is asked --------------------------------------------------------------------------------------------------


@given(
    count=st.integers(1, 20),
    size=st.integers(1, 50),
    new=st.integers(1, 50),
    ratio=st.floats(0, 1),
    head=st.integers(0, 20),
    groups=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_requests_have_the_lengths_that_were_asked_for(
    count: int, size: int, new: int, ratio: float, head: int, groups: int, seed: int
) -> None:
    workload = Workload(
        num_prompts=count,
        input_len=size,
        output_len=new,
        range_ratio=ratio,
        prefix_len=head,
        prefixes=groups,
        seed=seed,
    )
    found = workload.requests(8192)
    assert found == workload.requests(8192)
    assert len(found) == count
    for asked in found:
        assert isinstance(asked.prompt, list)
        assert head + max(1, round(size * ratio)) <= len(asked.prompt) <= head + size
        assert max(1, round(new * ratio)) <= asked.new <= new
        assert all(0 <= t < 8192 for t in asked.prompt)
    heads = {tuple(a.prompt[:head]) for a in found}
    assert len(heads) <= groups
    words = workload.requests(None)
    assert sorted(len(str(a.prompt).split()) for a in words) == sorted(len(a.prompt) for a in found)


def test_another_salt_gives_other_prompts() -> None:
    workload = Workload(num_prompts=5)
    first, second = workload.requests(8192), workload.requests(8192, salt=1)
    assert all(a.prompt != b.prompt for a, b in zip(first, second, strict=True))


def test_requests_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "Hello"}\n\n{"prompt": [5, 6], "max_tokens": 3}\n')
    assert read_rows(file, 9) == [Asked("Hello", 9), Asked([5, 6], 3)]
    found = Workload(dataset=str(file), num_prompts=3, output_len=9).requests(None)
    assert found == [Asked("Hello", 9), Asked([5, 6], 3), Asked("Hello", 9)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "rows.jsonl:1: not valid JSON"),
        ('{"prompt": "a"}\n{"text": "b"}', "rows.jsonl:2: needs a prompt, a text or a list of token ids"),
        ('{"prompt": [1, "a"]}', "rows.jsonl:1: needs a prompt"),
        ('{"prompt": "a", "max_tokens": 0}', "rows.jsonl:1: max_tokens is 0; give a number of at least 1"),
        ("\n", "holds no requests"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(InvalidRequest, match=message.replace("|", r"\|")):
        read_rows(tmp_path / "rows.jsonl", 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_prompts": 0}, "--num-prompts 0: give at least 1"),
        ({"range_ratio": 1.5}, "--range-ratio 1.5: give a number from 0 to 1"),
        ({"prefix_len": -1}, "--prefix-len -1: give 0 or more"),
        ({"dataset": "nowhere.jsonl"}, "--dataset 'nowhere.jsonl': No such file or directory"),
    ],
)
def test_a_bad_workload_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        Workload(**options).requests(None)


# -- figures --------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 100), min_size=1, max_size=40))
def test_percentiles_are_those_of_numpy(seconds: list[float]) -> None:
    found = Spread.of(seconds)
    assert found is not None
    assert found.p99 == pytest.approx(float(np.percentile(seconds, 99)) * 1e3, abs=1e-3)
    assert found.median == pytest.approx(float(np.median(seconds)) * 1e3, abs=1e-3)
    assert found.median <= found.p90 <= found.p95 <= found.p99 <= found.max


def test_no_times_spread_nowhere() -> None:
    assert Spread.of([]) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.6, "12,346"), (99.96, "100.0"), (1.234, "1.23"), (0.01234, "0.012"), (15, "15"), (None, "-")],
)
def test_figures(value: float | None, text: str) -> None:
    assert figure(value) == text


def test_a_decode_step_is_counted_while_all_requests_decode() -> None:
    """Two requests: the second's prompt takes one turn more, then turns of 1 s, at the end one of two steps in 1 s."""
    first = Answered([(2.0, 1), (5.0, 1), (6.0, 1), (7.0, 2)])
    second = Answered([(5.0, 1), (6.0, 1), (7.0, 2)])
    outcome = Outcome(7.0, [first, second], [(1.0, 0), (2.0, 1), (5.0, 2), (6.0, 2), (7.0, 4)])
    assert first_tokens(outcome) == 5.0
    assert decode_step(outcome, 2) == 0.5  # of three steps: 1 s, and 0.5 s twice
    assert first.between == 5 / 4
    assert Answered([(1.0, 1)]).between is None


# -- runs -----------------------------------------------------------------------------------------------------------


def test_answers_come_as_long_as_asked(driver: Driver) -> None:
    asked = [Asked([5, 6, 7], 4), Asked("Hello there", 1), Asked([9] * 30, 7)]
    ended: list[int] = []
    outcome = driver.run(asked, done=lambda: ended.append(1))
    assert [a.tokens for a in outcome.answers] == [4, 1, 7]
    assert sum(tokens for _, tokens in outcome.turns) == outcome.written == 12
    assert len(ended) == 3
    assert outcome.seconds >= max(a.last for a in outcome.answers)


def test_what_would_not_run_together_is_refused(driver: Driver) -> None:
    with pytest.raises(InvalidRequest, match="9 needs 9 seats, there are 8; add --max-running-requests 9"):
        driver.check(9, 10)
    with pytest.raises(InvalidRequest, match="more than the context"):
        driver.check(1, 5000)
    with pytest.raises(InvalidRequest, match="need 8000 tokens of KV memory, there are 4096"):
        driver.check(8, 1000)
    with pytest.raises(InvalidRequest, match=r"a request was refused: .*token id 99999 is outside"):
        driver.run([Asked([99999], 1)])


def test_the_trace_has_each_turn_on_both_lanes(driver: Driver) -> None:
    asked = [Asked([11, 12, 13, 14], 3), Asked([21, 22], 3)]
    with StepTrace(driver.loop) as steps:
        driver.run(asked)
    assert [(t.rows, t.prompts, t.steps) for t in steps.turns] == [(0, 6, 1), (2, 0, 1), (2, 0, 1)]
    spans = [e for e in steps.trace.events if e["ph"] == "X"]
    assert [e["name"] for e in spans if e["tid"] == DEVICE] == ["prefill 6", "decode 2", "decode 2"]
    names = [e["name"] for e in spans if e["tid"] == HOST]
    assert names.count("run") == names.count("plan") == names.count("book") == 3
    shares = {s["kind"]: s for s in steps.shares()}
    assert shares["with prompts"]["prompt_tokens"] == 6
    assert shares["to 16 rows"]["turns"] == 2 and shares["to 16 rows"]["rows"] == 2
    before = len(steps.trace.events)
    driver.run(asked)
    assert len(steps.trace.events) == before  # nobody watches any more


def test_latency(tmp_path: Path) -> None:
    out, profile = tmp_path / "found.json", tmp_path / "trace.json"
    text = run(
        "latency", "--batch-size", "1,2", "--input-len", "8", "--output-len", "1,4", "--repeats", "1", "--run-name", "x",
        "--max-total-tokens", "512", "--json", str(out), "--profile", str(profile),
    )  # fmt: skip
    found = json.loads(out.read_text())
    assert (found["bench"], found["run_name"], found["total_tokens"]) == ("latency", "x", 512)
    assert [(r["batch_size"], r["output_len"]) for r in found["results"]] == [(1, 1), (1, 4), (2, 1), (2, 4)]
    assert ["median_decode_latency" in r for r in found["results"]] == [False, True, False, True]
    assert "Latency, LlamaForCausalLM, cpu, float32" in text
    lanes = [e["args"]["name"] for e in json.loads(profile.read_text())["traceEvents"] if e["ph"] == "M"]
    assert lanes == ["host", "device"]


def test_offline_appends_lines(tmp_path: Path) -> None:
    out = tmp_path / "found.jsonl"
    arguments = ("offline", "--num-prompts", "5", "--input-len", "8", "--prefix-len", "8", "--output-len", "3",
                 "--max-total-tokens", "512", "--max-running-requests", "2", "--json", str(out))  # fmt: skip
    assert "output tokens/s" in run(*arguments)
    run(*arguments)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["requests"], r["input_tokens"], r["output_tokens"]) for r in lines] == [(5, 80, 15)] * 2
    assert lines[0]["reused_share"] == lines[1]["reused_share"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("latency", "--batch-size", "1,x"),
            "--batch-size '1,x': give numbers of at least 1, such as 1,8,32",
        ),
        (("latency", "--json", "none/such/f.json"), "there is no folder 'none/such'; make it first"),
        (("offline", "--profile", "."), "--profile '.' is a folder; name a file in it"),
    ],
)
def test_mistakes_are_told_before_anything_runs(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_options_of_a_config_are_picked() -> None:
    assert fields_of(Workload, {"num_prompts": 3, "page_size": 2}) == Workload(num_prompts=3)


def test_a_file_in_sharegpt_s_form(tmp_path: Path) -> None:
    file = tmp_path / "talks.json"
    talks = [
        [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
        [{"from": "human", "value": "?"}],
    ]
    file.write_text(json.dumps([{"conversations": t} for t in talks]))
    workload = Workload(dataset=str(file), dataset_name="sharegpt", num_prompts=2, output_len=7)
    assert workload.requests(100) == [Asked("Hi", 7)] * 2
    for bad in ("[1]", "[{}]", '[{"conversations": [{}, {}]}]'):
        file.write_text(bad)
        with pytest.raises(InvalidRequest, match=r"ShareGPT's form|no conversations"):
            workload.requests(100)
    with pytest.raises(InvalidRequest, match="name it with --dataset-path"):
        Workload(dataset_name="sharegpt").check()
    with pytest.raises(InvalidRequest, match="leave one out"):
        Workload(dataset=str(file), dataset_name="random").check()


def test_a_cached_prompt_gives_what_a_computed_one_does() -> None:
    text = run("latency", "--correctness-test", "--cut-len", "3", "--max-total-tokens", "512")
    assert text.count("-> ") == 3 and text.count("3 of ") == 3 and " Paris" in text
