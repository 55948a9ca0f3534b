"""The bytes that every token of a tokenizer stands for.

Constraints are about bytes: a token may be a part of a character, and two tokens may stand for the same
bytes. Special tokens (and ids that no text has) stand for none, so no constraint ever allows them; the
end tokens are allowed only where the text may end.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grammar.constraint_errors import VocabularyError
from grammar.row_pool import RowPool
from grammar.spelling import Spelling
from grammar.trie import TokenTrie
from grammar.walk_tree import WalkTree

if TYPE_CHECKING:
    from grammar.measure import Begun
    from grammar.pattern_rows import PatternRows
    from grammar.pushdown_states import PushdownStates
    from grammar.string_tables import StringTables

_NO_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """
    tokens    bytes of each token id; empty for special tokens and unused ids
    eos       ids that end the text
    """

    tokens: tuple[bytes, ...]
    eos: tuple[int, ...]

    @staticmethod
    def of(tokens: Sequence[bytes], eos: Iterable[int], special: Iterable[int] = ()) -> Vocabulary:
        """From the bytes of each id; `special` and `eos` ids stand for no bytes, whatever they are spelled."""
        ends = tuple(sorted(set(eos)))
        if any(not 0 <= i < len(tokens) for i in ends):
            raise VocabularyError(
                f"end tokens {list(ends)} are not all below the vocabulary's size {len(tokens)}"
            )
        silent = {*ends, *special}
        return Vocabulary(tuple(b"" if i in silent else bytes(t) for i, t in enumerate(tokens)), ends)

    @staticmethod
    def from_tokenizer_json(
        source: str | Path | dict[str, Any], eos: Iterable[int | str], size: int | None = None
    ) -> Vocabulary:
        """Read `tokenizer.json` (a path or its decoded contents).

        eos   ids, or contents of added tokens
        size  the model's vocabulary size, if it is padded beyond the tokenizer's
        """
        data = json.loads(Path(source).read_text("utf-8")) if not isinstance(source, dict) else source
        pieces = _pieces(data)
        decode = _decoder(data)
        added = {int(t["id"]): t for t in data.get("added_tokens") or []}
        by_content = {str(t["content"]): i for i, t in added.items()} | {
            p: i for i, p in pieces.items() if i not in added
        }
        ends = []
        for end in eos:
            if isinstance(end, str) and end not in by_content:
                raise VocabularyError(f"the end token {end!r} is not in the tokenizer")
            ends.append(by_content[end] if isinstance(end, str) else end)
        count = max([*pieces, *added, (size or 0) - 1]) + 1
        tokens = [b""] * count
        for token, piece in pieces.items():
            if token not in added:
                tokens[token] = decode(piece)
        for token, entry in added.items():
            tokens[token] = b"" if entry.get("special") else str(entry["content"]).encode()
        unknown = data["model"].get("unk_token")
        if isinstance(unknown, str) and unknown in by_content:
            tokens[by_content[unknown]] = b""
        if data["model"].get("type") == "Unigram" and data["model"].get("unk_id") is not None:
            tokens[int(data["model"]["unk_id"])] = b""
        return Vocabulary.of(tokens, ends)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def words(self) -> int:
        """uint32 words of a packed mask."""
        return (len(self.tokens) + 31) // 32

    @cached_property
    def digest(self) -> str:
        """Names the vocabulary: equal for equal bytes of every id and equal end tokens."""
        state = hashlib.blake2b(digest_size=16)
        state.update(np.array([len(t) for t in self.tokens], np.uint32).tobytes())
        state.update(b"".join(self.tokens))
        state.update(np.array(self.eos, np.int64).tobytes())
        return state.hexdigest()

    @cached_property
    def trie(self) -> TokenTrie:
        return TokenTrie.of(self.tokens)

    @cached_property
    def tree(self) -> WalkTree:
        return WalkTree.of(self.trie)

    @cached_property
    def spelling(self) -> Spelling:
        return Spelling(self.tree)

    @cached_property
    def _sorted(self) -> list[bytes]:
        return sorted(self.ids_of)

    def longer_than(self, prefix: bytes, limit: int) -> list[bytes]:
        """Up to `limit` tokens that begin with `prefix` and go on."""
        first = bisect_right(self._sorted, prefix)
        found = []
        for data in self._sorted[first : first + limit]:
            if not data.startswith(prefix):
                break
            found.append(data)
        return found

    @cached_property
    def ends(self) -> np.ndarray:
        """uint32 [words], read only: the end tokens."""
        row = np.zeros(self.words, np.uint32)
        for end in self.eos:
            row[end >> 5] |= np.uint32(1 << (end & 31))
        row.setflags(write=False)
        return row

    @cached_property
    def rows(self) -> RowPool:
        return RowPool(self.words)

    @cached_property
    def begun(self) -> dict[Begun, PushdownStates]:
        """The states that machines begin with, for each arena that theirs begin as copies of."""
        return {}

    @cached_property
    def strings(self) -> StringTables:
        from grammar.string_tables import StringTables

        return StringTables(self)

    @cached_property
    def patterns(self) -> PatternRows:
        from grammar.pattern_rows import PatternRows

        return PatternRows(self)

    @cached_property
    def ids_of(self) -> dict[bytes, tuple[int, ...]]:
        """The ids of each byte string that is a token."""
        found: dict[bytes, list[int]] = {}
        for token, data in enumerate(self.tokens):
            if data:
                found.setdefault(data, []).append(token)
        return {data: tuple(ids) for data, ids in found.items()}

    @cached_property
    def missing_bytes(self) -> list[int]:
        """The bytes of UTF-8 that are no token on their own."""
        return [b for b in range(256) if b not in _NO_UTF8 and bytes([b]) not in self.ids_of]


def _pieces(data: dict[str, Any]) -> dict[int, str]:
    model = data.get("model") or {}
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        return {int(i): piece for piece, i in vocabulary.items()}
    if isinstance(vocabulary, list):
        return {i: entry[0] for i, entry in enumerate(vocabulary)}
    raise VocabularyError("tokenizer.json has no model.vocab")


def _parts(entry: Any) -> list[dict[str, Any]]:
    """A pre-tokenizer or decoder and what a Sequence of them holds."""
    if not isinstance(entry, dict):
        return []
    inner = entry.get("pretokenizers") or entry.get("decoders") or []
    return [entry, *(part for one in inner for part in _parts(one))]


def _decoder(data: dict[str, Any]) -> Any:
    """How a piece of this tokenizer becomes bytes."""
    kinds = {p.get("type") for key in ("pre_tokenizer", "decoder") for p in _parts(data.get(key))}
    model = data["model"].get("type", "BPE")
    if model not in ("BPE", "Unigram"):
        raise VocabularyError(
            f"tokens of a {model} tokenizer do not stand for bytes by themselves; use a BPE or Unigram tokenizer"
        )
    if "ByteLevel" in kinds:
        table = byte_level_alphabet()

        def decode_bytes(piece: str) -> bytes:
            if all(c in table for c in piece):
                return bytes(table[c] for c in piece)
            return piece.encode()

        return decode_bytes
    fallback = bool(data["model"].get("byte_fallback")) or "ByteFallback" in kinds
    spaces = "Metaspace" in kinds or "\u2581" in json.dumps(
        [data.get("decoder"), data.get("normalizer"), data.get("pre_tokenizer")], ensure_ascii=False
    )

    def decode(piece: str) -> bytes:
        if fallback and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return (piece.replace("\u2581", " ") if spaces else piece).encode()

    return decode


def byte_level_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level BPE, to the byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in printable}
    others = [b for b in range(256) if b not in set(printable)]
    return table | {chr(256 + i): b for i, b in enumerate(others)}
