"""The same language in another kind of constraint, for backends that enforce that kind only.

A regex with few texts is a list of choices, or a JSON schema with an enum if its texts are JSON already. The languages
are equal, so the answer is; where no kind says exactly the same there is none, and the constraint is refused.
"""

from __future__ import annotations

import json
from functools import lru_cache

from runtime.api import Constraint
from runtime.backends.base import Capabilities

MOST = 250  # texts; providers accept no more, and a list that long is hardly what was meant


def restated(able: Capabilities, constraint: Constraint) -> Constraint | None:
    """`constraint` as the backend enforces it, itself if it does; None if it cannot be said exactly."""
    if constraint.kind in able.constraints:
        return constraint
    return _restated(constraint, able.constraints)


@lru_cache(maxsize=1024)
def _restated(constraint: Constraint, kinds: frozenset[str]) -> Constraint | None:
    if constraint.kind != "regex" or not kinds & {"choices", "json_schema"}:
        return None
    from grammar import ConstraintError, compile_constraint

    try:
        texts = compile_constraint("regex", constraint.source).texts(MOST)
    except ConstraintError:
        return None
    if not texts:
        return None
    if "choices" in kinds:
        return Constraint("choices", json.dumps(texts, ensure_ascii=False))
    values = [_scalar(text) for text in texts]
    if None in values:
        return None
    return Constraint("json_schema", json.dumps({"enum": [json.loads(t) for t in texts]}, ensure_ascii=False))


def _scalar(text: str) -> str | None:
    """The text, if it is what JSON writes for a string, a number or a boolean."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    plain = isinstance(value, (str, int)) and json.dumps(value, ensure_ascii=False) == text
    return text if plain else None
