"""A backend without a model: the answer is a function of the prompt. For tests, documentation and dry runs.

Without replies it writes words that are a hash of prompt, fields and sample, so that a prompt which is different in any
way gets a different answer. Its tokens are words with the blank before them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from zlib import crc32

from runtime.api import (
    ChoiceScore,
    Delta,
    Finish,
    Generate,
    Prompt,
    Score,
    ScoreResult,
    TokenLogprob,
    TokenSegment,
    Usage,
    render,
)
from runtime.backends.base import Capabilities, ModelInfo
from runtime.backends.targets import OWN_CONSTRAINTS

Reply = str | Callable[[str], str]
_WORDS = re.compile(r"\s?\S+|\s")


def words(text: str) -> list[str]:
    """The text cut into its tokens."""
    return _WORDS.findall(text)


def word_id(word: str) -> int:
    return crc32(word.encode())


class Scripted:
    """Deterministic answers.

    replies  by a part of the prompt: the answer, or a function of the prompt; the last matching part wins
    fail_on  prompts that hold this text end with an error
    delay    seconds before each answer
    calls    what was asked, in order
    """

    def __init__(
        self,
        replies: Mapping[str, Reply] | None = None,
        *,
        length: int = 5,
        delay: float = 0.0,
        fail_on: str | None = None,
        chat_template: str | None = None,
        capabilities: Capabilities | None = None,
    ) -> None:
        self.replies = dict(replies or {})
        self.length = length
        self.delay = delay
        self.fail_on = fail_on
        self.calls: list[Generate | Score] = []
        self.prefills: list[str] = []
        self.batches: list[int] = []
        self._model = ModelInfo(model_path="scripted", chat_template=chat_template)
        self._capabilities = capabilities or Capabilities(
            name="scripted",
            score=True,
            prefill=True,
            tokens=True,
            samples=True,
            logprobs=True,
            constraints=OWN_CONSTRAINTS if replies else frozenset(),
        )

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def model(self) -> ModelInfo:
        return self._model

    def answer(self, request: Generate, index: int) -> tuple[str, Finish]:
        """The text of one sample, and why it ends."""
        s = request.sampling
        prompt = render(request.prompt)
        found = [r for part, r in self.replies.items() if part in prompt]
        if found:
            reply = found[-1]
            text = reply(prompt) if callable(reply) else reply
        else:
            shape = [(type(p).__name__, p.text) for p in request.prompt if isinstance(p, TokenSegment)]
            key = f"{prompt}|{shape}|{s.constraint}|{s.stop}|{s.max_new_tokens}|{s.seed}|{s.temperature}|{index}"
            count = 1 + crc32(key.encode()) % self.length
            text = "".join(f" w{crc32(f'{key}{i}'.encode()) % 1000}" for i in range(count))
        finish = Finish(type="stop", matched=None)
        tokens = words(text)
        if s.max_new_tokens is not None and len(tokens) > s.max_new_tokens:
            text = "".join(tokens[: s.max_new_tokens])
            finish = Finish(type="length", length=s.max_new_tokens)
        cuts = [(at, stop) for stop in s.stop if (at := text.find(stop)) >= 0]
        if cuts:
            at, stop = min(cuts)
            text = text[: at + len(stop)] if s.no_stop_trim else text[:at]
            finish = Finish(type="stop", matched=stop)
        return text, finish

    async def generate(self, requests: Sequence[Generate]) -> AsyncIterator[Delta]:
        self.batches.append(len(requests))
        self.calls.extend(requests)
        if self.delay:
            await asyncio.sleep(self.delay)
        for request in requests:
            prompt = render(request.prompt)
            if self.fail_on is not None and self.fail_on in prompt:
                finish = Finish(
                    type="error", matched="scripted", message=f"the script fails on {self.fail_on!r}"
                )
                for index in range(request.sampling.n):
                    yield Delta(id=request.id, index=index, finish=finish, usage=Usage())
                continue
            for index in range(request.sampling.n):
                text, finish = self.answer(request, index)
                tokens = words(text)
                ids = [word_id(t) for t in tokens]
                usage = Usage(prompt_tokens=len(words(prompt)), completion_tokens=len(tokens))
                logprobs = tuple(TokenLogprob(-1.0, i, t) for i, t in zip(ids, tokens, strict=True))
                if not request.stream:
                    yield Delta(
                        id=request.id,
                        index=index,
                        text=text,
                        ids=tuple(ids),
                        ids_text=len(text),
                        output_logprobs=logprobs if request.logprobs else (),
                        finish=finish,
                        usage=usage,
                    )
                    continue
                length = 0
                for token, id in zip(tokens, ids, strict=True):
                    length += len(token)
                    yield Delta(id=request.id, index=index, text=token, ids=(id,), ids_text=length)
                yield Delta(id=request.id, index=index, ids_text=length, finish=finish, usage=usage)

    async def score(self, request: Score) -> ScoreResult:
        self.calls.append(request)
        if self.delay:
            await asyncio.sleep(self.delay)
        prompt = render(request.prompt)
        found = [r for part, r in self.replies.items() if part in prompt]
        wanted = (found[-1](prompt) if callable(found[-1]) else found[-1]) if found else None
        scores = []
        for choice in request.choices:
            value = -float(crc32(f"{prompt}|{choice}".encode()) % 10_000) / 1000 - 0.001
            if wanted is not None and choice.strip() == wanted.strip():
                value = 0.0
            token = (TokenLogprob(value, word_id(choice), choice),)
            without = (TokenLogprob(None, word_id(choice), choice),) if request.unconditional else None
            scores.append(ChoiceScore(token, without))
        return ScoreResult(tuple(scores), prompt_tokens=len(words(prompt)))

    async def prefill(self, prompt: Prompt) -> None:
        self.prefills.append(render(prompt))

    async def flush_cache(self) -> bool:
        return True

    async def close(self) -> None:
        return None
