"""Constraints on the device give the tokens that the host's give: two batches in flight, retractions, aborts, any mixture."""

from __future__ import annotations

import re
from collections import deque
from functools import cached_property
from typing import Any

import pytest
import torch

from grammar.vocabulary import Vocabulary
from runtime.api import Constraint, LogprobOptions, SamplingParams
from runtime.attention.plain import PlainAttention
from runtime.attention.triton import TritonAttention
from runtime.constrain.cache import ConstraintCache
from runtime.constrain.compiler import ConstraintCompiler
from runtime.constrain.jump import Cuts
from runtime.engine.device import DeviceRunner, device_runner
from runtime.engine.runner import ModelRunner
from runtime.kv.store import KVStore
from runtime.models.decoder import Decoder
from runtime.models.spec import ArchSpec, AttnSpec, LayerSpec, MlpSpec, NormSpec, RopeSpec
from runtime.request import Request
from runtime.sampling.penalties import Penalties
from runtime.scheduler.scheduler import Scheduler

WORDS = [b"ab", b"abc", b"true", b"10", b"and", b"then", "日本".encode()]
EOS = 256 + len(WORDS)
VOCABULARY = Vocabulary.of([*(bytes([b]) for b in range(256)), *WORDS, b"</s>"], eos=[EOS])


class Compiler(ConstraintCompiler):
    """One whose vocabulary is known already; bytes are its tokenizer's tokens."""

    def __init__(self, jump: bool, guesses: int = 0) -> None:
        cuts = Cuts(lambda text: list(text.encode())) if jump else None
        super().__init__("nowhere", (EOS,), cuts=cuts, guesses=guesses)

    @cached_property
    def _cache(self) -> ConstraintCache:
        return ConstraintCache(VOCABULARY, cuts=self.cuts)


SHORT = "(ab|日本|c)+d?"
DIGITS = "[0-9]{2,30}"
FORCED = "(x|y), and then it is over: [a-z]{2,9}"
CHOSEN = "(x|y), then (red|green|bluish) or (one|two|three)s, and so on: [a-z]{2,5}"
ANY = r"\w{3,40}( true)?"
KINDS: list[tuple[str | None, dict[str, Any], int, LogprobOptions | None]] = [
    (SHORT, {"temperature": 0}, 9, None),
    (None, {"temperature": 0}, 8, None),
    (DIGITS, {"temperature": 0.9, "top_k": 9}, 14, None),
    (FORCED, {"temperature": 1.0}, 60, None),
    (ANY, {"temperature": 0, "repetition_penalty": 1.3}, 12, None),
    (SHORT, {"temperature": 1.2}, 3, None),
    (ANY, {"temperature": 0}, 7, LogprobOptions(start=-1, top=1)),
    (DIGITS, {"temperature": 0, "ignore_eos": True}, 20, None),
    (ANY, {"temperature": 1.0}, 16, None),
    (FORCED, {"temperature": 0.8, "repetition_penalty": 1.4, "frequency_penalty": 0.3}, 60, None),
    (None, {"temperature": 0}, 4, LogprobOptions(start=-1, top=1)),
    (CHOSEN, {"temperature": 1.0}, 50, None),
]
ALL = tuple(range(len(KINDS)))


@pytest.fixture(scope="module")
def model() -> Decoder:
    norm = NormSpec(1e-5)
    rope = RopeSpec(16, tuple(0.5**i for i in range(8)))
    layer = LayerSpec(AttnSpec(4, 2, 16, 0.25, rope), MlpSpec(48), norm)
    torch.manual_seed(5)
    made = Decoder(ArchSpec("tiny", 300, 32, 128, (layer,), norm, tied=False), torch.float32)
    for p in made.parameters():
        p.data = torch.ones_like(p) if p.dim() == 1 else torch.randn_like(p) * 0.4
    return made.to("cuda" if torch.cuda.is_available() else "cpu")


def request(i: int, compiler: ConstraintCompiler, runner: ModelRunner, seed: int = 40) -> Request:
    pattern, fields, max_new, logprobs = KINDS[i]
    constraint = None if pattern is None else Constraint("regex", pattern)
    sampling = SamplingParams(constraint=constraint, **fields)
    forced: list[int] = []
    if constraint is not None and logprobs is None:
        forced = compiler.begin(constraint, max_new)[: max_new - 1]
    return Request(
        str(i), [(7 * i + k) % 250 for k in range(3 + 2 * i)], sampling, max_new=max_new, seed=seed + i, logprobs=logprobs,
        ends=frozenset() if sampling.ignore_eos else frozenset((EOS,)), forced=forced,
        steady=runner.steady(sampling, logprobs),
    )  # fmt: skip


