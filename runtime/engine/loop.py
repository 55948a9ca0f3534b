"""Scheduler, runner, scheduler: one engine's turn. Knows nothing of threads, sockets or text."""

from __future__ import annotations

import logging
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from runtime.api import Finish
from runtime.batch import Batch, Sampled
from runtime.config import EngineConfig
from runtime.constrain.matcher import check_budget
from runtime.constrain.precompile import precompile, read_constraints
from runtime.engine.assemble import assemble
from runtime.engine.device import DeviceRunner
from runtime.engine.faults import Fault, Faults
from runtime.engine.messages import Add, Answer, Ask, End, In, Out, Output, Refused, Weights
from runtime.engine.pending import Pending
from runtime.engine.profile import Profiler
from runtime.engine.turns import TurnLength
from runtime.engine.update import WeightUpdate
from runtime.errors import EngineDead, EngineError, InvalidRequest, Unsupported
from runtime.kv.store import bytes_per_token
from runtime.request import Request
from runtime.scheduler.outcome import Event
from runtime.scheduler.scheduler import Scheduler

if TYPE_CHECKING:
    from runtime.parallel.ranks import Ranks

log = logging.getLogger("runtime.engine")
_DEVICE_ERROR: Any = getattr(torch, "AcceleratorError", ())
_NO_MEMORY = 2  # cudaErrorMemoryAllocation


def _chunk(config: EngineConfig, device: str, context: int) -> int:
    """Prompt tokens of a step at most."""
    wanted = config.chunked_prefill_size
    if wanted is None:
        return 8192 if device.startswith("cuda") else 2048
    return wanted if wanted > 0 else context


