"""The backends that users name: a server, a server that is started, an engine in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from typing import Any

from runtime.backends.base import ModelInfo


class RuntimeEndpoint:
    """A server at `base_url` as a backend. `chat_template_name` overrides what the server's model says.

    Raises BackendError if no server answers, KeyError for an unknown template.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        verify: str | bool | None = None,
        chat_template_name: str | None = None,
    ) -> None:
        import msgspec

        from runtime.backends.http import HttpBackend
        from sglc.lang.chat_template import get_chat_template

        if chat_template_name is not None:
            get_chat_template(chat_template_name)
        self.endpoint = HttpBackend(base_url, api_key, verify)
        self.endpoint.connect()
        if chat_template_name is not None:
            self.endpoint._model = msgspec.structs.replace(
                self.endpoint.model, chat_template=chat_template_name
            )

    @property
    def base_url(self) -> str:
        return self.endpoint.url

    @property
    def model(self) -> ModelInfo:
        return self.endpoint.model

    def get_model_name(self) -> str:
        return self.endpoint.model.model_path

    def get_chat_template(self) -> Any:
        from sglc.lang.chat_template import chat_template_for

        return chat_template_for(self.endpoint.model)

    def cache_prefix(self, prefix: str) -> None:
        """Compute a prefix and keep it."""
        from runtime.api import TextSegment

        _now(self.endpoint.prefill((TextSegment(prefix),)))

    def flush_cache(self) -> bool:
        """Forget cached prefixes; False if requests are running."""
        return _now(self.endpoint.flush_cache())

    def get_server_info(self) -> dict[str, Any]:
        """Facts about the server."""
        return _now(self.endpoint.server_info())

    get_server_args = get_server_info


def _now(call: Coroutine[Any, Any, Any]) -> Any:
    """What a call on the loop of all backends gives."""
    import asyncio

    from sglc.exec.loop import event_loop

    return asyncio.run_coroutine_threadsafe(call, event_loop()).result()


class Runtime:
    """A server in a child process, as a backend. Options are those of `runtime serve`; without `model_path` it serves
    the embedded model. Raises RuntimeError("Initialization failed ...") if it does not come up."""

    def __init__(self, model_path: str | None = None, *, log_level: str = "error", **options: Any) -> None:
        from runtime.server.launch import ServerProcess

        self._server = ServerProcess(model_path=model_path, log_level=log_level, **options)
        self.url = self._server.url
        self.generate_url = self.url + "/generate"
        self._front = RuntimeEndpoint(self.url, options.get("api_key"))
        self.endpoint = self._front.endpoint

    @property
    def pid(self) -> int:
        return self._server.pid

    def shutdown(self) -> None:
        """Stop the server."""
        self._server.shutdown()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def cache_prefix(self, prefix: str) -> None:
        """Compute a prefix and keep it."""
        self._front.cache_prefix(prefix)

    def get_tokenizer(self) -> Any:
        """The tokenizer of the served model."""
        from runtime.tokenizer.tokenizer import Tokenizer

        return Tokenizer(self.endpoint.model.model_path)

    def generate(
        self, prompt: str | list[str], sampling_params: dict[str, Any] | None = None, **fields: Any
    ) -> str:
        """What POST /generate answers, as JSON text."""
        return self._post("/generate", {"text": prompt, "sampling_params": sampling_params or {}, **fields})

    def encode(self, prompt: str | list[str] | list[dict[str, Any]] | list[list[dict[str, Any]]]) -> str:
        """The vector of a text, or of several, as POST /encode answers it; of a conversation (messages), or of several, as
        POST /judge does. JSON text."""
        if isinstance(prompt, str) or all(isinstance(p, str) for p in prompt):
            return self._post("/encode", {"text": prompt})
        return self._post("/judge", {"conv": prompt})

    def _post(self, route: str, body: dict[str, Any]) -> str:
        """The text of the answer. Raises InvalidRequest for what the server refuses, BackendError if it fails."""
        import json
        import urllib.error
        import urllib.request

        from runtime.errors import BackendError, InvalidRequest

        headers = {"Content-Type": "application/json", **self.endpoint._headers}
        request = urllib.request.Request(self.url + route, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            told = json.loads(error.read())["error"]
            kind = InvalidRequest if error.code < 500 else BackendError
            raise kind(told["message"], param=told["param"]) from None

    async def async_generate(
        self, prompt: str, sampling_params: dict[str, Any] | None = None
    ) -> AsyncIterator[str]:
        """The answer to one prompt in chunks. Raises InvalidRequest for bad parameters, BackendError if the server fails."""
        import asyncio

        from runtime.api import Generate, TextSegment
        from runtime.engine.native import sampling_params as read
        from runtime.errors import BackendError
        from sglc.exec.loop import event_loop

        call = Generate(
            prompt=(TextSegment(prompt),), sampling=read(sampling_params or {}), id="0", stream=True
        )
        deltas = self.endpoint.generate([call])

        async def one() -> Any:
            return await anext(deltas, None)

        try:
            while True:
                delta = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(one(), event_loop()))
                if delta is None:
                    return
                if delta.finish is not None and delta.finish.type == "error":
                    raise BackendError(delta.finish.message or "the server failed")
                if delta.text:
                    yield delta.text
        finally:
            asyncio.run_coroutine_threadsafe(deltas.aclose(), event_loop())  # type: ignore[attr-defined]

    add_request = async_generate


