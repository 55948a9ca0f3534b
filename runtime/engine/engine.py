"""The engine for callers without asyncio: `Engine().generate("...")`.

Answers have the shape of the native HTTP API: `{"text", "meta_info", "index"}`; with `skip_tokenizer_init` they have `token_ids`
in place of the text.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from runtime.api import Delta, Embed, Generate, Segment, TextSegment, TokenSegment
from runtime.config import EngineConfig
from runtime.engine.async_engine import AsyncEngine
from runtime.engine.native import encoded, logprob_options, meta_info, said
from runtime.engine.native import sampling_params as sampling_of
from runtime.engine.transport import Transport, error_of
from runtime.errors import InvalidRequest, Unsupported
from runtime.log import level_of
from runtime.tokenizer.tokenizer import Tokenizer


def _segments(prompt: Any, input_ids: Any) -> tuple[list[Segment], bool]:
    """One segment for each prompt, and whether several were given. Raises InvalidRequest unless it is one of the two."""
    if (prompt is None) == (input_ids is None):
        raise InvalidRequest("Either text or input_ids should be provided.", param="prompt")
    if prompt is not None:
        one = isinstance(prompt, str)
        return [TextSegment(p) for p in ([prompt] if one else prompt)], not one
    one = not len(input_ids) or isinstance(input_ids[0], int)
    return [TokenSegment(tuple(p), "") for p in ([input_ids] if one else input_ids)], not one


def _requests(
    prompt: Any,
    sampling_params: Any,
    *,
    return_logprob: Any = False,
    logprob_start_len: Any = None,
    top_logprobs_num: Any = None,
    lora_path: Any = None,
    stream: bool = False,
    input_ids: Any = None,
    return_text_in_logprobs: bool = False,
) -> tuple[list[Generate], bool]:
    """The calls that the arguments of `Engine.generate` ask for, and whether the answer is a list."""
    if lora_path is not None:
        raise Unsupported("this engine has no LoRA adapters; leave lora_path out", param="lora_path")
    segments, many = _segments(prompt, input_ids)

    def each(name: str, given: Any, default: Any) -> list[Any]:
        if not isinstance(given, (list, tuple)):
            return [default if given is None else given] * len(segments)
        if len(given) != len(segments):
            raise InvalidRequest(
                f"{len(segments)} prompts but {len(given)} values of {name}; give one for all or one for each",
                param=name,
            )
        return [default if value is None else value for value in given]

    params = each("sampling_params", sampling_params, {})
    wanted = each("return_logprob", return_logprob, False)
    starts = each("logprob_start_len", logprob_start_len, -1)
    tops = each("top_logprobs_num", top_logprobs_num, 0)
    out = [
        Generate(
            prompt=(segment,),
            sampling=sampling_of(params[i]),
            id=str(i),
            logprobs=logprob_options(wanted[i], starts[i], tops[i], return_text_in_logprobs),
            stream=stream,
        )
        for i, segment in enumerate(segments)
    ]
    return out, many or out[0].sampling.n > 1


def _may_be_on_a_gpu(config: EngineConfig) -> bool:
    """Known without importing torch, which takes seconds."""
    if config.device != "auto":
        return config.device.startswith("cuda")
    return any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))


class Engine:
    """An engine without a server. Without `model_path` it runs the embedded model. Its loop is a thread here, or on a GPU a process
    of its own: what the caller computes takes no time from it, and its memory is free once it was shut down.

    Options are the fields of `runtime.config.EngineConfig`; `log_level` is of the runtime's loggers, here and there. Usable as a
    context manager; `shutdown` frees the model. Raises EngineError if the model cannot be loaded.
    """

    def __init__(
        self, model_path: str | None = None, *, log_level: str | None = None, **options: Any
    ) -> None:
        if log_level is not None:
            logging.getLogger("runtime").setLevel(level_of("--log-level", log_level))
        config = EngineConfig.of({"model_path": model_path, **options})
        transport: Transport | None = None
        if _may_be_on_a_gpu(config):
            from runtime.engine.process import ProcessTransport

            transport = ProcessTransport(config, logs=(log_level or "warning", "text"))
        self.async_engine = AsyncEngine(config, transport)
        self.async_engine.start()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine-calls", daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> AsyncEngine:
        """The `Backend` that programs run on."""
        return self.async_engine

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        sampling_params: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
        return_logprob: bool | Sequence[bool] = False,
        logprob_start_len: int | Sequence[int] | None = None,
        top_logprobs_num: int | Sequence[int] | None = None,
        lora_path: None = None,
        stream: bool = False,
        *,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        return_text_in_logprobs: bool = False,
    ) -> Any:
        """Continue one prompt (a dict is returned) or several (a list, prompt by prompt, then sample by sample).

        Fields may be lists, with a value for each prompt. With `stream` an iterator of dicts, whose `text` is the new part
        and whose `index` tells the sample. Raises InvalidRequest for bad fields, EngineError if the engine fails.
        """
        requests, many = _requests(
            prompt,
            sampling_params,
            return_logprob=return_logprob,
            logprob_start_len=logprob_start_len,
            top_logprobs_num=top_logprobs_num,
            lora_path=lora_path,
            stream=stream,
            input_ids=input_ids,
            return_text_in_logprobs=return_text_in_logprobs,
        )
        if stream:
            return self._stream(requests)
        results = asyncio.run_coroutine_threadsafe(self._collect(requests), self._loop).result()
        return results if many else results[0]

    async def async_generate(
        self, prompt: str | Sequence[str] | None = None, sampling_params: Any = None, **options: Any
    ) -> Any:
        """`generate` for asyncio, its further arguments by name; with `stream=True` the result is an async iterator."""
        requests, many = _requests(prompt, sampling_params, **options)
        if options.get("stream"):
            return self._pieces(requests)
        results = await self._collect(requests)
        return results if many else results[0]

    async def _collect(self, requests: list[Generate]) -> list[dict[str, Any]]:
        found: dict[tuple[int, int], dict[str, Any]] = {}
        async for delta in self.async_engine.generate(requests):
            assert delta.finish is not None
            if delta.finish.type == "error":
                raise error_of(str(delta.finish.matched), delta.finish.message or "")
            found[int(delta.id), delta.index] = self._shape(delta)
        return [{**found[key], "index": i} for i, key in enumerate(sorted(found))]

    async def _pieces(self, requests: list[Generate]) -> AsyncIterator[dict[str, Any]]:
        async for delta in self.async_engine.generate(requests):
            if delta.finish is not None and delta.finish.type == "error":
                raise error_of(str(delta.finish.matched), delta.finish.message or "")
            yield self._piece(delta, requests)

    def _piece(self, delta: Delta, requests: list[Generate]) -> dict[str, Any]:
        index = sum(r.sampling.n for r in requests[: int(delta.id)]) + delta.index
        return {**self._shape(delta), "index": index}

    def _shape(self, delta: Delta) -> dict[str, Any]:
        has_text = self.async_engine.tokenizer.has_text
        return {**said(delta, has_text), "meta_info": meta_info(delta, delta.id)}

    def _stream(self, requests: list[Generate]) -> Iterator[dict[str, Any]]:
        pieces = self._pieces(requests)
        try:
            while True:
                try:
                    yield asyncio.run_coroutine_threadsafe(anext(pieces), self._loop).result()  # type: ignore[arg-type]
                except StopAsyncIteration:
                    return
        finally:
            asyncio.run_coroutine_threadsafe(pieces.aclose(), self._loop).result()  # type: ignore[attr-defined]

    def encode(
        self, prompt: str | Sequence[str] | None = None, *, input_ids: Any = None
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """The vector of one prompt (a dict is returned) or of several (a list), as POST /encode answers them.

        Raises InvalidRequest for bad prompts and for a model that generates, EngineError if the engine fails.
        """
        return asyncio.run_coroutine_threadsafe(
            self.async_encode(prompt, input_ids=input_ids), self._loop
        ).result()

    async def async_encode(
        self, prompt: str | Sequence[str] | None = None, *, input_ids: Any = None
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """`encode` for asyncio."""
        segments, many = _segments(prompt, input_ids)
        found = await self.async_engine.embed([Embed(prompt=(s,)) for s in segments])
        answers = [encoded(e, e.id, i) for i, e in enumerate(found)]
        return answers if many else answers[0]

    def get_tokenizer(self) -> Tokenizer:
        return self.async_engine.tokenizer

    def flush_cache(self) -> bool:
        """Forget cached prefixes; False if requests are running."""
        return asyncio.run_coroutine_threadsafe(self.async_engine.flush_cache(), self._loop).result()

    def get_server_info(self) -> dict[str, Any]:
        """Facts about the model, and the use of memory and seats."""
        stats = asyncio.run_coroutine_threadsafe(self.async_engine.stats(), self._loop).result()
        return {"model_path": self.async_engine.config.folder, **self.async_engine.info, **stats}

    def shutdown(self) -> None:
        self.async_engine.shutdown()
        if self._loop.is_running():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=5)