def generate(
    model: Decoder,
    kind: str,
    *,
    jump: bool,
    pages: int = 200,
    depth: int = 1,
    which: tuple[int, ...] = ALL,
    turn: int = 1,
    room: int = 1 << 20,
    ahead_from: int = 8,
    compiler: Compiler | None = None,
    seed: int = 40,
) -> dict[str, Any]:
    """Tokens of these requests, the most draws of each in flight at once, and retractions; number 8 is aborted half way."""
    device = next(model.parameters()).device
    scheduler = Scheduler(
        pages=pages,
        context=128,
        chunk=16,
        depth=depth,
        max_running=4,
        reuse=False,
        conservativeness=0,
        turn=turn,
        ahead_from=ahead_from,
    )
    store = KVStore(model.spec, pages, 1, torch.float32, str(device))
    compiler = compiler or Compiler(jump)
    made: ModelRunner
    if kind == "plain":
        made = ModelRunner(model, store, PlainAttention(store), (EOS,), compiler)
    else:
        largest = 4 if kind == "graphs" else 0
        made = device_runner(
            model,
            store,
            TritonAttention(store),
            (EOS,),
            compiler,
            seats=4,
            context=128,
            largest_graph=largest,
        )
        assert made.tables is not None
        made.tables.tables.max_bytes = room
    waiting = [request(i, compiler, made, seed) for i in which]
    everyone = {r.id: r for r in waiting}
    deepest = dict.fromkeys(everyone, 0)
    flight: deque[Any] = deque()

    def land() -> None:
        landed = flight.popleft()
        sampled = made.collect(landed) if isinstance(made, DeviceRunner) else landed
        assert not [s for s in sampled.failed if not scheduler.running[s].doomed]
        for event in scheduler.commit(sampled):
            if event.request.id == "8" and event.request.outputs >= 3:
                scheduler.abort("8")

    while waiting or not scheduler.idle:
        if waiting:
            scheduler.add(waiting.pop(0))
        batch = scheduler.next_batch()
        if batch is not None:
            flight.append(made.launch(batch) if isinstance(made, DeviceRunner) else made.run(batch))
        for r in everyone.values():
            deepest[r.id] = max(deepest[r.id], r.pending)
        while flight and (batch is None or len(flight) >= depth):
            land()
        if flight and isinstance(made, DeviceRunner):
            made.draw(flight[-1])
            if flight[-1].done is not None or (flight[-1].follows and not scheduler.ahead):
                land()
        scheduler.check()
    tokens = {id: r.tokens[r.prompt :] for id, r in everyone.items()}
    if "8" in tokens:
        tokens["8"] = tokens["8"][:3]
    return {
        "tokens": tokens,
        "deepest": deepest,
        "retractions": scheduler.retractions,
        "guessed": scheduler.guessed_tokens,
        "right": scheduler.verified_tokens,
    }


@pytest.fixture(scope="module", params=[False, True], ids=["drawn", "jumping"])
def plain(request: pytest.FixtureRequest, model: Decoder) -> tuple[bool, dict[str, Any]]:
    with torch.inference_mode():
        return request.param, generate(model, "plain", jump=request.param)


def test_texts_are_the_constraints(plain: tuple[bool, dict[str, Any]]) -> None:
    for (pattern, fields, max_new, _), tokens in zip(KINDS[:8], plain[1]["tokens"].values(), strict=False):
        assert len(tokens) <= max_new
        if pattern is not None:
            text = b"".join(VOCABULARY.tokens[t] for t in tokens if t != EOS).decode()
            assert re.fullmatch(pattern, text, re.ASCII if pattern is not ANY else 0), (pattern, text)
        if fields.get("ignore_eos"):
            assert len(tokens) == max_new and tokens[-1] == EOS


def test_tokens_are_those_of_the_hosts_matchers(plain: tuple[bool, dict[str, Any]], model: Decoder) -> None:
    jump, wanted = plain
    with torch.inference_mode():
        found = generate(model, "graphs" if jump else "eager", jump=jump, depth=2)
    assert found["tokens"] == wanted["tokens"]


def test_alone_the_hosts_matchers_are_waited_for(model: Decoder) -> None:
    which = (3, 6)
    with torch.inference_mode():
        wanted = generate(model, "plain", jump=True, which=which)
        found = generate(model, "graphs", jump=True, depth=2, which=which)
        ahead = generate(model, "graphs", jump=True, depth=2, which=which, ahead_from=1)
    assert found["tokens"] == ahead["tokens"] == wanted["tokens"]
    assert found["deepest"] == {"3": 1, "6": 1} and ahead["deepest"]["3"] == 2


