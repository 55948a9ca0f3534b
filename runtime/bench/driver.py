"""An engine loop driven in this process: token ids in, token ids out, and when they came."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from runtime.api import SamplingParams
from runtime.bench.workload import Asked
from runtime.config import EngineConfig
from runtime.engine.collector import settle
from runtime.engine.loop import EngineLoop
from runtime.engine.messages import Add, Ask, Out, Output, Refused
from runtime.errors import EngineError, InvalidRequest


@dataclass
class Answered:
    """Seconds since the run began, and the tokens that came then."""

    arrivals: list[tuple[float, int]] = field(default_factory=list)

    @property
    def first(self) -> float:
        return self.arrivals[0][0]

    @property
    def last(self) -> float:
        return self.arrivals[-1][0]

    @property
    def tokens(self) -> int:
        return sum(count for _, count in self.arrivals)

    @property
    def between(self) -> float | None:
        """Seconds a token after the first; None where there is only one."""
        rest = self.tokens - self.arrivals[0][1]
        return (self.last - self.first) / rest if rest else None


@dataclass(frozen=True)
class Outcome:
    """Of one run. `turns`: when each turn of the loop ended, and the tokens that it gave."""

    seconds: float
    answers: list[Answered]
    turns: list[tuple[float, int]]

    @property
    def written(self) -> int:
        return sum(a.tokens for a in self.answers)


class Driver:
    """A loaded engine; `run` gives requests to it, all at once, and waits for the answers."""

    def __init__(self, config: EngineConfig) -> None:
        self.loop = EngineLoop(config)
        settle()  # as an engine's process does
        self.vocabulary = self.loop.model.spec.vocabulary
        self._tokenizer: Any = None
        self._number = 0

    @property
    def facts(self) -> dict[str, Any]:
        """What was measured, and on what."""
        cuda = self.loop.device.startswith("cuda")
        return {
            **self.loop.info,
            "card": torch.cuda.get_device_name() if cuda else None,
            "torch": torch.__version__,
        }

    def check(self, rows: int, tokens: int) -> None:
        """Raises InvalidRequest if so many requests of so many tokens would not all run at the same time."""
        loop = self.loop
        if tokens > loop.context:
            raise InvalidRequest(
                f"{tokens} tokens of input and output are more than the context ({loop.context}); shorten them"
            )
        if rows > loop.seats:
            raise InvalidRequest(
                f"a batch of {rows} needs {rows} seats, there are {loop.seats}; add --max-running-requests {rows}"
            )
        if rows * tokens > (total := loop.info["total_tokens"]):
            raise InvalidRequest(
                f"{rows} requests of {tokens} tokens need {rows * tokens} tokens of KV memory, there are {total}; "
                f"take fewer, or give more with --max-total-tokens {rows * tokens}"
            )

    def run(
        self,
        requests: Sequence[Asked],
        temperature: float = 0.0,
        done: Callable[[], object] | None = None,
    ) -> Outcome:
        """`done` is called at the end of each request. Raises EngineError if one is refused or fails."""
        answers: dict[str, Answered] = {}
        prompts = [self._ids(r.prompt) for r in requests]
        began = time.perf_counter()
        for asked, tokens in zip(requests, prompts, strict=True):
            self._number += 1
            name = str(self._number)
            answers[name] = Answered()
            sampling = SamplingParams(max_new_tokens=asked.new, temperature=temperature, ignore_eos=True)
            self._refuse(self.loop.handle(Add(name, tokens, sampling, seed=self._number)))
        left = len(answers)
        turns: list[tuple[float, int]] = []
        while left:
            messages = self.loop.step()
            now = time.perf_counter() - began
            self._refuse(messages)
            came = 0
            for m in messages:
                if not isinstance(m, Output):
                    continue
                if m.tokens:
                    came += len(m.tokens)
                    answers[m.id].arrivals.append((now, len(m.tokens)))
                if m.finish is not None:
                    if m.finish.type == "error":
                        raise EngineError(m.finish.message or "the engine failed")
                    left -= 1
                    if done is not None:
                        done()
            turns.append((now, came))
        outcome = Outcome(time.perf_counter() - began, list(answers.values()), turns)
        wanted = sum(r.new for r in requests)
        if outcome.written != wanted:
            raise EngineError(f"{outcome.written} tokens were written where {wanted} were asked for")
        return outcome

    def _ids(self, prompt: list[int] | str) -> list[int]:
        if isinstance(prompt, list):
            return prompt
        if self._tokenizer is None:
            from runtime.tokenizer.tokenizer import Tokenizer

            config = self.loop.config
            self._tokenizer = Tokenizer(config.tokenizer_path or config.folder)
        ids: list[int] = self._tokenizer.encode(prompt)
        return ids

    @staticmethod
    def _refuse(messages: list[Out]) -> None:
        for m in messages:
            if isinstance(m, Refused):
                raise InvalidRequest(f"a request was refused: {m.message}")

    def flush(self) -> None:
        """Forget every cached prefix."""
        self.loop.handle(Ask(0, "flush"))

    def reused(self) -> tuple[int, int]:
        """Prompt tokens that were found in the cache, and all of them, since the start."""
        return self.loop.scheduler.cached_tokens, self.loop.scheduler.prompt_tokens
