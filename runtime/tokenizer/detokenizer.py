"""Ids to text while they come: never half a character, never part of a stop string.

What was emitted stays a prefix of the final text, so the pieces of a stream add up to what a caller without
streaming gets. Places where the text of a whole number of ids ends (`marks`) are remembered: ids that
end within the final text are intact and can be sent back as they are.
"""

from __future__ import annotations

import codecs
from collections import deque
from dataclasses import dataclass

from runtime.api import Finish, SamplingParams
from runtime.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Piece:
    """New text and new intact ids; `ids_text` is the length of the text that all intact ids so far stand for."""

    text: str
    ids: tuple[int, ...]
    ids_text: int
    finish: Finish | None = None


class TextStream:
    """The text of one answer."""

    def __init__(self, tokenizer: Tokenizer, sampling: SamplingParams) -> None:
        self._tokenizer = tokenizer
        self._bytes = tokenizer.token_bytes
        self._sampling = sampling
        self._skip = sampling.skip_special_tokens
        self._longest = max((len(s) for s in sampling.stop), default=0)
        self._ids: list[int] = []
        self._text = ""
        self._marks: deque[tuple[int, int]] = deque()  # (ids, length of their text), not emitted yet
        self._emitted = 0
        self._emitted_ids = 0
        self._ids_text = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._window = self._read = 0
        self.finish: Finish | None = None
        self.tokens = 0

    @property
    def text(self) -> str:
        """All text that is decided."""
        return self._text[: self._emitted]

    def push(self, ids: list[int], finish: Finish | None = None) -> Piece:
        """Take new ids, and the reason if they are the last; what can be said now.

        The last id is not part of the text if it ended the answer. Length is decided before stop strings: one that
        the very last allowed token completes is not cut off.
        """
        assert self.finish is None, "the stream has ended"
        for i, id in enumerate(ids):
            last = finish is not None and i == len(ids) - 1
            self.tokens += 1
            if last and finish is not None and finish.type == "stop" and not self._sampling.no_stop_trim:
                break
            self._append(id)
            by_length = last and finish is not None and finish.type == "length"
            if self._longest and not by_length and (cut := self._find_stop()) is not None:
                return self._close(*cut)
        if finish is not None:
            self._text += self._flush()
            self._mark()
            return self._close(len(self._text), finish)
        return self._emit(len(self._text) - self._held_back())

    def _append(self, id: int) -> None:
        self._ids.append(id)
        if self._bytes is None:
            self._text += self._decode_window()
        else:
            data = self._bytes[id] if id < len(self._bytes) else b""
            if data is None:  # special; one that is hidden may even stand within a character
                if not self._skip:
                    self._text += self._utf8.decode(b"", True)
                    self._utf8.reset()
                    self._text += self._tokenizer.token_text(id)
            else:
                self._text += self._utf8.decode(data)
        self._mark()

    def _decode_window(self) -> str:
        """Decode the newest ids together with those before them, whose text their own may depend on."""
        before = self._tokenizer.decode(self._ids[self._window : self._read], skip_special_tokens=self._skip)
        both = self._tokenizer.decode(self._ids[self._window :], skip_special_tokens=self._skip)
        if both.endswith("�") or len(both) < len(before):
            return ""
        if len(both) > len(before):  # a window that is hidden tokens alone would lose the next word's blank
            self._window = self._read
        self._read = len(self._ids)
        return both[len(before) :]

    def _pending_bytes(self) -> bool:
        if self._bytes is None:
            return self._read < len(self._ids)
        return bool(self._utf8.getstate()[0])

    def _mark(self) -> None:
        if not self._pending_bytes():
            self._marks.append((len(self._ids), len(self._text)))

    def _flush(self) -> str:
        """What is left of an incomplete character when nothing more comes."""
        if self._bytes is not None:
            rest = self._utf8.decode(b"", True)
            self._utf8.reset()
            return rest
        before = self._tokenizer.decode(self._ids[self._window : self._read], skip_special_tokens=self._skip)
        both = self._tokenizer.decode(self._ids[self._window :], skip_special_tokens=self._skip)
        self._window = self._read = len(self._ids)
        return both[len(before) :]

    def _find_stop(self) -> tuple[int, Finish] | None:
        """Where the text is to end, if a stop string is complete."""
        found: tuple[int, str] | None = None
        for stop in self._sampling.stop:
            at = self._text.find(stop, max(0, self._emitted - len(stop) + 1))
            if at >= 0 and (found is None or at < found[0]):
                found = at, stop
        if found is None:
            return None
        at, stop = found
        return at + (len(stop) if self._sampling.no_stop_trim else 0), Finish(type="stop", matched=stop)

    def _held_back(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        held = 0
        if self._longest:
            tail = self._text[max(self._emitted, len(self._text) - self._longest + 1) :]
            for stop in self._sampling.stop:
                for size in range(min(len(tail), len(stop) - 1), held, -1):
                    if stop.startswith(tail[-size:]):
                        held = size
                        break
        return held

    def _emit(self, end: int) -> Piece:
        new = self._text[self._emitted : end]
        first = self._emitted_ids
        while self._marks and self._marks[0][1] <= end:
            self._emitted_ids, self._ids_text = self._marks.popleft()
        self._emitted = max(end, self._emitted)
        return Piece(new, tuple(self._ids[first : self._emitted_ids]), self._ids_text, self.finish)

    def _close(self, end: int, finish: Finish) -> Piece:
        self.finish = finish
        return self._emit(max(end, self._emitted))
