"""Any provider that LiteLLM knows, through its client; fields that a provider lacks are an error of LiteLLM, not dropped."""

from __future__ import annotations

from typing import Any

from runtime.backends.openai_protocol import OpenAIProtocol
from runtime.backends.provider import RETRIES, missing

TIMEOUT = 600.0  # seconds


class LiteLLMBackend(OpenAIProtocol):
    """`model_name` as LiteLLM writes it, "provider/model". `options` go with every call: api_key, base_url, organization,
    timeout, max_retries, default_headers, ... Raises InvalidRequest without the package."""

    def __init__(self, model_name: str, chat_template: str | None = None, **options: Any) -> None:
        try:
            import litellm
        except ImportError:
            raise missing("litellm", "litellm") from None
        headers = options.pop("default_headers", None)
        self._options = {"timeout": TIMEOUT, "max_retries": RETRIES, **options}
        if headers is not None:
            self._options["extra_headers"] = headers
        self._client: Any = litellm
        super().__init__("litellm", model_name, chat_template or "default")

    async def create(self, **fields: Any) -> Any:
        return await self._client.acompletion(**fields, **self._options)

    async def close(self) -> None:
        """LiteLLM keeps its connections for all who use it."""
