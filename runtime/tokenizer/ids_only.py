"""In place of a tokenizer, for callers who bring token ids and take token ids."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.api import Segment, TokenSegment
from runtime.errors import Unsupported
from runtime.tokenizer.tokenizer import Tokenizer


class IdsOnly(Tokenizer):
    """Every text is refused; answers have ids and an empty text."""

    has_text = False

    def __init__(self) -> None:
        self.config = {}
        self.bos = self.eos = None
        self.special_ids = frozenset()
        self.ends = ()
        self.digest = "none"
        self.longest = 1
        self.chat_template = None
        self.token_bytes = []

    @staticmethod
    def _refusal(what: str) -> Unsupported:
        return Unsupported(f"{what} needs a tokenizer, and the engine was started with --skip-tokenizer-init")

    @property
    def size(self) -> int:  # type: ignore[override]
        """Raises Unsupported."""
        raise self._refusal("what ids stand for")

    def encode(self, text: str, *, first: bool = True) -> list[int]:
        """Raises Unsupported."""
        raise self._refusal("text")

    def encode_prompt(self, prompt: Sequence[Segment]) -> list[int]:
        """The ids of a prompt that is made of ids. Raises Unsupported for any other."""
        ids: list[int] = []
        for segment in prompt:
            if not isinstance(segment, TokenSegment):
                raise self._refusal("a prompt that is not token ids")
            ids += segment.ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Raises Unsupported."""
        raise self._refusal("the text of token ids")

    def shown(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    def token_text(self, id: int) -> str:
        return ""

    def token_id(self, token: str) -> int | None:
        return None
