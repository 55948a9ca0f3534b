"""A tokenizer as checks use it: it counts, and compiles constraints for its vocabulary. Read once, when it is first asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grammar.constraint_errors import ConstraintError
from sglc.plan.sizes import Sizes

if TYPE_CHECKING:
    from grammar import CompiledConstraint, Vocabulary


@dataclass(frozen=True)
class Tokens:
    """`given`: folder of the tokenizer; None: that of the model which comes with sglc."""

    given: Path | None = None
    _compiled: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def folder(self) -> Path:
        from runtime.config import embedded_model_path

        return self.given or Path(embedded_model_path())

    @cached_property
    def vocabulary(self) -> Vocabulary:
        from grammar import Vocabulary

        return Vocabulary.from_tokenizer_json(self.folder / "tokenizer.json", eos=())

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def count(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self.encode(text))

    @cached_property
    def bound(self) -> Sizes:
        return Sizes.bound(self.count)

    @cached_property
    def nominal(self) -> Sizes:
        return Sizes.nominal(self.count)

    def compiled(self, kind: Any, source: str) -> CompiledConstraint:
        """The constraint for the vocabulary. Raises ConstraintError, the same each time."""
        from grammar import compile_constraint

        key = (kind, source)
        if key not in self._compiled:
            try:
                self._compiled[key] = compile_constraint(kind, source, self.vocabulary)
            except ConstraintError as error:
                self._compiled[key] = error
        found = self._compiled[key]
        if isinstance(found, ConstraintError):
            raise found
        return found  # type: ignore[no-any-return]
