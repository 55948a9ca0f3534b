"""Text to ids and back. Knows a model folder's tokenizer.json, special tokens, end tokens and chat template."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import tokenizers

from runtime.api import ImageSegment, Segment, TextSegment, TokenSegment, merge_text
from runtime.errors import InvalidRequest, ModelError
from runtime.tokenizer.chat import ChatTemplate

LONG_TEXT = (
    20_000  # characters that take milliseconds; longer ones are tokenised so that other threads can run
)


def _load(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError as error:
        raise ModelError(f"{file} is not valid JSON: {error}") from None


def _text(token: Any) -> str | None:
    """A special token in tokenizer_config.json is a string or an object with its content."""
    return token.get("content") if isinstance(token, dict) else token


class Tokenizer:
    """The tokenizer of a model folder. `ends` are the ids that end an answer, from every file that names some."""

    has_text: ClassVar[bool] = True

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        file = self.folder / "tokenizer.json"
        if not file.exists():
            raise ModelError(
                f"{self.folder} has no tokenizer.json; convert the tokenizer with transformers first"
            )
        try:
            self._hf = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:
            raise ModelError(f"{file} cannot be read: {error}") from None
        self._hf.no_padding()
        self._hf.no_truncation()
        self.config = _load(self.folder / "tokenizer_config.json")
        self.bos = _text(self.config.get("bos_token"))
        self.eos = _text(self.config.get("eos_token"))
        added = self._hf.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.ends = self._find_ends()

    def _find_ends(self) -> tuple[int, ...]:
        found: list[int] = []
        for name in ("generation_config.json", "config.json"):
            value = _load(self.folder / name).get("eos_token_id")
            found += value if isinstance(value, list) else [] if value is None else [value]
        if self.eos is not None and (id := self._hf.token_to_id(self.eos)) is not None:
            found.append(id)
        return tuple(dict.fromkeys(found))

    @cached_property
    def digest(self) -> str:
        """Changes when the tokenizer or its template does."""
        data = (self.folder / "tokenizer.json").read_bytes() + str(self.config.get("chat_template")).encode()
        return hashlib.sha256(data).hexdigest()

    @cached_property
    def size(self) -> int:
        return self._hf.get_vocab_size(with_added_tokens=True)

    @cached_property
    def longest(self) -> int:
        """No token stands for more characters."""
        return max(map(len, self._hf.get_vocab(with_added_tokens=True)))

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The folder's own template, from chat_template.jinja or tokenizer_config.json."""
        file = self.folder / "chat_template.jinja"
        source = file.read_text(encoding="utf-8") if file.exists() else self.config.get("chat_template")
        if isinstance(source, list):
            source = next((t["template"] for t in source if t.get("name") == "default"), None)
        if not source:
            return None
        return ChatTemplate(source, {"bos_token": self.bos or "", "eos_token": self.eos or ""})

    def encode(self, text: str, *, first: bool = True) -> list[int]:
        """Ids of a text; at the beginning of a prompt (`first`) with the tokens that the model wants there.

        Special tokens written in the text become their ids. A begin token that the text already starts with is
        not added again.
        """
        special = first and not (self.bos and text.startswith(self.bos))
        try:
            if len(text) < LONG_TEXT:
                return self._hf.encode(text, add_special_tokens=special).ids
            return self._hf.encode_batch_fast([text], add_special_tokens=special)[0].ids  # lets go of the GIL
        except TypeError:  # the only strings it cannot take
            at = next((i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"), None)
            raise InvalidRequest(
                f"the text holds half of a surrogate pair at character {at}, which is not valid Unicode",
                param="prompt",
            ) from None

    def pieces(self, text: str) -> tuple[list[int], list[int | None]]:
        """Ids of a text in the middle of a prompt, and of which of its pieces (words, mostly) each is a part."""
        found = self._hf.encode(text, add_special_tokens=False)
        return found.ids, found.word_ids

    def encode_prompt(self, prompt: Sequence[Segment]) -> list[int]:
        """Ids of a prompt: each run of text as a whole, generated ids as they are."""
        ids: list[int] = []
        for i, segment in enumerate(merge_text(prompt)):
            if isinstance(segment, TextSegment):
                ids += self.encode(segment.text, first=i == 0)
            elif isinstance(segment, TokenSegment):
                ids += segment.ids
            elif isinstance(segment, ImageSegment):
                raise InvalidRequest("the prompt holds an image, but this model takes only text")
        if not ids:
            ids = self.encode("", first=True)
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self._hf.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def shown(self, ids: Sequence[int]) -> str:
        """For people to read, with special tokens and blanks at the ends."""
        text = self.decode(ids, skip_special_tokens=False)
        return text.replace("\n", "↵\n") if text.strip() else json.dumps(text)

    def token_text(self, id: int) -> str:
        """How one token reads alone."""
        return self._hf.decode([id], skip_special_tokens=False)

    def token_id(self, token: str) -> int | None:
        return self._hf.token_to_id(token)

    @cached_property
    def token_bytes(self) -> list[bytes | None] | None:
        """Bytes of every id for a byte-level tokenizer (None for special ids); None for other kinds."""
        decoder = json.loads(self._hf.to_str())["decoder"] or {}
        if decoder.get("type") != "ByteLevel":
            return None
        table = _byte_level_table()
        out: list[bytes | None] = [None] * self.size
        for token, id in self._hf.get_vocab(with_added_tokens=False).items():
            if id not in self.special_ids and id < self.size:
                try:
                    out[id] = bytes(table[c] for c in token)
                except KeyError:
                    out[id] = token.encode()
        for id, added in self._hf.get_added_tokens_decoder().items():
            if not added.special and id < self.size:
                out[id] = added.content.encode()
        return out


def _byte_level_table() -> dict[str, int]:
    """Which byte each character of a byte-level vocabulary stands for (the GPT-2 convention)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in plain}
    others = (b for b in range(256) if b not in set(plain))
    return table | {chr(256 + i): b for i, b in enumerate(others)}
