"""What is raised when a constraint cannot be enforced exactly.

    ConstraintError          the constraint is refused; `where` says at which place of it
      RegexError             syntax error, or a construct that is not regular (a caret shows the place)
      SchemaError            a keyword that cannot be enforced; `pointer` is its JSON pointer
      TooLarge               a limit on states, size, depth or time was reached
      Unsatisfiable          no text matches, or the vocabulary cannot spell any that does
      VocabularyError        a tokenizer file whose tokens' bytes cannot be known

Nothing is ever enforced in part: what is not raised here is enforced exactly.
"""

from __future__ import annotations


class ConstraintError(ValueError):
    """`message` is one line; `where` names the place (a position, a pointer), empty for the whole."""

    def __init__(self, message: str, *, where: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where


class RegexError(ConstraintError):
    """`position` counts characters of `pattern`."""

    def __init__(self, problem: str, pattern: str, position: int) -> None:
        self.problem = problem
        self.pattern = pattern
        self.position = position
        super().__init__(
            f"{problem} at position {position}\n{caret(pattern, position)}", where=f"position {position}"
        )


class SchemaError(ConstraintError):
    def __init__(self, problem: str, pointer: str) -> None:
        self.problem = problem
        self.pointer = pointer or "#"
        super().__init__(f"{self.pointer}: {problem}", where=self.pointer)


class TooLarge(ConstraintError):
    pass


class Unsatisfiable(ConstraintError):
    pass


class VocabularyError(ConstraintError):
    pass


def caret(text: str, position: int, width: int = 72) -> str:
    """Two lines: the part of `text` around `position`, and a caret under it."""
    start = max(0, position - width // 2)
    shown = text[start : start + width]
    lead = "..." if start else ""
    line = "".join(c if c.isprintable() else "?" for c in shown)
    return f"  {lead}{line}\n  {' ' * (len(lead) + position - start)}^"
