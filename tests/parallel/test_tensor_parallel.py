"""Two ranks give the tokens of one; a rank that is gone ends the engine, and says so."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from runtime.api import Constraint, SamplingParams
from runtime.batch import Batch, Sampled
from runtime.config import EngineConfig
from runtime.engine.device import DeviceRunner
from runtime.engine.loop import EngineLoop
from runtime.engine.messages import Add, Output
from runtime.engine.pending import Pending
from runtime.errors import EngineDead, InvalidRequest, ModelError
from runtime.parallel.group import Group
from runtime.parallel.ranks import follow
from tests.tiny_loop import KINDS, answers, folder, options

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
    ],
)
WHERE = pytest.mark.parametrize("device", ["cpu", CUDA])


@WHERE
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_give_the_tokens_of_one(kind: str, device: str, tmp_path: Path) -> None:
    path = folder(tmp_path, kind)
    wanted = answers(EngineLoop(options(path)))
    loop = EngineLoop(options(path, device, tensor_parallel_size=2))
    try:
        assert answers(loop) == wanted
        assert answers(loop) == wanted, "and with a warm cache"
    finally:
        loop.close()


@WHERE
@pytest.mark.timeout(120)
def test_two_ranks_give_the_vectors_of_one(device: str, tmp_path: Path) -> None:
    path = folder(tmp_path, "llama")
    found = []
    for size in (1, 2):
        loop = EngineLoop(options(path, device, tensor_parallel_size=size, is_embedding=True))
        try:
            prompts = {"a": [2, 3, 4], "b": [5] * 40}
            for id, tokens in prompts.items():
                quiet = SamplingParams(max_new_tokens=0)
                assert not loop.handle(Add(id, tokens, quiet, seed=0, pool=True))
            got: dict[str, list[float]] = {}
            while loop.busy:
                for m in loop.step():
                    assert isinstance(m, Output) and m.vector is not None
                    got[m.id] = torch.frombuffer(bytearray(m.vector), dtype=torch.float32).tolist()
            found.append(got)
        finally:
            loop.close()
    assert found[0].keys() == found[1].keys() == prompts.keys()
    assert all(found[1][i] == pytest.approx(found[0][i], abs=1e-5) for i in prompts)


@WHERE
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("how", "message"),
    [(signal.SIGKILL, "rank 1 of 2 has ended"), (signal.SIGSTOP, "a step failed|did not answer in time")],
)
def test_a_rank_that_is_gone_ends_the_engine(
    how: signal.Signals, message: str, device: str, tmp_path: Path
) -> None:
    loop = EngineLoop(options(folder(tmp_path, "llama"), device, tensor_parallel_size=2, dist_timeout=8.0))
    assert loop._ranks is not None
    process = loop._ranks._processes[0]
    try:
        loop.handle(Add("a", [2, 3, 4], SamplingParams(max_new_tokens=200, ignore_eos=True), seed=0))
        loop.step()
        os.kill(process.pid, how)
        if how is signal.SIGKILL:
            process.wait()
        with pytest.raises(EngineDead, match=message):
            for _ in range(200):
                loop.step()
    finally:
        process.kill()
        loop.close()


@pytest.mark.timeout(60)
def test_ranks_that_disagree_are_noticed(tmp_path: Path) -> None:
    loop = EngineLoop(options(folder(tmp_path, "llama"), tensor_parallel_size=2))
    assert loop._ranks is not None
    try:
        loop.handle(Add("a", [2, 3, 4], SamplingParams(max_new_tokens=20, ignore_eos=True), seed=0))
        batch = loop.scheduler.next_batch()
        assert batch is not None
        loop._ranks.send(batch)
        drawn = loop.runner.run(batch)
        with pytest.raises(EngineDead, match=f"different tokens in step {drawn.step}"):
            loop._ranks.landed(Sampled(drawn.step, [(t + 1) % 97 for t in drawn.tokens]))
            while True:
                loop._ranks.check()
                time.sleep(0.01)
    finally:
        loop.close()


def test_ranks_leave_nothing_behind(tmp_path: Path) -> None:
    loop = EngineLoop(options(folder(tmp_path, "llama"), tensor_parallel_size=2))
    assert loop._ranks is not None
    process, place = loop._ranks._processes[0], Path(loop._ranks._folder.name)
    assert place.stat().st_mode & 0o777 == 0o700
    loop.close()
    assert process.poll() is not None and not place.exists()


def test_sizes_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    path = folder(tmp_path, "llama")
    with pytest.raises(ModelError, match="which --tensor-parallel-size 3 does not divide"):
        EngineLoop(options(path, tensor_parallel_size=3))
    with pytest.raises(InvalidRequest, match="give 1 to 64"):
        EngineLoop(options(path, tensor_parallel_size=0))


def _written(loop: EngineLoop, requests: list[Add]) -> dict[str, list[int]]:
    out: dict[str, list[int]] = {r.id: [] for r in requests}
    left = len(requests)
    for request in requests:
        loop.handle(request)
    while left:
        for message in loop.step():
            assert isinstance(message, Output), message
            out[message.id] += message.tokens
            left -= message.finish is not None
    return out


@pytest.mark.timeout(120)
@pytest.mark.parametrize("guesses", [0, 8])
def test_constraints_hold_on_every_rank(guesses: int) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 4}, "ok": {"type": "boolean"},
                                               "more": {"type": "string", "maxLength": 3}},
              "required": ["name", "ok", "more"], "additionalProperties": False}  # fmt: skip
    constraints = [Constraint("regex", "(yes|no), [a-z]{3}"), Constraint("json_schema", json.dumps(schema))]
    found = []
    for ranks in (1, 2):
        config = EngineConfig.of(
            {
                "device": "cpu",
                "threads": 1,
                "tensor_parallel_size": ranks,
                "max_total_tokens": 600,
                "constrained_guesses": guesses,
                "dtype": "float32",
            }
        )
        loop = EngineLoop(config)
        try:
            requests = [
                Add(
                    str(i),
                    [5, 6, 7 + i],
                    SamplingParams(max_new_tokens=40, constraint=constraints[i % 2]),
                    seed=i,
                )
                for i in range(4)
            ]
            found.append(_written(loop, requests))
            assert (loop.scheduler.guessed_tokens > 0) == (guesses > 0)
        finally:
            loop.close()
    from runtime.tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer(config.folder)
    texts = [tokenizer.decode([t for t in ids if t not in loop.ends]) for ids in found[1].values()]
    assert found[0] == found[1]
    assert all(text.startswith(("yes, ", "no, ")) for text in texts[::2])
    assert all(list(json.loads(text)) == ["name", "ok", "more"] for text in texts[1::2])


class _Slow(DeviceRunner):
    """Batches that end when the test says so; `said` is what was done in order."""

    def __init__(self, ended: set[int], said: list[str]) -> None:
        self.ended, self.said = ended, said

    def launch(self, batch: Batch) -> Any:
        self.said.append(f"launch {batch.step}")
        query = SimpleNamespace(query=lambda: batch.step in self.ended)
        return Pending(batch, event=query)  # type: ignore[arg-type]

    def collect(self, pending: Pending) -> Sampled:
        self.said.append(f"collect {pending.batch.step}")
        self.ended.add(pending.batch.step)
        return Sampled(pending.batch.step, [], [], {}, [])


class _Inbox:
    """Messages that come one look after another; at the end it stops the loop."""

    def __init__(self, looks: list[Batch | None]) -> None:
        self.looks = looks

    def poll(self, _: int) -> bool:
        if self.looks and self.looks[0] is None:
            self.looks.pop(0)
            return False
        return True

    def recv(self) -> bytes:
        if not self.looks:
            raise EOFError
        batch = self.looks.pop(0)
        assert batch is not None
        return msgspec.msgpack.encode(batch)


def test_a_rank_queues_the_next_batch_while_one_runs() -> None:
    said: list[str] = []
    batches = [Batch(step, [], []) for step in (1, 2, 3)]
    inbox = _Inbox([batches[0], None, None, batches[1], batches[2]])
    with pytest.raises(EOFError):
        follow(_Slow(set(), said), inbox, SimpleNamespace(send=lambda _: None), 1)
    assert said == ["launch 1", "launch 2", "collect 1", "launch 3", "collect 2"]
    said.clear()
    inbox = _Inbox([batches[0], None, batches[1]])
    with pytest.raises(EOFError):
        follow(_Slow({1}, said), inbox, SimpleNamespace(send=lambda _: None), 1)
    assert said == ["launch 1", "collect 1", "launch 2"]


def test_a_rank_may_start_later_than_the_limit_of_an_answer(tmp_path: Path) -> None:
    """Imports and weights take one longer than another, on a busy machine above all; after that, silence is an end."""
    limit = 0.5
    with ThreadPoolExecutor(2) as pool:

        def member(rank: int) -> Group:
            return Group(rank, 2, tmp_path, "cpu", limit)

        first = pool.submit(member, 0)
        time.sleep(2 * limit)
        groups = [pool.submit(member, 1).result(), first.result()]
        one = pool.submit(groups[0].smallest, 4)
        time.sleep(2 * limit)
        assert groups[1].smallest(3) == one.result() == 3
        with pytest.raises(RuntimeError, match="Timed out"):
            groups[1].gather_columns(torch.ones(2, 2))


def test_the_likeliest_token_of_all_ranks(tmp_path: Path) -> None:
    """The lowest of equal ones; a maximum that is not finite stays one."""
    best = [torch.tensor([1.0, 2.0, 3.0, float("inf")]), torch.tensor([0.0, 2.0, 4.0, 1.0])]
    tokens = [torch.tensor([3, 4, 0, 1]), torch.tensor([0, 1, 2, 3])]
    with ThreadPoolExecutor(2) as pool:

        def member(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
            group = Group(rank, 2, tmp_path, "cpu", 30.0)
            return group.likeliest(best[rank], tokens[rank], 10 * rank)

        for high, found in pool.map(member, range(2)):
            assert high.tolist() == [1.0, 2.0, 4.0, float("inf")]
            assert found.tolist() == [3, 4, 12, 1]


def _gone() -> None:
    raise EngineDead("rank 1 of 2 has ended")


@pytest.mark.parametrize(
    ("look", "message"),
    [(_gone, "rank 1 of 2 has ended"), (lambda: None, "did not answer in time; see --dist-timeout")],
)
def test_whoever_waits_for_ranks_learns_of_their_end(
    look: Callable[[], None], message: str, tmp_path: Path
) -> None:
    group = Group(0, 1, tmp_path, "cpu", 0.2)
    left = 3

    def query() -> bool:
        nonlocal left
        left -= 1
        return left <= 0

    group.until(SimpleNamespace(query=query))
    assert left == 0
    group.look = look
    with pytest.raises(EngineDead, match=message):
        group.until(SimpleNamespace(query=lambda: False))


def test_a_rank_that_ends_while_others_load_ends_the_start(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        groups = list(pool.map(lambda rank: Group(rank, 2, tmp_path, "cpu", 30.0), range(2)))
    groups[0].look = _gone
    with pytest.raises(EngineDead, match="rank 1 of 2 has ended"):
        groups[0].smallest(4)
