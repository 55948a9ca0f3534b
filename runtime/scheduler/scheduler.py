"""Which tokens run next.

A request's life is: waiting, running, finished; `next_batch` moves it forward and `commit` records what the
model did. Between the two the batch is in flight: its pages stay put, even if the request is aborted. With
`depth=2` the next batch may be asked for while one is in flight; its decode slices then continue tokens
that are not known here yet. If tokens turn out to be forced behind such a token, the slice has computed the token and its
draw is void: the forced ones go in as known tokens next. No torch and no clock, so a simulation can run it
(tests/engine/test_scheduler_machine.py).
"""

from __future__ import annotations

import heapq
from collections import deque

from runtime.api import Finish
from runtime.batch import Admission, Batch, Sampled, Slice
from runtime.errors import TooLong
from runtime.kv.cache import PrefixCache
from runtime.kv.pages import must
from runtime.request import Phase, Request
from runtime.scheduler.budget import Budget, Reserve
from runtime.scheduler.outcome import Event, decoded, landed
from runtime.scheduler.policy import POLICIES, ordered, prefix_in_progress

# Waiting requests looked at in one step.
LOOK_AHEAD = 512


class Scheduler:
    """Continuous batching over one page pool.

    pages         size of the pool, in pages of `page_size` tokens
    max_running   seats
    chunk         prompt tokens computed in one step at most; longer prompts take several steps
    context       tokens of prompt and outputs together
    depth         batches that may be handed out before the first is committed (1 or 2)
    reuse         keep and share prefixes
    turn          decode steps of a batch in which nothing but decoding happens; may be set at any time
    guesses       tokens that are guessed in one step at most
    ahead_from    running requests from which those that may have tokens forced do not wait for each token: a void draw now and
                  then then costs less than the host's work between two steps
    """

    def __init__(
        self,
        *,
        pages: int,
        page_size: int = 1,
        max_running: int = 256,
        chunk: int = 2048,
        context: int = 1 << 30,
        policy: str = "lpm",
        conservativeness: float = 1.0,
        depth: int = 1,
        reuse: bool = True,
        turn: int = 1,
        guesses: int = 64,
        ahead_from: int = 8,
    ) -> None:
        if policy not in POLICIES:
            raise ValueError(f"schedule policy {policy!r} is not known; choose one of {', '.join(POLICIES)}")
        if policy in ("lpm", "dfs-weight") and not reuse:
            policy = "fcfs"
        self.cache = PrefixCache(pages, page_size, reuse=reuse)
        self.context = context
        self.chunk = max(chunk, page_size)
        self.depth = depth
        self.turn = turn
        self.guesses = guesses
        self.ahead_from = ahead_from
        self.waiting: list[Request] = []
        self.running: dict[int, Request] = {}
        self.retractions = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.guessed_tokens = 0
        self.verified_tokens = 0
        self._policy = POLICIES[policy]
        self._reserve = Reserve(conservativeness=conservativeness)
        self._seats = list(range(max_running))
        self._released: list[int] = []
        self._ranks: list[Request] | None = None  # `running` by rank, until it changes
        self._flight: deque[tuple[Batch, list[Request]]] = deque()
        self._by_id: dict[str, Request] = {}
        self._arrivals = 0
        self._steps = 0

    # -- what callers say ---------------------------------------------------------------------------------

    def limit(self, prompt: int, wanted: int | None) -> int:
        """Outputs that a prompt of this length may have: `wanted`, cut to what the context and the pool hold."""
        pool = self.cache.pool.total * self.cache.page_size
        most = min(self.context, pool) - prompt
        return max(0, most if wanted is None else min(wanted, most))

    def add(self, request: Request) -> None:
        """Queue a request. Raises TooLong if it could never run, ValueError if its id is in use."""
        if request.id in self._by_id:
            raise ValueError(f"request id {request.id!r} is in use")
        pool = self.cache.pool.total * self.cache.page_size
        need = request.prompt + request.max_new
        if request.prompt >= self.context:
            raise TooLong(
                f"The input ({request.prompt} tokens) is longer than the model's context length "
                f"({self.context} tokens); shorten it"
            )
        if need > pool:
            raise TooLong(
                f"the request needs {need} tokens of KV memory ({request.prompt} of prompt, {request.max_new} new) "
                f"but the pool holds {pool}; shorten the prompt, lower max_new_tokens or enlarge the pool"
            )
        self._arrivals += 1
        request.arrival = self._arrivals
        self._by_id[request.id] = request
        self.waiting.append(request)

    def get(self, id: str) -> Request | None:
        return self._by_id.get(id)

    def abort(self, id: str) -> Event | None:
        """End a request now, wherever it is; None if it is not here (any more)."""
        return self.end(id, Finish(type="abort"))

    def end(self, id: str, finish: Finish) -> Event | None:
        """End a request with a reason found elsewhere (a stop string, say). What one that ends with an error has computed is
        forgotten."""
        request = self._by_id.get(id)
        if request is None:
            return None
        request.broken = finish.type == "error"
        if request.phase is Phase.WAITING:
            self.waiting.remove(request)
        self._finish(request)
        return Event(request, [], finish=finish)

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.running or self._flight)

    @property
    def ahead(self) -> bool:
        """Whether a request may go on behind a token that is not known yet although others may be forced behind it."""
        if self.depth == 1:
            return False
        return len(self.running) >= self.ahead_from or any(r.steady for r in self.running.values())

    def flush(self) -> bool:
        """Forget all cached prefixes; False, and nothing happens, if anything runs or waits."""
        if not self.idle:
            return False
        self.cache.flush()
        return True

    # -- building a batch ---------------------------------------------------------------------------------

    def next_batch(self) -> Batch | None:
        """The next forward pass; None if there is nothing to do, or nothing before a batch in flight lands."""
        if len(self._flight) >= self.depth:
            return None
        self._reserve.step()
        budget = Budget(tokens=self.chunk, guesses=self.guesses)
        ahead = self.ahead
        slices: list[Slice] = []
        owners: list[Request] = []
        admitted: list[Admission] = []
        self._decode(slices, owners, self._steps_together() if self.turn > 1 else 1, ahead)
        self._continue_prefills(budget, slices, owners)
        self._admit_waiting(budget, slices, owners, admitted)
        if not slices:
            return None
        self._steps += 1
        batch = Batch(self._steps, slices, admitted, self._released, ahead)
        self._released = []
        self._flight.append((batch, owners))
        return batch

    def _steps_together(self) -> int:
        """Decode steps of the next batch: several if nobody could start, and no step needs the host, before they are done."""
        if self.waiting and self._seats:
            return 1
        need = 0
        for r in self.running.values():
            if r.doomed:
                continue
            if not r.steady or r.logprobs is not None or r.prefilling:
                return 1
            more = min(self.turn, r.max_new - r.outputs - r.pending)
            need += max(0, self.cache.room(r, r.scheduled + more))
        return self.turn if need <= self.cache.available else 1

    def _decode(self, slices: list[Slice], owners: list[Request], steps: int, ahead: bool) -> None:
        """Tokens for each request that can go on; under pressure the latest arrivals give way, and `steps` is 1."""
        size = self.cache.page_size
        ready: list[tuple[Request, int, int]] = []  # with steps, and pages to add
        total = 0
        for request in self._ranked():
            known, pending, scheduled = len(request.tokens), request.pending, request.scheduled
            output = known - request.prompt + pending
            if (
                # finished or retracted while a batch is in flight
                request.phase is not Phase.RUNNING
                # the next position is not that of a token that was sampled on this seat (it may be in flight)
                or (request.outputs_here == 0 and not pending)
                or scheduled != known + pending - 1
                # more tokens may be forced behind the one in flight, so it has to be known first
                or (pending and not request.steady and not ahead)
                or output >= request.max_new
            ):
                continue
            count = 1 if steps == 1 else min(steps, request.max_new - output)
            need = -(-(scheduled + count) // size) - len(request.pages)
            if need < 0:
                need = 0
            total += need
            ready.append((request, count, need))
        free = self.cache.pool.take(total) if total <= self.cache.pool.free else None
        at = 0
        for request, count, need in ready:
            added: list[int] | None
            if free is not None:
                added = free[at : at + need]
                at += need
                request.pages += added
            else:
                added = self._grow_under_pressure(request, request.scheduled + count)
            if added is None:
                continue
            output = len(request.tokens) - request.prompt + request.pending
            slices.append(Slice(request.seat, request.scheduled, [], added, True, output, -1, count))
            owners.append(request)
            request.in_flight += 1
            request.scheduled += count
            request.pending += count

    def _grow_under_pressure(self, request: Request, tokens: int) -> list[int] | None:
        """Pages for positions below `tokens`; None if nobody gives way, or if the request itself had to."""
        if request.phase is not Phase.RUNNING:  # retracted for one before it
            return None
        added = self.cache.grow(request, tokens)
        while added is None and self._retract_for(request):
            added = self.cache.grow(request, tokens)
        return added

    def _ranked(self) -> list[Request]:
        """Running requests, those that give way last come first."""
        if self._ranks is None:
            self._ranks = sorted(self.running.values(), key=lambda r: (-r.priority, r.arrival))
        return self._ranks

    def _retract_for(self, request: Request) -> bool:
        """Send the least important running request back to the queue, unless it is `request` or more important.

        Only what is not in flight can be retracted; the oldest request of the highest priority is only if it
        holds pages twice, which are free then. So there is always progress.
        """
        victims = [r for r in self.running.values() if not r.in_flight and r is not request]
        victim = min(victims, key=lambda r: (r.priority, -r.arrival), default=None)
        if victim is None or (victim.priority, -victim.arrival) > (request.priority, -request.arrival):
            if request.in_flight or self._flight:
                return False  # its own turn to give way comes when the batch in flight has landed
            if not victims and not request.copies:
                return False
            self._retract(request)  # what it holds twice is free then, even if nobody else runs
            return False
        self._retract(victim)
        return True

    def _retract(self, victim: Request) -> None:
        self.retractions += 1
        self._reserve.retracted()
        self._leave_seat(victim)
        victim.phase = Phase.WAITING
        victim.outputs_here = 0
        at = next((i for i, r in enumerate(self.waiting) if r.arrival > victim.arrival), len(self.waiting))
        self.waiting.insert(at, victim)

    def _continue_prefills(self, budget: Budget, slices: list[Slice], owners: list[Request]) -> None:
        """Go on with prompts that did not fit in one step, and with outputs that were forced, oldest first."""
        unfinished = [  # the last output is a decode step's
            r
            for r in self._ranked()
            if r.pending == 0 and r.scheduled < len(r.tokens) - (1 if r.outputs_here else 0)
        ]
        for request in unfinished:
            if budget.tokens <= 0:
                return
            if request.phase is Phase.RUNNING:  # not retracted for one before it
                self._prefill(request, budget, slices, owners)

    def _prefill(
        self,
        request: Request,
        budget: Budget,
        slices: list[Slice],
        owners: list[Request],
        *,
        pages: bool = True,
    ) -> bool:
        """Add a slice of the request's known tokens; False if there is no room."""
        start = request.scheduled
        count = min(len(request.tokens) - start, budget.tokens)
        last = start + count == len(request.tokens)
        guesses = self._guesses(request, budget, count) if last and request.guesses else ()
        end = start + count + len(guesses)
        added = self._grow_under_pressure(request, end) if pages else self.cache.grow(request, end)
        if added is None:
            return False
        wants_top = request.logprobs is not None and request.logprobs.top > 0
        sample = last and (request.max_new > request.outputs or (request.max_new == 0 and wants_top))
        scores = -1
        if request.scores_from >= 0 and start + count > request.scores_from:
            scores = max(request.scores_from, start)
        slices.append(
            Slice(
                request.seat,
                start,
                request.tokens[start : start + count],
                added,
                sample,
                request.outputs,
                scores,
                pool=last and request.pool,
                guesses=guesses,
                sure=request.sure if guesses else (),
            )
        )
        owners.append(request)
        request.in_flight += 1
        request.scheduled = end
        request.pending += sample
        budget.tokens -= count
        return True

    def _guesses(self, request: Request, budget: Budget, count: int) -> tuple[int, ...]:
        """What is guessed behind the request's known tokens, of which `count` are computed in this batch. Nobody has to give way
        for it."""
        known = len(request.tokens)
        wanted = min(len(request.guesses), request.max_new - request.outputs - 1)
        found = request.guesses[: budget.guess(wanted, known, count)]
        request.guesses = ()
        if found and self.cache.room(request, known + len(found)) > self.cache.pool.free:
            return ()
        budget.guessed(len(found), known)
        self.guessed_tokens += len(found)
        return found

    def _admit_waiting(
        self, budget: Budget, slices: list[Slice], owners: list[Request], admitted: list[Admission]
    ) -> None:
        """Start waiting requests in the policy's order. Never preempts.

        The first that does not fit ends the step, so nobody is overtaken for being long. Only who waits for
        a prefix that a running request is computing is passed over: it gains by waiting.
        """
        if not self.waiting or not self._seats or budget.tokens <= 0:
            return
        order = ordered(self.waiting, self.cache.tree, self._policy)[:LOOK_AHEAD]
        size = self.cache.page_size
        kept = sum(self._reserve.pages(r.max_new - r.outputs, size) for r in self.running.values())
        started: set[int] = set()
        prefilling = [r for r in self.running.values() if r.prefilling]
        for request in order:
            if budget.tokens <= 0 or not self._seats:
                break
            if prefix_in_progress(request, prefilling, self.cache):
                continue
            self.cache.open(request)
            expected = self._reserve.pages(request.max_new - request.outputs, size)
            need = self.cache.room(request, len(request.tokens))
            alone = not self.running
            if (need + expected + kept > self.cache.available and not alone) or need > self.cache.available:
                self.cache.close(request, keep=False)
                break
            if request.cached < 0:
                request.cached = min(request.landed, request.prompt)
                self.prompt_tokens += request.prompt
                self.cached_tokens += request.cached
            request.seat = heapq.heappop(self._seats)
            row = list(request.pages)
            if not self._prefill(request, budget, slices, owners, pages=False):
                heapq.heappush(self._seats, request.seat)
                self.cache.close(request, keep=False)
                break
            request.phase = Phase.RUNNING
            self.running[request.seat] = request
            self._ranks = None
            admitted.append(
                Admission(
                    request.seat,
                    list(request.tokens),
                    request.prompt,
                    row,
                    request.sampling,
                    request.seed,
                    request.logprobs,
                    request.max_new,
                    bool(request.salt),
                )
            )
            started.add(id(request))
            kept += expected
            prefilling.append(request)
        if started:
            self.waiting = [r for r in self.waiting if id(r) not in started]
            for request in order:
                if request.phase is Phase.WAITING:
                    request.skipped += 1

    # -- recording what the model did ---------------------------------------------------------------------

    def commit(self, sampled: Sampled) -> list[Event]:
        """Record the oldest batch in flight; what became of its requests, in the batch's order."""
        batch, owners = self._flight.popleft()
        assert batch.step == sampled.step, f"batch {batch.step} is due, not {sampled.step}"
        self.verified_tokens += sum(sampled.verified.values())
        events: list[Event] = []
        at, tokens = 0, sampled.tokens
        for piece, request in zip(batch.slices, owners, strict=True):
            request.in_flight -= 1
            if not piece.sample:
                drawn = []
            elif piece.steps == 1:
                drawn = [tokens[at]]
                if piece.guesses:
                    drawn = tokens[at : at + 1 + sampled.verified.get(piece.seat, 0)]
            else:
                drawn = tokens[at : at + piece.steps]
            at += len(drawn)
            if request.doomed:
                self._leave_seat(request)
                continue
            if not piece.tokens and request.outputs_here == 0:  # forced tokens came between: the draw is void
                request.landed = piece.start + 1
                continue
            event: Event | None
            if request.plain and not piece.tokens:
                event = decoded(request, piece, drawn)
            else:
                logprob = sampled.logprobs[at - 1] if sampled.logprobs and drawn else None
                event = landed(request, piece, drawn, logprob, sampled, self.cache)
            if event is not None:
                if event.finish is not None:
                    self._finish(request)
                events.append(event)
        assert at == len(sampled.tokens), f"{len(sampled.tokens)} tokens for {at} draws"
        return events

    def fail(self, batch: Batch, finish: Finish) -> list[Event]:
        """The oldest batch in flight was lost: its requests end with `finish`."""
        lost, owners = self._flight.popleft()
        assert lost is batch
        events = []
        for request in owners:
            request.in_flight -= 1
            if request.doomed:
                self._leave_seat(request)
            elif event := self.end(request.id, finish):
                events.append(event)
        return events

    def _finish(self, request: Request) -> None:
        self._by_id.pop(request.id, None)
        if request.phase is Phase.RUNNING:
            self._leave_seat(request)
        request.phase = Phase.FINISHED

    def _leave_seat(self, request: Request) -> None:
        """The seat is taken from the request; its pages too, unless a batch in flight still writes to them."""
        request.doomed = request.in_flight > 0
        if request.doomed:
            return
        del self.running[request.seat]
        self._ranks = None
        heapq.heappush(self._seats, request.seat)
        self._released.append(request.seat)
        request.seat = -1
        request.pending = 0
        request.guesses = ()
        if request.broken:
            self.cache.discard(request)
        else:
            self.cache.close(request)

    def check(self) -> None:
        """Raise AssertionError if a page or a seat is lost or owned twice."""
        for seat, request in self.running.items():
            seated = request.seat == seat and (request.phase is Phase.RUNNING or request.doomed)
            must(
                seated,
                f"request {request.id} is {request.phase} in seat {request.seat}, found in seat {seat}",
            )
        must(not set(self._seats) & set(self.running), "a seat is free and taken")
        self.cache.check(list(self.running.values()))
        if self.idle:
            must(self.cache.used == 0, f"{self.cache.used} pages in use although idle")
            must(not self._by_id, f"{len(self._by_id)} requests are known although idle")
