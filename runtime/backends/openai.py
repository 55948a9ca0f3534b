"""OpenAI, Azure, and whoever speaks the same protocol at another base_url, through the vendor's client.

What the protocol has no field for is refused before anything is sent (Capabilities); calls are sent again as
`retries` says, not by the client.
"""

from __future__ import annotations

from typing import Any

from runtime.backends.openai_protocol import OpenAIProtocol
from runtime.backends.provider import missing
from runtime.backends.retries import MAX_RETRIES, Retries
from runtime.errors import InvalidRequest

COMPLETION_MODELS = frozenset({"gpt-3.5-turbo-instruct", "davinci-002", "babbage-002"})


class OpenAIBackend(OpenAIProtocol):
    """`max_retries`: how often a call is sent again (`Retries`). `options` go to the client: api_key, base_url, timeout,
    azure_endpoint, api_version, ...

    Raises InvalidRequest if the package `openai` is not installed, or the client refuses its options.
    """

    def __init__(
        self,
        model_name: str,
        is_chat_model: bool | None = None,
        chat_template: str | None = None,
        is_azure: bool = False,
        max_retries: int = MAX_RETRIES,
        **options: Any,
    ) -> None:
        try:
            import openai
        except ImportError:
            raise missing("openai", "openai") from None
        retries = Retries(max_retries, (openai.APIConnectionError,))
        client = openai.AsyncAzureOpenAI if is_azure else openai.AsyncOpenAI
        try:
            self._client: Any = client(max_retries=0, **options)
        except (openai.OpenAIError, TypeError, ValueError) as error:
            raise InvalidRequest(f"the client of OpenAI cannot be made: {error}", param="backend") from None
        self.is_chat = model_name not in COMPLETION_MODELS if is_chat_model is None else is_chat_model
        plain = (
            {}
            if self.is_chat
            else {"chat_only": False, "continues": True, "constraints": frozenset(), "images": False}
        )
        super().__init__("openai", model_name, chat_template or "default", retries, **plain)

    async def create(self, **fields: Any) -> Any:
        calls = self._client.chat.completions if self.is_chat else self._client.completions
        return await self.retries.sent(lambda: calls.create(**fields))

    async def close(self) -> None:
        await self._client.close()
