"""Which of an answer's tokens its text consists of: those whose bytes hold it, without reasoning, calls and marks around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runtime.api import Delta, TokenLogprob
from runtime.server.parts import Part, TextPart
from runtime.server.token_text import TokenTexts


def entries(delta: Delta, texts: TokenTexts) -> list[dict[str, Any]]:
    """The tokens of a delta with their log-probabilities, as chats show them."""

    def entry(t: TokenLogprob) -> dict[str, Any]:
        raw = texts.raw(t)
        return {"token": t.text or "", "logprob": t.logprob, "bytes": None if raw is None else list(raw)}

    tops = delta.output_top_logprobs or [() for _ in delta.output_logprobs]
    pairs = zip(delta.output_logprobs, tops, strict=True)
    return [{**entry(t), "top_logprobs": [entry(o) for o in top]} for t, top in pairs]


def without_bytes(tokens: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """As events of /v1/responses show them."""
    names = ("token", "logprob")
    return [
        {**{k: t[k] for k in names}, "top_logprobs": [{k: o[k] for k in names} for o in t["top_logprobs"]]}
        for t in tokens
    ]


class TextLogprobs:
    """Takes an answer's deltas with their parts. Tokens wait until a part shows what they were for."""

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts
        self._waiting: list[tuple[bytes, dict[str, Any]]] = []

    def feed(self, delta: Delta, parts: Sequence[Part]) -> list[dict[str, Any]]:
        """The tokens of this delta's text."""
        raw = (self._texts.raw(t) or (t.text or "").encode() for t in delta.output_logprobs)
        self._waiting += zip(raw, entries(delta, self._texts), strict=True)
        text = "".join(p.text for p in parts if isinstance(p, TextPart)).encode()
        if not text:
            if parts:
                self._waiting.clear()
            return []
        first, last = len(self._waiting), len(self._waiting)
        while first and text not in self._joined(first, last):
            first -= 1
        while last > first + 1 and text in self._joined(first, last - 1):
            last -= 1
        found, self._waiting = self._waiting[first:last], self._waiting[last:]
        return [shown for _, shown in found]

    def _joined(self, first: int, last: int) -> bytes:
        return b"".join(raw for raw, _ in self._waiting[first:last])