class OpenAI:
    """An OpenAI model, or one behind the same protocol (`base_url=...`), as a backend.

    `is_chat_model` is told by the name if it is not given; `max_retries` (3) is how often a call is sent again that was
    answered with 408, 409, 429 or at least 500, or not at all; further options go to the vendor's client. `token_usage` counts
    what the provider has counted. Raises InvalidRequest if the package `openai` is not there.
    """

    def __init__(
        self,
        model_name: str,
        is_chat_model: bool | None = None,
        chat_template: str | None = None,
        is_azure: bool = False,
        **options: Any,
    ) -> None:
        from runtime.backends.openai import OpenAIBackend

        self.endpoint = OpenAIBackend(model_name, is_chat_model, chat_template, is_azure, **options)
        self.token_usage = self.endpoint.token_usage


class Anthropic:
    """An Anthropic model as a backend; `max_retries` and other options as for `OpenAI`. Raises InvalidRequest
    without the package."""

    def __init__(self, model_name: str, chat_template: str | None = None, **options: Any) -> None:
        from runtime.backends.anthropic import AnthropicBackend

        self.endpoint = AnthropicBackend(model_name, chat_template, **options)
        self.token_usage = self.endpoint.token_usage


class VertexAI:
    """A Gemini model on Vertex AI as a backend. The project comes from GCP_PROJECT_ID, the location from GCP_LOCATION
    (default us-central1); `max_retries` as for `OpenAI`; other options go to Google's client. Raises InvalidRequest without the
    package or the project."""

    def __init__(
        self,
        model_name: str,
        safety_settings: list[Any] | None = None,
        chat_template: str | None = None,
        **options: Any,
    ) -> None:
        from runtime.backends.vertex import VertexBackend

        self.endpoint = VertexBackend(model_name, safety_settings, chat_template, **options)
        self.token_usage = self.endpoint.token_usage


class LiteLLM:
    """A model of any provider that LiteLLM knows, as a backend; `max_retries` as for `OpenAI`; other options go with every call
    (api_key, base_url, timeout, default_headers). Raises InvalidRequest without the package."""

    def __init__(self, model_name: str, chat_template: str | None = None, **options: Any) -> None:
        from runtime.backends.litellm import LiteLLMBackend

        self.endpoint = LiteLLMBackend(model_name, chat_template, **options)
        self.token_usage = self.endpoint.token_usage
