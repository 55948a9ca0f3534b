"""Choices and the types of `gen(dtype=...)` as constraints.

The texts of a type are those that SGLang programs rely on: an `int` may have a sign, an `int`, `float` may
be followed by blanks, a `str` is quoted and holds letters, digits, underscores and blanks.
"""

from __future__ import annotations

from collections.abc import Sequence

from grammar.constraint_errors import ConstraintError
from grammar.fsm import Fsm, of_texts

DTYPES: dict[str, str] = {
    "int": r"[-+]?[0-9]+[ \n]*",
    "float": r"[-+]?[0-9]*\.?[0-9]+[ \n]*",
    "str": r'"[\w\d\s]*"',
    "bool": r"(True|False)",
}


def dtype_regex(dtype: type | str) -> str:
    """The regular expression of a type or its name."""
    name = dtype if isinstance(dtype, str) else dtype.__name__
    if name not in DTYPES:
        raise ConstraintError(f"dtype is one of {', '.join(DTYPES)}, not {name!r}")
    return DTYPES[name]


def choices_fsm(choices: Sequence[str]) -> Fsm:
    """Exactly these texts."""
    if isinstance(choices, str) or not choices:
        raise ConstraintError(f"choices is a list of texts that is not empty, not {choices!r}")
    bad = next(
        (c for c in choices if not isinstance(c, str) or any("\ud800" <= x <= "\udfff" for x in c)), None
    )
    if bad is not None:
        raise ConstraintError(f"choices are texts, not {bad!r}")
    return of_texts([c.encode() for c in choices])