class EngineLoop:
    """A loaded model with its scheduler. `handle` takes messages, `step` runs one batch; both answer with messages."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        if not 1 <= config.tensor_parallel_size <= 64:
            raise InvalidRequest(f"--tensor-parallel-size {config.tensor_parallel_size}: give 1 to 64")
        self._ranks: Ranks | None = None
        if config.tensor_parallel_size > 1:
            from runtime.parallel.ranks import Ranks

            self._ranks = Ranks(config)
        try:
            made = assemble(config, None if self._ranks is None else self._ranks.group)
        except Exception:
            self.close()
            raise
        self.device, self.model, self.context = made.device, made.model, made.context
        self.constraints, self.seats, self.runner = made.constraints, made.seats, made.runner
        spec, pages, ends, device = made.model.spec, made.pages, made.ends, made.device
        if config.precompile is not None:
            if self.constraints is None:
                raise InvalidRequest(
                    "--precompile needs a tokenizer and a model that generates; leave it or --skip-tokenizer-init out"
                )
            precompile(self.constraints, read_constraints(config.precompile))
        self._flight: deque[Pending] = deque()
        overlap = isinstance(self.runner, DeviceRunner) and not config.disable_overlap_schedule
        wanted = config.num_continuous_decode_steps
        if wanted is not None and not 1 <= wanted <= 64:
            raise InvalidRequest(f"--num-continuous-decode-steps {wanted}: give a number from 1 to 64")
        self._turns = TurnLength(wanted if isinstance(self.runner, DeviceRunner) else wanted or 1)
        self._compilers = ThreadPoolExecutor(1, thread_name_prefix="constraints")
        self._update: WeightUpdate | None = None
        self._held: list[Add] = []  # they came while weights are being changed
        self._compiling: list[tuple[Add, Future[Any]]] = []
        self.ends = ends
        self._profiler = Profiler()
        entry = "launch" if isinstance(self.runner, DeviceRunner) else "run"
        self._faults = Faults(self.runner, entry) if config.debug_faults else None
        self.scheduler = Scheduler(
            pages=pages,
            page_size=config.page_size,
            max_running=self.seats,
            chunk=_chunk(config, device, self.context),
            depth=2 if overlap else 1,
            context=self.context,
            policy=config.schedule_policy,
            conservativeness=config.schedule_conservativeness,
            reuse=not config.disable_radix_cache,
            turn=self._turns.steps,
        )
        log.info(
            "%s on %s (%s), %d tokens of KV memory (%.1f MB), context %d",
            spec.name,
            device,
            str(self.model.dtype).removeprefix("torch."),
            pages * config.page_size,
            pages * config.page_size * bytes_per_token(spec, self.model.dtype) / 1e6,
            self.context,
        )

    def close(self) -> None:
        """End the other ranks, if there are any."""
        if self._ranks is not None:
            graphs = getattr(getattr(self, "runner", None), "graphs", None)
            if graphs is not None:
                graphs.release()
            self._ranks.close()
            self._ranks = None

    @property
    def info(self) -> dict[str, Any]:
        """Facts that the text side needs."""
        return {
            "architecture": self.model.spec.name,
            "task": self.model.spec.task,
            "embedding_size": self.model.spec.labels or self.model.spec.hidden,
            "embedding_sizes": self.model.spec.sizes,
            "context_length": self.context,
            "vocab_size": self.model.spec.vocabulary,
            "device": self.device,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "total_tokens": self.scheduler.cache.pool.total * self.config.page_size,
        }

    @property
    def busy(self) -> bool:
        return bool(self._compiling) or self._updating or not self.scheduler.idle

    @property
    def _updating(self) -> bool:
        return self._update is not None and self._update.waits

    def handle(self, message: In) -> list[Out]:
        """Take one message."""
        if isinstance(message, Add) and self._updating:
            self._held.append(message)
            return []
        if isinstance(message, Add) and message.sampling.constraint is not None:
            if self.constraints is None:
                text = "constraints need a tokenizer, and the engine was started with --skip-tokenizer-init"
                return [Refused(message.id, "unsupported", text)]
            job = self._compilers.submit(self._compile, message)
            self._compiling.append((message, job))
            return []
        if isinstance(message, Add):
            return self._add(message)
        if isinstance(message, End):
            if (entry := next((c for c in self._compiling if c[0].id == message.id), None)) is not None:
                self._compiling.remove(entry)
                entry[1].cancel()
                return [Output(message.id, [], finish=Finish(type="abort"))]
            if (held := next((m for m in self._held if m.id == message.id), None)) is not None:
                self._held.remove(held)
                return [Output(message.id, [], finish=Finish(type="abort"))]
            event = self.scheduler.abort(message.id)
            return [self._output(event)] if event else []
        if isinstance(message, Ask):
            try:
                if message.what == "update_weights":
                    self._ask_update(message)
                    return []
                return [Answer(message.ticket, self._answer(message))]
            except EngineError as error:
                return [Answer(message.ticket, code=error.code, message=error.message)]
            except Exception:
                log.exception("%s failed", message.what)
                text = "the engine failed on this; its log says more"
                return [Answer(message.ticket, code="internal_error", message=text)]
        return []

    def _compile(self, m: Add) -> None:
        """Whatever takes long for a constraint; not on the loop's thread."""
        assert m.sampling.constraint is not None and self.constraints is not None
        self.constraints.get(m.sampling.constraint)
        self.runner.steady(m.sampling, m.logprobs)

    def _add(self, m: Add) -> list[Out]:
        """Queue a request, or refuse it. A mistake in here is that request's end, and nobody else's."""
        try:
            return self._queue(m)
        except EngineError as error:
            return [Refused(m.id, error.code, error.message)]
        except Exception:
            log.exception("a request could not be queued")
            return [Refused(m.id, "internal_error", "the engine failed on this request; its log says more")]

    def _queue(self, m: Add) -> list[Out]:
        if m.logprobs is not None:
            m.logprobs.check()
        outside = next((t for t in m.tokens if not 0 <= t < self.model.spec.vocabulary), None)
        outside = next(
            (
                t
                for t in (*m.sampling.stop_token_ids, *m.sampling.logit_bias)
                if not 0 <= t < self.model.spec.vocabulary
            ),
            outside,
        )
        if outside is not None:
            size = self.model.spec.vocabulary
            return [
                Refused(
                    m.id, "invalid_request", f"token id {outside} is outside the vocabulary (0 to {size - 1})"
                )
            ]
        ends = frozenset(m.sampling.stop_token_ids)
        if not m.sampling.ignore_eos:
            ends |= frozenset(self.ends)
        else:
            ends = frozenset()
        max_new = self.scheduler.limit(len(m.tokens), m.sampling.max_new_tokens)
        forced: list[int] = []
        steady = True
        sampling = m.sampling
        if max_new == 0:  # nothing is drawn
            sampling = msgspec.structs.replace(sampling, constraint=None)
        if sampling.constraint is not None and self.constraints is not None:
            least = self.constraints.get(sampling.constraint).min_tokens
            if max_new < least and max_new != sampling.max_new_tokens:
                raise InvalidRequest(
                    f"the prompt of {len(m.tokens)} tokens leaves room for {max_new}, but the shortest text of the "
                    f"constraint takes {least}; shorten the prompt"
                )
            check_budget(least, max_new)
            if m.logprobs is None and max_new > 1:  # the last output is always drawn
                forced = self.constraints.begin(sampling.constraint, max_new)[: max_new - 1]
            steady = self.runner.steady(sampling, m.logprobs)
        request = Request(
            m.id,
            m.tokens,
            sampling,
            max_new=max_new,
            ends=ends,
            seed=m.seed,
            logprobs=m.logprobs,
            priority=m.priority,
            salt=m.salt,
            forced=forced,
            steady=steady,
            pool=m.pool,
        )
        try:
            self.scheduler.add(request)
        except ValueError as error:
            return [Refused(m.id, "invalid_request", str(error))]
        return []

    def _answer(self, m: Ask) -> dict[str, Any]:
        if m.what == "flush":
            return {"flushed": self.scheduler.flush()}
        if m.what == "check":
            return self.check()
        if m.what == "prefixes":
            return {"prefixes": self.scheduler.cache.tree.largest(24)}
        if m.what == "start_profile":
            return self._profiler.start()
        if m.what == "stop_profile":
            return self._profiler.stop(m.value)
        if m.what == "fault":
            if self._faults is None:
                raise InvalidRequest("faults can be asked for only with --debug-faults")
            self._faults.add(msgspec.json.decode(m.value, type=Fault))
            return {}
        return self.stats()

    def check(self) -> dict[str, Any]:
        """Walk everything that holds pages and seats; `problem` says what does not add up."""
        problem = None
        try:
            self.scheduler.check()
        except AssertionError as error:
            problem = str(error)
            log.error("the KV cache is not sound: %s", problem)
        nodes = sum(1 for _ in self.scheduler.cache.tree.nodes())
        return {"problem": problem, "idle": not self.busy, "nodes": nodes, **self.stats()}

    def stats(self) -> dict[str, Any]:
        """Use of the KV pool and of the seats, and what was counted since the start."""
        s = self.scheduler
        size = s.cache.page_size
        return {
            "kv_cache": {
                "used_tokens": s.cache.used * size,
                "cached_tokens": s.cache.tree.cached * size,
                "total_tokens": s.cache.pool.total * size,
            },
            "num_running_reqs": len(s.running),
            "num_waiting_reqs": len(s.waiting) + len(self._held),
            "prompt_tokens": s.prompt_tokens,
            "reused_tokens": s.cached_tokens,
            "retractions": s.retractions,
            "guessed_tokens": s.guessed_tokens,
            "verified_tokens": s.verified_tokens,
        }

    def _ask_update(self, m: Ask) -> None:
        """Change the weights as soon as nothing runs. Raises EngineError for what cannot be had."""
        if self._ranks is not None:
            raise Unsupported("weights cannot be changed with --tensor-parallel-size; start another server")
        if self._update is None:
            self._update = WeightUpdate(self.model, self.config)
        self._update.ask(m.ticket, msgspec.json.decode(m.value, type=Weights))

    def _poll_update(self, update: WeightUpdate) -> list[Out]:
        """A moment of a change of weights; when it is done, whoever waited for it starts."""
        done = update.poll()
        if done is None:
            return []
        ticket, error = done
        self.runner.reload(self.model)
        self.scheduler.flush()
        held, self._held = self._held, []
        code, message = ("", "") if error is None else (error.code, error.message)
        return [Answer(ticket, code=code, message=message), *(out for m in held for out in self.handle(m))]

    def step(self) -> list[Out]:
        """Run one batch. An error of the model ends the requests of that batch, not the loop."""
        if self._update is not None and self._update.waits and self.scheduler.idle and not self._compiling:
            return self._poll_update(self._update)
        if isinstance(self.runner, DeviceRunner):
            return self._step_ahead(self.runner)
        out = self._add_compiled() if self._compiling else []
        batch = self.scheduler.next_batch()
        if batch is None:
            if self._ranks is not None:
                self._ranks.check()
            if self._compiling:  # nothing else to do: leave the core to the compiler
                time.sleep(0.001)
            return out
        try:
            if self._ranks is not None:
                self._ranks.send(batch)
            sampled = self.runner.run(batch)
        except Exception as error:
            return out + self._lost(batch, error)
        return out + self._landed(sampled)

    def _step_ahead(self, runner: DeviceRunner) -> list[Out]:
        """Queue the next batch, then read the tokens of the one before it."""
        began, waited = time.perf_counter(), runner.waited
        together = runner.queues_turns(len(self.scheduler.running))
        self.scheduler.turn = self._turns.steps if together else 1
        out = self._add_compiled() if self._compiling else []
        batch = self.scheduler.next_batch()
        if batch is not None:
            try:
                if self._ranks is not None:
                    self._ranks.send(batch)
                self._flight.append(runner.launch(batch))
            except Exception as error:
                while self._flight:
                    out += self._collect(runner)
                return out + self._lost(batch, error)
        elif not self._flight and self._compiling:
            time.sleep(0.001)
        while self._flight and (batch is None or len(self._flight) >= self.scheduler.depth):
            out += self._collect(runner)
        if not self._flight:
            return out
        newest = self._flight[-1]
        try:
            runner.draw(newest)
        except Exception as error:
            self._flight.pop()
            return out + self._lost(newest.batch, error)
        # What launching or drawing had to wait for is collected at once, and what the next batch has to know.
        if newest.done is not None or (newest.follows and not self.scheduler.ahead):
            out += self._collect(runner)
        elif batch is not None and not newest.follows and not batch.slices[-1].tokens:  # all decode steps
            self._turns.observe(batch.steps, time.perf_counter() - began, runner.waited - waited)
        return out

    def _collect(self, runner: DeviceRunner) -> list[Out]:
        pending = self._flight.popleft()
        try:
            return self._landed(runner.collect(pending))
        except Exception as error:
            return self._lost(pending.batch, error)

    def _lost(self, batch: Batch, error: Exception) -> list[Out]:
        """The oldest batch in flight failed: its requests end, the loop goes on; not so with ranks, which are out of step."""
        if isinstance(error, EngineDead):
            raise error
        if self._ranks is not None:
            self._ranks.check()
            raise EngineDead(f"a step failed, and with it the engine: {error}") from error
        if isinstance(error, _DEVICE_ERROR) and getattr(error, "error_code", None) != _NO_MEMORY:
            # an illegal access, a failed assertion: each later step would fail as well, only a new process has a sound device
            raise EngineDead(f"the device failed, and with it the engine: {error}") from error
        log.error("a step failed; its requests end with an error", exc_info=error)
        message = f"the model failed on this batch: {type(error).__name__}: {error}"
        lost = self.scheduler.fail(batch, Finish(type="error", message=message))
        return [self._output(e) for e in lost]

    def _landed(self, sampled: Sampled) -> list[Out]:
        if self._ranks is not None:
            self._ranks.landed(sampled)
        events: list[Event] = []
        for seat in sampled.failed:
            finish = Finish(
                type="error",
                message="the model's logits were not finite, or no token was left that the constraint allows",
            )
            request = self.scheduler.running.get(seat)
            if request is not None and (event := self.scheduler.end(request.id, finish)):
                events.append(event)
        events += self.scheduler.commit(sampled)
        return [self._output(e) for e in events]

    def _add_compiled(self) -> list[Out]:
        """Queue the requests whose constraint is ready; compiling happens beside the loop, so nobody waits for it."""
        out: list[Out] = []
        ready: list[tuple[Add, Future[Any]]] = []
        waiting: list[tuple[Add, Future[Any]]] = []
        # Each job is asked once: one that ends meanwhile must not fall between the two.
        for entry in self._compiling:
            (ready if entry[1].done() else waiting).append(entry)
        self._compiling = waiting
        for message, job in ready:
            error = job.exception()
            if error is None:
                out += self._add(message)
            else:
                code = error.code if isinstance(error, EngineError) else "internal_error"
                out.append(Refused(message.id, code, str(error)))
        return out

    def _output(self, e: Event) -> Output:
        cached = max(e.request.cached, 0)
        return Output(
            e.request.id, e.tokens, e.logprobs, e.prompt_scores, e.finish, cached, e.forced, e.vector
        )
