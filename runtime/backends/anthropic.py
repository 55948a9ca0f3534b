"""Anthropic's models through the vendor's client: conversations in, text out; no constraints, no log-probabilities."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from runtime.api import Delta, Finish, Generate, Usage
from runtime.backends.provider import Provider, conversation, inline_image, missing
from runtime.backends.retries import MAX_RETRIES, Retries
from runtime.errors import InvalidRequest

MAX_TOKENS = 1024  # of a gen without a limit: the protocol demands one


class AnthropicBackend(Provider):
    """`max_retries`: how often a call is sent again (`Retries`). `options` go to the client: api_key, base_url, timeout, ...

    Raises InvalidRequest if it cannot be made.
    """

    def __init__(
        self,
        model_name: str,
        chat_template: str | None = None,
        max_retries: int = MAX_RETRIES,
        **options: Any,
    ) -> None:
        try:
            import anthropic
        except ImportError:
            raise missing("anthropic", "anthropic") from None
        retries = Retries(max_retries, (anthropic.APIConnectionError,))
        try:
            self._client: Any = anthropic.AsyncAnthropic(max_retries=0, **options)
        except (anthropic.AnthropicError, TypeError, ValueError) as error:
            raise InvalidRequest(
                f"the client of Anthropic cannot be made: {error}", param="backend"
            ) from None
        super().__init__("anthropic", model_name, chat_template or "claude", retries)

    async def ask(self, request: Generate) -> AsyncIterator[Delta]:
        messages = conversation(request)
        s = request.sampling
        system = "\n\n".join(str(m.content) for m in messages if m.role == "system")
        fields: dict[str, Any] = {
            "model": self.model_name,
            "messages": [
                {"role": m.role, "content": _content(m.content)} for m in messages if m.role != "system"
            ],
            "max_tokens": MAX_TOKENS if s.max_new_tokens is None else s.max_new_tokens,
            "extra_body": {"temperature": s.temperature},  # clients differ in which of these they name
        }
        if system:
            fields["system"] = system
        if s.stop:
            fields["stop_sequences"] = list(s.stop)
        if s.top_p != 1.0:
            fields["extra_body"]["top_p"] = s.top_p
        if s.top_k > 0:
            fields["extra_body"]["top_k"] = s.top_k
        if not request.stream:
            answer = await self.retries.sent(lambda: self._client.messages.create(**fields))
            text = "".join(block.text for block in answer.content if block.type == "text")
            yield Delta(
                id=request.id,
                text=text,
                finish=_finish(answer.stop_reason, answer.stop_sequence),
                usage=self._count(answer.usage),
            )
            return
        async with AsyncExitStack() as opened:
            stream = await self.retries.sent(
                lambda: opened.enter_async_context(self._client.messages.stream(**fields))
            )
            async for piece in stream.text_stream:
                yield Delta(id=request.id, text=piece)
            answer = await stream.get_final_message()
        yield Delta(
            id=request.id,
            finish=_finish(answer.stop_reason, answer.stop_sequence),
            usage=self._count(answer.usage),
        )

    def _count(self, usage: Any) -> Usage:
        cached = getattr(usage, "cache_read_input_tokens", None) or 0
        return self.count(usage.input_tokens + cached, usage.output_tokens, cached)

    async def close(self) -> None:
        await self._client.close()


def _content(content: Any) -> Any:
    """Images as this protocol writes them."""
    if isinstance(content, str):
        return content
    found: list[dict[str, Any]] = []
    for part in content:
        if image := inline_image(part):
            source = {"type": "base64", "media_type": image[0], "data": image[1]}
            found.append({"type": "image", "source": source})
        else:
            found.append(part)
    return found


def _finish(reason: str | None, matched: str | None) -> Finish:
    return Finish("length") if reason == "max_tokens" else Finish("stop", matched=matched)
