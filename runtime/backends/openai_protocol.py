"""Calls in OpenAI's format: fields, answers, streams. Whoever takes and gives them through a client is a subclass."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import AsyncIterator
from typing import Any

from runtime.api import Constraint, Delta, Finish, Generate, SamplingParams, Usage, render
from runtime.backends.provider import Provider, conversation
from runtime.errors import BackendError

AROUND = 16  # tokens of the object around a choice


class OpenAIProtocol(Provider):
    """Chat models get the conversation, completion models (`is_chat` false) the text."""

    is_chat = True

    @abstractmethod
    async def create(self, **fields: Any) -> Any:
        """Send one call; the answer, or with `stream` an asynchronous iterator of chunks."""

    def fields(self, request: Generate) -> dict[str, Any]:
        s = request.sampling
        found: dict[str, Any] = {
            "model": self.model_name,
            "temperature": s.temperature,
            "top_p": s.top_p,
            "frequency_penalty": s.frequency_penalty,
            "presence_penalty": s.presence_penalty,
            "n": s.n,
        }
        if s.max_new_tokens is not None:
            found["max_completion_tokens" if self._takes_completion_tokens() else "max_tokens"] = (
                s.max_new_tokens
            )
        if s.stop:
            found["stop"] = list(s.stop)
        if s.seed is not None:
            found["seed"] = s.seed
        if s.constraint is not None:
            found["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": _schema(s.constraint), "strict": True},
            }
        if chooses(s):
            found.pop("stop", None)  # for the choice, not for the object around it
            for name in found.keys() & {"max_tokens", "max_completion_tokens"}:
                found[name] += AROUND
        return found

    def _takes_completion_tokens(self) -> bool:
        """Reasoning models refuse max_tokens."""
        return self.is_chat and self.model_name.startswith(("o1", "o3", "o4", "gpt-5"))

    async def ask(self, request: Generate) -> AsyncIterator[Delta]:
        fields = self.fields(request)
        if self.is_chat:
            fields["messages"] = [{"role": m.role, "content": m.content} for m in conversation(request)]
        else:
            fields["prompt"] = render(request.prompt)
        if request.stream and not chooses(request.sampling):
            answer = await self.create(**fields, stream=True, stream_options={"include_usage": True})
            async for delta in self._streamed(request, answer):
                yield delta
            return
        answer = await self.create(**fields)
        usage = self._count(answer.usage)
        for choice in answer.choices:
            text = (choice.message.content if self.is_chat else choice.text) or ""
            end = _finish(choice.finish_reason)
            if chooses(request.sampling) and end.type != "error":
                text, end = _choice(text, request.sampling), Finish("stop")
            yield Delta(id=request.id, index=choice.index, text=text, finish=end, usage=usage)

    async def _streamed(self, request: Generate, answer: Any) -> AsyncIterator[Delta]:
        """The end of each sample comes last, when the usage is known."""
        ends: dict[int, Finish] = {}
        usage = Usage()
        async for chunk in answer:
            if (told := getattr(chunk, "usage", None)) is not None:
                usage = self._count(told)
            for choice in chunk.choices:
                text = choice.delta.content if self.is_chat else choice.text
                if text:
                    yield Delta(id=request.id, index=choice.index, text=text)
                if choice.finish_reason is not None:
                    ends[choice.index] = _finish(choice.finish_reason)
        for index in range(request.sampling.n):
            end = ends.get(index, Finish("error", message="the stream ended before the answer did"))
            yield Delta(id=request.id, index=index, finish=end, usage=usage)

    def _count(self, usage: Any) -> Usage:
        if usage is None:
            return Usage()
        details = getattr(usage, "prompt_tokens_details", None)
        return self.count(
            usage.prompt_tokens, usage.completion_tokens, getattr(details, "cached_tokens", None)
        )


def chooses(sampling: SamplingParams) -> bool:
    """Whether the answer is one of some texts. These models write objects only, so it comes as a field of one, and whole."""
    return sampling.constraint is not None and sampling.constraint.kind == "choices"


def _schema(constraint: Constraint) -> Any:
    source = json.loads(constraint.source)
    if constraint.kind != "choices":
        return source
    return {
        "type": "object",
        "properties": {"answer": {"type": "string", "enum": source}},
        "required": ["answer"],
        "additionalProperties": False,
    }


def _choice(text: str, sampling: SamplingParams) -> str:
    """The choice in an answer, up to where a stop string would have ended it. Raises BackendError for any other answer."""
    assert sampling.constraint is not None
    try:
        found = json.loads(text)["answer"]
    except (ValueError, TypeError, LookupError):
        found = None
    if found not in json.loads(sampling.constraint.source):
        raise BackendError(
            f"the model was to answer with one of {sampling.constraint.source} but wrote {text!r}"
        )
    return min((found.partition(stop)[0] for stop in sampling.stop), key=len, default=found)


def _finish(reason: str | None) -> Finish:
    if reason == "length":
        return Finish("length")
    if reason == "content_filter":
        return Finish("error", message="the provider's filter stopped the answer")
    return Finish("stop")
