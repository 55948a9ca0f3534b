"""The scheduler against a model that is a hash: any order of calls gives what one request alone would get."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtime.api import Constraint, Finish, LogprobOptions, SamplingParams, TokenLogprob
from runtime.batch import Batch, Guesses, Sampled, Slice
from runtime.errors import TooLong
from runtime.request import Request
from runtime.scheduler.scheduler import Scheduler

VOCABULARY = 7
END = 0


def next_token(tokens: list[int]) -> int:
    return hash(tuple(tokens)) % VOCABULARY


def forced_after(tokens: list[int]) -> list[int]:
    """What a constraint lets follow alone on these tokens."""
    number = hash((*tokens, -1))
    return [(number >> k) % VOCABULARY for k in range(number % 7)] if number % 3 == 0 else []


def guessed_after(tokens: list[int]) -> list[int]:
    """What is thought likely behind these tokens: right so far, wrong from somewhere on, or nothing. Nothing is forced inside."""
    number = hash((*tokens, -2)) % 1000
    seen, found = list(tokens), []
    for k in range(number % 6):
        token = next_token(seen)
        seen.append(token)
        if forced_after(seen):
            break
        found.append(token if k < number // 6 % 6 else token + 1)
    return found


def alone(prompt: list[int], max_new: int, constrained: bool = False) -> list[int]:
    """What a request gets when nothing else runs."""
    tokens = [*prompt, *begun(prompt, max_new)] if constrained else list(prompt)
    most = len(prompt) + max_new
    while len(tokens) < most:
        before = len(tokens)
        tokens.append(next_token(tokens))
        tokens += forced_after(tokens) if constrained else []
        tokens = tokens[:most]
        if END in tokens[before:]:
            tokens = tokens[: tokens.index(END, before) + 1]
            break
    return tokens[len(prompt) :]


def begun(prompt: list[int], max_new: int) -> list[int]:
    """The outputs that are forced before any is drawn; no end among them."""
    return [t or 1 for t in forced_after(prompt)[: max(0, max_new - 1)]]


def one_by_one(piece: Slice) -> list[Slice]:
    """A slice of several steps as slices of one; the pages come with the first."""
    return [
        Slice(
            piece.seat,
            piece.start + k,
            piece.tokens,
            piece.pages if k == 0 else [],
            piece.sample,
            piece.output + k,
            piece.scores,
            pool=piece.pool,
            guesses=piece.guesses,
        )
        for k in range(piece.steps)
    ]


class FakeRunner:
    """Keeps the pool's content by slot, as a real runner does, and so notices any page that is not what it should be."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.slots: dict[int, int] = {}
        self.rows: dict[int, list[int]] = {}
        self.last: dict[int, int] = {}
        self.constrained: set[int] = set()

    def run(self, batch: Batch) -> Sampled:
        for seat in batch.released:
            self.rows.pop(seat, None)
        for a in batch.admitted:
            assert a.seat not in self.rows, "a seat was given twice"
            self.rows[a.seat] = list(a.pages)
            self.constrained.discard(a.seat)
            if a.sampling.constraint is not None:
                self.constrained.add(a.seat)
        tokens, prompt = [], {}
        forced: dict[int, list[int]] = {}
        guesses: dict[int, Guesses] = {}
        right: dict[int, int] = {}
        pooled: dict[int, bytes] = {}
        assert batch.steps == 1 or not any(s.tokens for s in batch.slices)
        for s in (single for piece in batch.slices for single in one_by_one(piece)):
            row = self.rows[s.seat]
            row += s.pages
            new = s.ids or [self.last[s.seat]]
            for i, token in enumerate(new):
                position = s.start + i
                self.slots[row[position // self.page_size] * self.page_size + position % self.page_size] = (
                    token
                )
            length = s.start + len(new)
            seen = [
                self.slots[row[p // self.page_size] * self.page_size + p % self.page_size]
                for p in range(length)
            ]
            if s.scores >= 0:
                prompt[s.seat] = [
                    (TokenLogprob(-float(p), new[p - s.start + 1]), [])
                    for p in range(s.scores, length)
                    if p - s.start + 1 < len(new)
                ]
            if s.pool:
                pooled[s.seat] = bytes(seen)
            if s.sample:
                seen = seen[: length - len(s.guesses)]
                drawn = next_token(seen)
                tokens.append(drawn)
                for guess in s.guesses:
                    if guess != drawn:
                        break
                    right[s.seat] = right.get(s.seat, 0) + 1
                    seen.append(drawn)
                    drawn = next_token(seen)
                    tokens.append(drawn)
                self.last[s.seat] = (
                    drawn if not s.guesses else -1
                )  # a step behind guesses must not count on it
                if s.seat in self.constrained:
                    if found := forced_after([*seen, drawn]):
                        forced[s.seat] = found
                    if not batch.ahead and (likely := guessed_after([*seen, drawn, *found])):
                        now = [*seen, drawn, *found]
                        sure = [k for k in range(1, len(likely)) if next_token(now + likely[:k]) == likely[k]]
                        guesses[s.seat] = tuple(likely), tuple(sure[::2])
        return Sampled(
            batch.step, tokens, prompt=prompt, forced=forced, pooled=pooled, verified=right, guesses=guesses
        )


class SchedulerMachine(RuleBasedStateMachine):
    depth = 1
    page_size = 1
    turn = 1
    ahead_from = 8  # never, with so few seats

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(
            pages=48 // self.page_size,
            page_size=self.page_size,
            max_running=4,
            chunk=8,
            depth=self.depth,
            context=40,
            turn=self.turn,
            ahead_from=self.ahead_from,
            guesses=5,
        )
        self.runner = FakeRunner(self.page_size)
        self.flight: deque[Sampled] = deque()
        self.wanted: dict[str, tuple[list[int], int, bool]] = {}
        self.got: dict[str, list[int]] = {}
        self.aborted: set[str] = set()
        self.count = 0

    @rule(
        prompt=st.lists(st.integers(1, 2), min_size=1, max_size=20),
        shared=st.booleans(),
        max_new=st.integers(0, 18),
        priority=st.integers(0, 1),
        constrained=st.booleans(),
        pool=st.booleans(),
    )
    def add(
        self,
        prompt: list[int],
        shared: bool,
        max_new: int,
        priority: int,
        constrained: bool,
        pool: bool = False,
    ) -> None:
        tokens = [1] * 17 + prompt[:3] if shared else prompt
        self.count += 1
        id = f"r{self.count}"
        sampling = SamplingParams(constraint=Constraint("regex", "any") if constrained else None)
        request = Request(
            id,
            tokens,
            sampling,
            max_new=max_new,
            ends=frozenset({END}),
            priority=priority,
            forced=begun(tokens, max_new) if constrained else (),
            pool=pool and max_new == 0,
        )
        self.scheduler.add(request)
        self.wanted[id] = (tokens, max_new, constrained)
        self.got[id] = []

    @rule(data=st.data(), failed=st.booleans())
    @precondition(lambda self: self.wanted)
    def abort(self, data: st.DataObject, failed: bool) -> None:
        id = data.draw(st.sampled_from(sorted(self.wanted)))
        if self.scheduler.end(id, Finish(type="error" if failed else "abort")) is not None:
            del self.wanted[id]
            self.aborted.add(id)

    @rule()
    def launch(self) -> None:
        batch = self.scheduler.next_batch()
        if batch is not None:
            assert sum(len(s.ids) for s in batch.slices) <= 8
            assert sum(len(s.guesses) for s in batch.slices) <= 5
            self.flight.append(self.runner.run(batch))

    @rule()
    @precondition(lambda self: self.flight)
    def land(self) -> None:
        for event in self.scheduler.commit(self.flight.popleft()):
            id = event.request.id
            assert id not in self.aborted
            self.got[id] += event.tokens
            assert 0 <= event.forced <= len(event.tokens) and (event.forced == 0 or self.wanted[id][2])
            assert (event.vector is not None) == event.request.pool
            if event.vector is not None:
                assert list(event.vector) == self.wanted[id][0] and event.finish is not None
            if event.finish is not None:
                assert self.got[id] == alone(*self.wanted.pop(id))

    @rule()
    def run_dry(self) -> None:
        """Everything that was added finishes: nobody starves."""
        for _ in range(2000):
            if self.scheduler.idle:
                break
            self.launch()
            if self.flight:
                self.land()
        assert self.scheduler.idle and not self.wanted
        assert self.scheduler.flush()
        assert self.scheduler.cache.pool.free == self.scheduler.cache.pool.total

    @invariant()
    def accounts(self) -> None:
        self.scheduler.check()


class PipelinedMachine(SchedulerMachine):
    depth = 2


class PagedMachine(SchedulerMachine):
    depth = 2
    page_size = 4


class AheadMachine(SchedulerMachine):
    """Constrained requests do not wait for the token in flight."""

    depth = 2
    ahead_from = 0


class PagedAheadMachine(AheadMachine):
    page_size = 4
    turn = 5


class TurnsMachine(SchedulerMachine):
    depth = 2
    turn = 5

    @rule(turn=st.integers(1, 6))
    def lengthen(self, turn: int) -> None:
        self.scheduler.turn = turn


class PagedTurnsMachine(TurnsMachine):
    depth = 1
    page_size = 4


_SETTINGS = settings(
    max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = _SETTINGS
TestPipelined = PipelinedMachine.TestCase
TestPipelined.settings = _SETTINGS
TestPaged = PagedMachine.TestCase
TestPaged.settings = _SETTINGS
TestAhead = AheadMachine.TestCase
TestAhead.settings = _SETTINGS
TestPagedAhead = PagedAheadMachine.TestCase
TestPagedAhead.settings = _SETTINGS
TestTurns = TurnsMachine.TestCase
TestTurns.settings = _SETTINGS
TestPagedTurns = PagedTurnsMachine.TestCase
TestPagedTurns.settings = _SETTINGS


def drive(scheduler: Scheduler, runner: FakeRunner) -> dict[str, list[int]]:
    out: dict[str, list[int]] = {}
    while not scheduler.idle:
        batch = scheduler.next_batch()
        assert batch is not None
        for event in scheduler.commit(runner.run(batch)):
            out.setdefault(event.request.id, []).extend(event.tokens)
    return out


def request(id: str, tokens: list[int], max_new: int = 4, **options: object) -> Request:
    return Request(id, tokens, SamplingParams(), max_new=max_new, ends=frozenset({END}), **options)  # type: ignore[arg-type]


def test_shared_prefix_is_computed_once() -> None:
    scheduler, runner = Scheduler(pages=4096, chunk=64), FakeRunner(1)
    prefix = [1 + i % 5 for i in range(500)]
    for i in range(16):
        scheduler.add(request(f"r{i}", [*prefix, 1 + i % 6, 2 + i // 6], max_new=1))
    computed = 0
    while not scheduler.idle:
        batch = scheduler.next_batch()
        assert batch is not None
        computed += batch.tokens
        scheduler.commit(runner.run(batch))
    assert computed <= 500 + 16 * 2
    assert 15 * 500 <= scheduler.cached_tokens <= 15 * 501


def test_pressure_retracts_and_loses_nothing() -> None:
    scheduler, runner = Scheduler(pages=60, chunk=64, max_running=8), FakeRunner(1)
    scheduler._reserve.start = scheduler._reserve.share = scheduler._reserve.least = 0.0
    prompts = {f"r{i}": [1 + (i + j) % 6 for j in range(10)] for i in range(6)}
    for id, prompt in prompts.items():
        r = request(id, prompt, max_new=40)
        r.ends = frozenset()
        scheduler.add(r)
    out = drive(scheduler, runner)
    assert scheduler.retractions > 0
    for id, prompt in prompts.items():
        tokens = list(prompt)
        while len(tokens) < 50:
            tokens.append(next_token(tokens))
        assert out[id] == tokens[10:]


def test_nobody_waits_for_what_he_holds_twice_himself() -> None:
    """A prompt that two compute at the same time lies twice in the pool until the later one leaves its seat."""
    machine = PipelinedMachine()
    common = {"prompt": [1, 1], "shared": True, "priority": 0}
    machine.add(**common, max_new=4, constrained=False)  # type: ignore[arg-type]
    machine.launch()
    machine.add(**common, max_new=17, constrained=True)  # type: ignore[arg-type]
    machine.run_dry()
    assert machine.scheduler.retractions == 1


def test_too_long_names_the_sizes() -> None:
    scheduler = Scheduler(pages=32, context=64)
    with pytest.raises(
        TooLong, match=r"needs 50 tokens of KV memory \(10 of prompt, 40 new\) but the pool holds 32"
    ):
        scheduler.add(request("a", [1] * 10, max_new=40))
    with pytest.raises(
        TooLong, match=r"The input \(64 tokens\) is longer than the model's context length \(64"
    ):
        scheduler.add(request("a", [1] * 64, max_new=0))
    assert scheduler.limit(10, None) == 22 and scheduler.limit(10, 5) == 5


def test_a_thousand_aborts_leave_no_slot_in_use() -> None:
    scheduler, runner = Scheduler(pages=512, chunk=32, depth=2), FakeRunner(1)
    for i in range(1000):
        scheduler.add(request(f"r{i}", [1 + (i + j) % 6 for j in range(i % 40 + 1)], max_new=20))
    flight: deque[Sampled] = deque()
    live = [f"r{i}" for i in range(1000)]
    while live or flight:
        batch = scheduler.next_batch()
        if batch is not None:
            flight.append(runner.run(batch))
        for _ in range(5):
            if live:
                scheduler.abort(live.pop())
        if flight:
            scheduler.commit(flight.popleft())
    assert scheduler.idle and scheduler.cache.used == 0
    scheduler.check()


def test_prompt_scores_limit_reuse_and_come_once() -> None:
    scheduler, runner = Scheduler(pages=512, chunk=8), FakeRunner(1)
    tokens = [1 + i % 6 for i in range(30)]
    scheduler.add(request("warm", tokens, max_new=1))
    drive(scheduler, runner)
    scheduler.add(request("r", tokens, max_new=0, logprobs=LogprobOptions(start=11)))
    scores = []
    while not scheduler.idle:
        batch = scheduler.next_batch()
        assert batch is not None
        for event in scheduler.commit(runner.run(batch)):
            if event.prompt_scores is not None:
                scores.append(event.prompt_scores)
    assert scheduler.cached_tokens == 11
    assert len(scores) == 1


@pytest.mark.parametrize("policy", ["fcfs", "lpm", "dfs-weight", "random"])
def test_every_policy_finishes_everything(policy: str) -> None:
    scheduler, runner = Scheduler(pages=256, chunk=32, policy=policy), FakeRunner(1)
    prompts = {f"r{i}": [1 + i % 3] * 20 + [1 + i % 6] for i in range(40)}
    for id, prompt in prompts.items():
        scheduler.add(request(id, prompt))
    out = drive(scheduler, runner)
    assert out == {id: alone(prompt, 4) for id, prompt in prompts.items()}


def test_a_budget_that_ends_one_forced_output_early() -> None:
    """The last forced output goes in as a known token: the runner's newest is the drawn one before them."""
    machine = PipelinedMachine()
    machine.add(constrained=False, max_new=0, priority=0, prompt=[1], shared=True)
    machine.add(constrained=False, max_new=0, priority=0, prompt=[2, 1, 1, 1], shared=False)
    machine.add(constrained=True, max_new=8, priority=0, prompt=[1, 1, 2], shared=True)
    machine.run_dry()
