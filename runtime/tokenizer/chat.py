"""Conversations to text, with the template of the model's folder.

The template is data from a stranger: it runs in Jinja's sandbox with the few functions that templates expect.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from runtime.errors import InvalidRequest

_MARK = "\x00end of the last message\x00"


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


class ChatTemplate:
    """A Jinja chat template and the special tokens that it may name."""

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        self.source = source
        self._tokens = dict(tokens)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self._template = environment.from_string(source)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        ended: bool = False,
        **options: Any,
    ) -> str:
        """The prompt for the assistant's next message; or, to continue the last message, all up to its end; or the
        conversation as it stands, if it is `ended`.

        Raises InvalidRequest if the template refuses the conversation.
        """
        given = [dict(m) for m in messages]
        if continue_final_message:
            last = given[-1].get("content")
            if not isinstance(last, str):
                raise InvalidRequest("the last message has no text to continue", param="messages")
            given[-1]["content"] = last + _MARK
        try:
            text = self._template.render(
                messages=given,
                tools=tools,
                add_generation_prompt=not (continue_final_message or ended),
                **self._tokens,
                **options,
            )
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from None
        if continue_final_message:
            at = text.rfind(_MARK.rstrip())
            if at < 0:
                raise InvalidRequest(
                    "the model's chat template drops the last message, so it cannot be continued"
                )
            text = text[:at]
        return text
