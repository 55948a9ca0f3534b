"""A backend that remembers: calls are recorded in a file, and answered from it when they come again.

A call is known by what it asks: prompt (token ids as they were generated), sampling, constraint, log-probabilities. So a
replay needs no model and is equal to the bit, and after a prompt was edited only the calls that follow from it are new.
Equal calls are answered in the order in which they were recorded. The file is a journal of JSON lines; a line that was
cut off when its writer died is left out.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from runtime.api import Delta, Generate, Prompt, Score, ScoreResult
from runtime.backends.base import Backend, Capabilities, ModelInfo
from runtime.errors import InvalidRequest

FORMAT = "sglc-cassette-1"


class Header(msgspec.Struct, frozen=True):
    """The first line: whose answers these are."""

    format: str
    model: ModelInfo
    capabilities: Capabilities


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One call: `deltas` of a generate, or the `result` of a score."""

    key: str
    deltas: tuple[Delta, ...] = ()
    result: ScoreResult | None = None


class Cassette:
    """A backend around `inner`, or without one, which then answers only what was recorded.

    `hits` and `misses` count the calls that came from the file, and the others. Raises InvalidRequest for a file that is
    no cassette, and in a run for a call that is not in it if there is no `inner`.
    """

    def __init__(self, path: str | Path, inner: Backend | None = None) -> None:
        self.path = Path(path)
        self.inner = inner
        self.hits = self.misses = 0
        self._answers: dict[str, deque[Line]] = {}
        self._file: BinaryIO | None = None
        header = self._load()
        if header is None and inner is None:
            raise InvalidRequest(
                f"{self.path} has no recorded calls, and there is no backend to make them", param="replay"
            )
        self._model = inner.model if inner is not None else header.model  # type: ignore[union-attr]
        self._capabilities = inner.capabilities if inner is not None else header.capabilities  # type: ignore[union-attr]

    def _load(self) -> Header | None:
        if not self.path.exists():
            return None
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) != len(data):  # its writer died in the middle of a line
            os.truncate(self.path, len(whole))
        lines = whole.splitlines()
        if not lines:
            return None
        try:
            header = msgspec.json.decode(lines[0], type=Header)
            if header.format != FORMAT:
                raise InvalidRequest(
                    f"{self.path} has format {header.format!r}, not {FORMAT!r}", param="replay"
                )
            decoder = msgspec.json.Decoder(Line)
            for text in lines[1:]:
                line = decoder.decode(text)
                self._answers.setdefault(line.key, deque()).append(line)
        except msgspec.MsgspecError as error:
            raise InvalidRequest(f"{self.path} is not a cassette: {error}", param="replay") from None
        return header

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def model(self) -> ModelInfo:
        return self._model

    def _known(self, key: str) -> Line | None:
        found = self._answers.get(key)
        if not found:
            self.misses += 1
            return None
        self.hits += 1
        return found.popleft()

    def _write(self, line: Line) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh = not self.path.exists() or not self.path.stat().st_size
            self._file = self.path.open("ab")
            if fresh:
                header = Header(FORMAT, self.model, self.capabilities)
                self._file.write(msgspec.json.encode(header) + b"\n")
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()

    def _missing(self, call: Generate | Score) -> InvalidRequest:
        tail = "".join(getattr(s, "text", "") for s in call.prompt)[-60:]
        return InvalidRequest(
            f"{self.path} has no answer to the call after {tail!r}: the program, its arguments or its sampling changed; "
            "run it with a backend to record what is new",
            param="replay",
        )

    async def generate(self, requests: Sequence[Generate]) -> AsyncIterator[Delta]:
        left: list[Generate] = []
        keys: dict[str, str] = {}
        for request in requests:
            key = key_of(request)
            line = self._known(key)
            if line is None:
                keys[request.id] = key
                left.append(request)
                continue
            for delta in line.deltas:
                yield msgspec.structs.replace(delta, id=request.id)
        if not left:
            return
        if self.inner is None:
            raise self._missing(left[0])
        heard: dict[str, list[Delta]] = {r.id: [] for r in left}
        open_ = {r.id: r.sampling.n for r in left}
        async for delta in self.inner.generate(left):
            heard[delta.id].append(delta)
            if delta.finish is not None:
                open_[delta.id] -= 1
                failed = any(
                    d.finish is not None and d.finish.type in ("error", "abort") for d in heard[delta.id]
                )
                if not open_[delta.id] and not failed:  # failures are asked again
                    self._write(Line(keys[delta.id], tuple(heard.pop(delta.id))))
            yield delta

    async def score(self, request: Score) -> ScoreResult:
        key = key_of(request)
        line = self._known(key)
        if line is not None and line.result is not None:
            return line.result
        if self.inner is None:
            raise self._missing(request)
        result = await self.inner.score(request)
        self._write(Line(key, result=result))
        return result

    async def prefill(self, prompt: Prompt) -> None:
        if self.inner is not None:
            await self.inner.prefill(prompt)

    async def flush_cache(self) -> bool:
        return await self.inner.flush_cache() if self.inner is not None else True

    async def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self.inner is not None:
            await self.inner.close()


def key_of(call: Generate | Score) -> str:
    """A digest of what a call asks; not of its id or of hints."""
    asked: list[Any] = [type(call).__name__, call.prompt]
    if isinstance(call, Generate):
        asked += [call.sampling, call.logprobs, call.stream]
    else:
        asked += [call.choices, call.unconditional]
    return hashlib.sha256(msgspec.json.encode(asked, order="sorted")).hexdigest()[:32]