def test_steps_are_queued_before_their_tokens_are_known_and_outputs_survive_a_retraction(
    model: Decoder,
) -> None:
    which = (2, 4, 5, 1)
    with torch.inference_mode():
        wanted = generate(model, "plain", jump=True, which=which)
        found = generate(model, "eager", jump=True, pages=36, depth=2, which=which)
    assert [found["deepest"][id] for id in ("2", "4", "1")] == [2, 2, 2]
    assert found["retractions"] > 0
    assert found["tokens"] == wanted["tokens"]


def test_a_draw_where_a_token_is_forced_is_void(model: Decoder) -> None:
    """Also for penalties, and where requests give way and come back."""
    which = (3, 9, 7, 0)
    with torch.inference_mode():
        wanted = generate(model, "plain", jump=True, which=which)
        found = generate(model, "graphs", jump=True, depth=2, which=which, ahead_from=1, pages=95)
    assert found["retractions"] > 0 and found["deepest"]["3"] == found["deepest"]["9"] == 2
    assert found["tokens"] == wanted["tokens"]


def test_a_void_draw_beside_log_probabilities_is_no_token_for_penalties(
    model: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second prompt ends in the batch in which the first request's void draw is made."""
    counted: list[int] = []
    add = Penalties.add

    def noted(self: Penalties, token: Any) -> None:
        counted.append(int(token))
        add(self, token)

    monkeypatch.setattr(Penalties, "add", noted)
    with torch.inference_mode():
        found = generate(model, "eager", jump=True, depth=2, which=(9, 10), ahead_from=1)
    tokens = found["tokens"]["9"]
    assert (
        counted[: len(tokens)] == tokens and len(tokens) > 20
    )  # what is drawn behind the end concerns nobody


GUESSING: list[tuple[str, dict[str, Any]]] = [
    ("plain", {}),
    ("eager", {"depth": 2}),
    ("graphs", {"depth": 2, "pages": 80}),
]


@pytest.mark.parametrize(("kind", "options"), GUESSING, ids=[f"{k}-{len(o)}" for k, o in GUESSING])
def test_guesses_change_no_token(model: Decoder, kind: str, options: dict[str, Any]) -> None:
    """What these requests wrote is guessed when they come again, rightly, and where others write something else, wrongly."""
    which = (3, 11, 7, 10)
    compiler = Compiler(True, guesses=6)
    with torch.inference_mode():
        once = generate(model, "plain", jump=True, which=which, compiler=compiler)
        again = generate(model, kind, jump=True, which=which, compiler=compiler, **options)
        wanted = generate(model, "plain", jump=True, which=which, seed=90)
        other = generate(model, kind, jump=True, which=which, compiler=compiler, seed=90, **options)
    assert again["tokens"] == once["tokens"] and other["tokens"] == wanted["tokens"]
    assert again["right"] > 0 and again["right"] >= again["guessed"] - 6
    assert 0 < other["guessed"] > other["right"]
    assert wanted["guessed"] == 0


@pytest.mark.parametrize("room", [1 << 20, 1800])
def test_several_steps_at_once(model: Decoder, room: int) -> None:
    """Where the device has no room for a table its seat is the host's, who is then asked between the steps."""
    which = (4, 2, 0)
    with torch.inference_mode():
        wanted = generate(model, "plain", jump=False, which=which)
        found = generate(model, "graphs", jump=False, depth=2, which=which, turn=4, room=room)
    assert found["tokens"] == wanted["tokens"]
    assert max(found["deepest"].values()) > 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_launching_waits_for_nothing(model: Decoder) -> None:
    """The host reads no value of the device until `collect`, also where a table is brought there."""
    compiler = Compiler(False)
    scheduler = Scheduler(pages=200, context=128, chunk=16, depth=2, max_running=4)
    store = KVStore(model.spec, 200, 1, torch.float32, "cuda")
    runner = device_runner(
        model, store, TritonAttention(store), (EOS,), compiler, seats=4, context=128, largest_graph=4
    )
    flight: deque[Any] = deque()
    for turn in range(24):
        if turn in (0, 1, 12):
            number = {0: 2, 1: 0, 12: 8}[turn]
            scheduler.add(request(number, compiler, runner))
        batch = scheduler.next_batch()
        if batch is not None:
            torch.cuda.set_sync_debug_mode("error" if turn > 5 else "default")  # the first compile kernels
            try:
                flight.append(runner.launch(batch))
            finally:
                torch.cuda.set_sync_debug_mode("default")
        if flight and (batch is None or len(flight) == 2):
            scheduler.commit(runner.collect(flight.popleft()))
