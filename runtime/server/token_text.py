"""How OpenAI's APIs show single tokens, whose bytes may end inside of a character."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from runtime.api import TokenLogprob

REPLACEMENT = "\ufffd"


class TokenTexts:
    """Tokens of one vocabulary; `table` has the bytes of each id, where they are known."""

    def __init__(self, table: Sequence[bytes | None] | None) -> None:
        self._table = table

    def raw(self, token: TokenLogprob) -> bytes | None:
        """The bytes of a token; None if they are not known. Special tokens have those of their name."""
        if self._table is not None and token.id < len(self._table):
            if (found := self._table[token.id]) is not None:
                return found
        text = token.text or ""
        return None if REPLACEMENT in text else text.encode()

    def special(self, token: TokenLogprob) -> bool:
        return self._table is not None and token.id < len(self._table) and self._table[token.id] is None

    def shown(self, token: TokenLogprob) -> str:
        """The text of a token, or of one that is no whole text its bytes, as /v1/completions writes them."""
        text = token.text or ""
        raw = self.raw(token)
        if REPLACEMENT not in text or raw is None:
            return text
        return "bytes:" + "".join(f"\\x{b:02x}" for b in raw)


class Offsets:
    """Where each token begins in a text that consists of them, in characters."""

    def __init__(self, texts: TokenTexts, at: int, *, prompt: str = "", specials: bool = False) -> None:
        """`prompt` is the part of the text that was given, `specials` whether special tokens show in the rest."""
        self._texts, self._prompt, self._specials = texts, prompt, specials
        self._at = at
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: TokenLogprob) -> int:
        begin, text = self._at, token.text or ""
        if self._texts.special(token):
            there = self._specials
            if begin < len(self._prompt):  # one that the tokenizer put in front is not in the text
                there = self._prompt.startswith(text, begin)
            self._at += len(text) if there else 0
        else:
            raw = self._texts.raw(token)
            self._at += len(text) if raw is None else len(self._decoder.decode(raw))
        return begin
