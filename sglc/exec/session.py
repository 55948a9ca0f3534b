"""What the states of one run share: the backend, the defaults, and the door through which calls leave.

Calls that become ready in the same turn of the event loop leave in one `generate`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain, count
from typing import Protocol

import msgspec

from runtime.api import (
    Delta,
    Generate,
    LogprobOptions,
    Message,
    Prompt,
    SamplingParams,
    Score,
    ScoreResult,
    collect,
)
from runtime.backends.base import Backend, Capabilities
from runtime.errors import InvalidRequest
from sglc.config import global_config
from sglc.errors import RunError
from sglc.exec.loop import event_loop
from sglc.ir.lacks import given, of_begun, of_gen, of_image, of_select
from sglc.ir.restate import restated
from sglc.ir.specs import RUN_DEFAULTS, GenSpec, Location, SamplingFields
from sglc.plan import ropes


class Template(ropes.Template, Protocol):
    """What execution needs of a chat template."""

    @property
    def stop_str(self) -> tuple[str, ...]: ...


_NONE: frozenset[str] = frozenset()
Receive = Callable[[Delta | BaseException], None]


@dataclass
class Session:
    """One run's surroundings. `stream`: somebody reads chunks, so calls must deliver them."""

    backend: Backend
    template: Template
    defaults: SamplingFields
    stream: bool = False
    loop: asyncio.AbstractEventLoop = field(default_factory=event_loop)

    def __post_init__(self) -> None:
        self._ready: deque[tuple[Generate, Receive]] = deque()
        self._ids = count()
        self._scheduled = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.capabilities: Capabilities = self.backend.capabilities
        self._changed = frozenset(
            n
            for n in self.defaults.__dataclass_fields__
            if getattr(self.defaults, n) != getattr(RUN_DEFAULTS, n)
        )
        self.labels = hasattr(self.backend, "spans")  # only a timeline looks at them

    # -- from what a program wrote to what a backend is sent ------------------------------------------------

    def request(
        self,
        spec: GenSpec,
        prompt: Prompt,
        messages: tuple[Message, ...] | None,
        at: Location | None,
        ahead: bool = False,
    ) -> Generate:
        """The call of a gen. Raises RunError for what the backend cannot do, before anything is sent.

        `ahead`: it may be served from what the model wrote before (exec/speculation.py).
        """
        begun = not ahead and bool(messages) and messages[-1].role == "assistant"  # type: ignore[index]
        self._check(spec, begun, at)
        sampling, logprobs = self._resolve(spec)
        return Generate(
            prompt=prompt,
            sampling=sampling,
            id=str(next(self._ids)),
            logprobs=logprobs,
            messages=messages,
            stream=self.stream,
            label=f"{spec.name or 'gen'} {at}" if self.labels else "",
        )

    def _resolve(self, spec: GenSpec) -> tuple[SamplingParams, LogprobOptions | None]:
        config = global_config
        if spec.constraint is not None and spec.constraint.kind not in self.capabilities.constraints:
            spec = replace(spec, constraint=restated(self.capabilities, spec.constraint))
        return resolve(
            spec,
            self.defaults,
            self.template.stop_str,
            config.skip_special_tokens_in_output,
            config.spaces_between_special_tokens_in_out,
        )

    def fields_of(self, spec: GenSpec) -> SamplingParams | None:
        """What a gen would be sent with; None if it will be refused."""
        try:
            return self._resolve(spec)[0]
        except InvalidRequest:
            return None

    def _check(self, spec: GenSpec, begun: bool, at: Location | None) -> None:
        able = self.capabilities
        # Asked for each call: only where something may be lacking is it worth the time.
        fields = (
            given(spec.sampling) | self._changed if able.sampling is not None or not able.logprobs else _NONE
        )
        lack = next(chain(of_gen(able, spec.constraint, fields), of_begun(able, begun)), None)
        if lack is not None:
            what = f"dtype={spec.dtype}" if spec.dtype else spec.constraint.kind if spec.constraint else ""
            raise RunError(
                f"gen({spec.name!r}{what and ', '}{what}): {lack.message}; nothing was sent; {lack.remedy}",
                at,
            )

    def check_select(self, name: str | None, at: Location | None) -> None:
        """Raises RunError if the backend cannot choose."""
        for lack in of_select(self.capabilities):
            raise RunError(f"select({name!r}): {lack}", at)

    def check_image(self, at: Location | None) -> None:
        """Raises RunError if the backend's model sees no images."""
        for lack in of_image(self.capabilities):
            raise RunError(str(lack), at)

    # -- calls ------------------------------------------------------------------------------------------------

    def submit(self, request: Generate, receive: Receive) -> None:
        """Send a call; `receive` is called on the loop with its deltas, or with the error that ended it."""
        if request.sampling.n > 1 and not self.capabilities.samples:
            self._ready.extend(self._each(request, receive))
        else:
            self._ready.append((request, receive))
        if not self._scheduled:
            self._scheduled = True
            # On the loop itself there is nobody to wake.
            here = asyncio._get_running_loop() is self.loop
            (self.loop.call_soon if here else self.loop.call_soon_threadsafe)(self._flush)

    def _each(self, request: Generate, receive: Receive) -> list[tuple[Generate, Receive]]:
        """A call for each of the samples, where the backend gives one at a time; `receive` sees one call, and one error."""
        failed = False

        def of_sample(index: int) -> Receive:
            def one(item: Delta | BaseException) -> None:
                nonlocal failed
                if isinstance(item, BaseException):
                    if not failed:
                        failed = True
                        receive(item)
                    return
                receive(msgspec.structs.replace(item, id=request.id, index=index))

            return one

        found: list[tuple[Generate, Receive]] = []
        for index in range(request.sampling.n):
            seed = None if request.sampling.seed is None else request.sampling.seed + index
            sampling = msgspec.structs.replace(request.sampling, n=1, seed=seed)
            call = msgspec.structs.replace(request, id=str(next(self._ids)), sampling=sampling)
            found.append((call, of_sample(index)))
        return found

    def _flush(self) -> None:
        self._scheduled = False
        calls: list[tuple[Generate, Receive]] = []
        while self._ready:
            calls.append(self._ready.popleft())
        if calls:
            self._keep(self.loop.create_task(self._run(calls)))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, calls: list[tuple[Generate, Receive]]) -> None:
        waiting = {r.id: [receive, r.sampling.n] for r, receive in calls}
        try:
            async for delta in self.backend.generate([r for r, _ in calls]):
                entry = waiting[delta.id]
                if delta.finish is not None:
                    entry[1] -= 1  # type: ignore[operator]
                entry[0](delta)  # type: ignore[operator]
            error: BaseException | None = None
            if any(n for _, n in waiting.values()):
                error = RunError("the backend ended without an answer")
        except BaseException as raised:
            error = raised
        if error is not None:
            for receive, left in waiting.values():
                if left:
                    receive(error)  # type: ignore[operator]
            if isinstance(error, asyncio.CancelledError):
                raise error

    def score(self, request: Score, receive: Callable[[ScoreResult | BaseException], None]) -> None:
        """Ask for log-probabilities; the answer comes on the loop."""

        async def run() -> None:
            try:
                receive(await self.backend.score(request))
            except BaseException as error:
                receive(error)

        self.loop.call_soon_threadsafe(lambda: self._keep(self.loop.create_task(run())))


