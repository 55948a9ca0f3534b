"""OpenAI, Azure, and whoever speaks the same protocol at another base_url, through the vendor's client.

Chat models get the conversation, completion models the text. What the protocol has no field for is refused before
anything is sent (Capabilities); retries with growing pauses are those of the client.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from runtime.api import Delta, Finish, Generate, Prompt, Score, ScoreResult, Usage, render
from runtime.backends.base import Capabilities, ModelInfo
from runtime.backends.targets import TARGETS
from runtime.backends.together import TokenUsage, together
from runtime.errors import InvalidRequest

RETRIES = 3
COMPLETION_MODELS = frozenset({"gpt-3.5-turbo-instruct", "davinci-002", "babbage-002"})


class OpenAIBackend:
    """`options` go to the client: api_key, base_url, timeout, azure_endpoint, api_version, ...

    Raises InvalidRequest if the package `openai` is not installed, or the client refuses its options.
    """

    def __init__(
        self,
        model_name: str,
        is_chat_model: bool | None = None,
        chat_template: str | None = None,
        is_azure: bool = False,
        **options: Any,
    ) -> None:
        try:
            import openai
        except ImportError:
            raise InvalidRequest(
                "this backend needs the package openai: pip install 'sglc[openai]'", param="backend"
            ) from None
        options.setdefault("max_retries", RETRIES)
        try:
            self._client: Any = (
                openai.AsyncAzureOpenAI(**options) if is_azure else openai.AsyncOpenAI(**options)
            )
        except (openai.OpenAIError, TypeError, ValueError) as error:
            raise InvalidRequest(f"the client of OpenAI cannot be made: {error}", param="backend") from None
        self.model_name = model_name
        self.is_chat = model_name not in COMPLETION_MODELS if is_chat_model is None else is_chat_model
        self.token_usage = TokenUsage()
        self._model = ModelInfo(model_path=model_name, chat_template=chat_template or "default")
        able = TARGETS["openai"]
        name = f"openai {model_name}"
        self._capabilities = msgspec.structs.replace(able, name=name) if self.is_chat else msgspec.structs.replace(
            able, name=name, chat_only=False, constraints=frozenset(), images=False
        )  # fmt: skip

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def model(self) -> ModelInfo:
        return self._model

    def generate(self, requests: Sequence[Generate]) -> AsyncIterator[Delta]:
        return together(requests, self._ask)

    def _fields(self, request: Generate) -> dict[str, Any]:
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
            schema = json.loads(s.constraint.source)
            found["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": schema, "strict": True},
            }
        return found

    def _takes_completion_tokens(self) -> bool:
        """Reasoning models refuse max_tokens."""
        return self.is_chat and self.model_name.startswith(("o1", "o3", "o4", "gpt-5"))

    async def _ask(self, request: Generate) -> AsyncIterator[Delta]:
        fields = self._fields(request)
        if self.is_chat:
            fields["messages"] = _messages(request)
            call = self._client.chat.completions.create
        else:
            fields["prompt"] = render(request.prompt)
            call = self._client.completions.create
        if request.stream:
            answer = await call(**fields, stream=True, stream_options={"include_usage": True})
            async for delta in self._streamed(request, answer):
                yield delta
            return
        answer = await call(**fields)
        usage = self._count(answer.usage)
        for choice in answer.choices:
            text = choice.message.content if self.is_chat else choice.text
            yield Delta(
                id=request.id,
                index=choice.index,
                text=text or "",
                finish=_finish(choice.finish_reason),
                usage=usage,
            )

    async def _streamed(self, request: Generate, answer: Any) -> AsyncIterator[Delta]:
        """The end of each sample comes last, when the usage is known."""
        ends: dict[int, Finish] = {}
        usage = Usage()
        async for chunk in answer:
            if chunk.usage is not None:
                usage = self._count(chunk.usage)
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
        found = Usage(
            usage.prompt_tokens, usage.completion_tokens or 0, getattr(details, "cached_tokens", None) or 0
        )
        self.token_usage.prompt_tokens += found.prompt_tokens
        self.token_usage.completion_tokens += found.completion_tokens
        return found

    async def score(self, request: Score) -> ScoreResult:
        raise InvalidRequest(
            f"{self.capabilities.name} gives no log-probabilities of given choices", param="choices"
        )

    async def prefill(self, prompt: Prompt) -> None:
        """A provider decides itself what it keeps."""

    async def flush_cache(self) -> bool:
        return True

    async def close(self) -> None:
        await self._client.close()


def _messages(request: Generate) -> list[dict[str, Any]]:
    if request.messages is None:
        raise InvalidRequest(
            "a chat model takes a conversation: write sgl.user(...) and sgl.assistant(sgl.gen(...))"
        )
    return [{"role": m.role, "content": m.content} for m in request.messages]


def _finish(reason: str | None) -> Finish:
    if reason == "length":
        return Finish("length")
    if reason == "content_filter":
        return Finish("error", message="the provider's filter stopped the answer")
    return Finish("stop")
