"""Any provider that LiteLLM knows, through its client; fields that a provider lacks are an error of LiteLLM, not dropped."""

from __future__ import annotations

from typing import Any

from runtime.backends.openai_protocol import OpenAIProtocol
from runtime.backends.provider import missing
from runtime.backends.retries import MAX_RETRIES, Retries

TIMEOUT = 600.0  # seconds


class LiteLLMBackend(OpenAIProtocol):
    """`model_name` as LiteLLM writes it, "provider/model". `max_retries`: how often a call is sent again (`Retries`).
    `options` go with every call: api_key, base_url, organization, timeout, default_headers, ...

    Raises InvalidRequest without the package.
    """

    def __init__(
        self,
        model_name: str,
        chat_template: str | None = None,
        max_retries: int = MAX_RETRIES,
        **options: Any,
    ) -> None:
        try:
            import litellm
            import openai  # LiteLLM needs it, and its errors are kinds of OpenAI's
        except ImportError:
            raise missing("litellm", "litellm") from None
        retries = Retries(max_retries, (openai.APIConnectionError,))
        headers = options.pop("default_headers", None)
        self._options = {"timeout": TIMEOUT, "max_retries": 0, **options}
        if headers is not None:
            self._options["extra_headers"] = headers
        self._client: Any = litellm
        super().__init__("litellm", model_name, chat_template or "default", retries)

    async def create(self, **fields: Any) -> Any:
        return await self.retries.sent(lambda: self._client.acompletion(**fields, **self._options))

    async def close(self) -> None:
        """LiteLLM keeps its connections for all who use it."""
