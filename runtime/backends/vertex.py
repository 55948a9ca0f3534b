"""Gemini models on Vertex AI through Google's client: conversations in, text out; no constraints, no log-probabilities."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from runtime.api import Delta, Finish, Generate, Message, Usage
from runtime.backends.provider import Provider, conversation, inline_image, missing
from runtime.backends.retries import MAX_RETRIES, Retries
from runtime.errors import InvalidRequest


class VertexBackend(Provider):
    """`project` and `location` default to GCP_PROJECT_ID and GCP_LOCATION; `safety_settings` go with every call.

    `max_retries`: how often a call is sent again (`Retries`). `options` go to the client (credentials, http_options, ...);
    retry_options of http_options are refused. Raises InvalidRequest without the package or the project.
    """

    def __init__(
        self,
        model_name: str,
        safety_settings: list[Any] | None = None,
        chat_template: str | None = None,
        project: str | None = None,
        location: str | None = None,
        max_retries: int = MAX_RETRIES,
        **options: Any,
    ) -> None:
        try:
            from google import genai
            from google.genai import types
        except ImportError:
            raise missing("google-cloud-aiplatform", "vertex") from None
        project = project or os.environ.get("GCP_PROJECT_ID")
        if not project:
            raise InvalidRequest(
                "VertexAI needs a project: set the environment variable GCP_PROJECT_ID or give project=...",
                param="backend",
            )
        # Its client raises what aiohttp, which sends, raises.
        retries = Retries(max_retries, (aiohttp.ClientConnectionError, TimeoutError, OSError))
        try:
            http = types.HttpOptions.model_validate(options.pop("http_options", None) or {})
            if http.retry_options is not None:
                raise InvalidRequest("give max_retries instead of retry_options", param="http_options")
            http = http.model_copy(update={"retry_options": types.HttpRetryOptions(attempts=1)})
            self._client: Any = genai.Client(
                vertexai=True,
                project=project,
                location=location or os.environ.get("GCP_LOCATION", "us-central1"),
                http_options=http,
                **options,
            )
        except (TypeError, ValueError) as error:
            raise InvalidRequest(
                f"the client of Vertex AI cannot be made: {error}", param="backend"
            ) from None
        self._safety = safety_settings
        super().__init__("vertex", model_name, chat_template or "default", retries)

    async def ask(self, request: Generate) -> AsyncIterator[Delta]:
        s = request.sampling
        messages = conversation(request)
        system = "\n\n".join(str(m.content) for m in messages if m.role == "system")
        config: dict[str, Any] = {
            "temperature": s.temperature,
            "top_p": s.top_p,
            "candidate_count": s.n,
            "max_output_tokens": s.max_new_tokens,
            "stop_sequences": list(s.stop) or None,
            "top_k": s.top_k if s.top_k > 0 else None,
            "presence_penalty": s.presence_penalty or None,
            "frequency_penalty": s.frequency_penalty or None,
            "seed": s.seed,
            "system_instruction": system or None,
            "safety_settings": self._safety,
        }
        fields = {
            "model": self.model_name,
            "contents": [_content(m) for m in messages if m.role != "system"],
            "config": {name: value for name, value in config.items() if value is not None},
        }
        models = self._client.aio.models
        if not request.stream:
            answer = await self.retries.sent(lambda: models.generate_content(**fields))
            usage = self._count(answer.usage_metadata)
            for index in range(s.n):
                text, reason = _candidate(answer, index)
                yield Delta(id=request.id, index=index, text=text, finish=_finish(reason), usage=usage)
            return
        reasons: list[Any] = [None] * s.n
        last: Any = None

        async def begin() -> tuple[AsyncIterator[Any], Any]:
            chunks = await models.generate_content_stream(
                **fields
            )  # asks only when the first chunk is wanted
            return chunks, await anext(chunks, None)

        chunks, chunk = await self.retries.sent(begin)
        while chunk is not None:
            last = chunk.usage_metadata or last
            for index in range(s.n):
                text, reason = _candidate(chunk, index)
                reasons[index] = reason or reasons[index]
                if text:
                    yield Delta(id=request.id, index=index, text=text)
            chunk = await anext(chunks, None)
        usage = self._count(last)
        for index, reason in enumerate(reasons):
            yield Delta(id=request.id, index=index, finish=_finish(reason), usage=usage)

    def _count(self, usage: Any) -> Usage:
        if usage is None:
            return Usage()
        written = (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0)
        return self.count(usage.prompt_token_count, written, usage.cached_content_token_count)

    async def close(self) -> None:
        await self._client.aio.aclose()


def _content(message: Message) -> dict[str, Any]:
    """A message as this protocol writes it; the assistant is the model."""
    parts: list[dict[str, Any]] = []
    for part in [{"text": message.content}] if isinstance(message.content, str) else message.content:
        if image := inline_image(part):
            parts.append({"inline_data": {"mime_type": image[0], "data": base64.b64decode(image[1])}})
        else:
            parts.append({"text": part["text"]})
    return {"role": "model" if message.role == "assistant" else "user", "parts": parts}


def _candidate(answer: Any, index: int) -> tuple[str, str | None]:
    """The text of one candidate, its thoughts left out, and why it ended, if it has."""
    found = next((c for k, c in enumerate(answer.candidates or ()) if (c.index or k) == index), None)
    if found is None:
        return "", None
    parts = (found.content.parts or ()) if found.content is not None else ()
    text = "".join(p.text for p in parts if p.text and not p.thought)
    return text, str(found.finish_reason.value) if found.finish_reason is not None else None


def _finish(reason: str | None) -> Finish:
    if reason == "MAX_TOKENS":
        return Finish("length")
    if reason in ("STOP", "FINISH_REASON_UNSPECIFIED"):
        return Finish("stop")
    if reason is None:
        return Finish("error", message="the answer ended before it was finished, or was blocked")
    return Finish("error", message=f"the provider stopped the answer: {reason}")