def whole_of(deltas: list[Delta]) -> Delta:
    """The deltas of a sample as one; the last of them has `finish`."""
    if len(deltas) == 1:
        return deltas[0]
    result, last = collect(deltas), deltas[-1]
    return msgspec.structs.replace(
        last,
        text=result.text,
        ids=result.ids,
        output_logprobs=result.output_logprobs,
        output_top_logprobs=result.output_top_logprobs,
        input_logprobs=result.input_logprobs,
        input_top_logprobs=result.input_top_logprobs,
    )


@lru_cache(maxsize=4096)
def resolve(
    spec: GenSpec, defaults: SamplingFields, template_stop: tuple[str, ...], skip_special: bool, spaces: bool
) -> tuple[SamplingParams, LogprobOptions | None]:
    """A gen's fields over the run's defaults. A gen's stop replaces the run's; the template's and the dtype's are added.

    Raises InvalidRequest for values out of range.
    """
    f = spec.sampling.over(defaults)
    stop = list(f.stop or ())
    stop += [s for s in template_stop if s not in stop]
    if spec.dtype in ("int", "float"):
        stop += [s for s in (" ", "\n") if s not in stop]
    params = SamplingParams(
        max_new_tokens=f.max_tokens,
        min_new_tokens=f.min_tokens or 0,
        stop=tuple(stop),
        stop_token_ids=f.stop_token_ids or (),
        temperature=1.0 if f.temperature is None else f.temperature,
        top_p=1.0 if f.top_p is None else f.top_p,
        top_k=-1 if f.top_k is None else f.top_k,
        min_p=f.min_p or 0.0,
        frequency_penalty=f.frequency_penalty or 0.0,
        presence_penalty=f.presence_penalty or 0.0,
        ignore_eos=bool(f.ignore_eos),
        skip_special_tokens=skip_special,
        spaces_between_special_tokens=spaces,
        seed=f.seed,
        n=spec.n or 1,
        constraint=spec.constraint,
    )
    params.check()
    logprobs = None
    if f.return_logprob:
        start = -1 if f.logprob_start_len is None else f.logprob_start_len
        logprobs = LogprobOptions(
            start=start, top=f.top_logprobs_num or 0, text=bool(f.return_text_in_logprobs)
        )
    return params, logprobs
