"""Free text with constrained parts: what a model that calls tools may write.

The document is what users of the field send: `{"triggers": ["<function="], "structures": [{"begin": "<function=f>", "schema":
{...}, "end": "</function>"}]}`. Text is free until a trigger is complete; then one of the structures that begin with it follows:
the rest of its begin, a JSON value of its schema, its end. Then text is free again. So no text holds a trigger that does
not open a structure, and the answer may end wherever text is free.

With `"text": {...}`, a schema, no text is free: the whole answer is a JSON value of it, or structures alone, a line each.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from typing import Any

import msgspec

from grammar.constraint_errors import ConstraintError, SchemaError
from grammar.schema.compiler import SchemaOptions, SchemaSet
from grammar.schema.document import Document
from grammar.term_arena import EPSILON
from grammar.terms import Terms

MAX_STRUCTURES = 256
MAX_BYTES = 4096  # of all triggers together


class TagError(ConstraintError):
    """`where` is a JSON pointer into the document."""

    def __init__(self, problem: str, pointer: str) -> None:
        super().__init__(f"{pointer}: {problem}", where=pointer)


class Structure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`schema` None: any JSON value."""

    begin: str
    end: str
    schema: Any = True


class StructuralTag(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`text`: the schema of an answer without structures; unset: free text, around structures, too."""

    triggers: list[str]
    structures: list[Structure]
    type: str = "structural_tag"
    text: Any = msgspec.UNSET

    @staticmethod
    def read(source: str | dict[str, Any]) -> StructuralTag:
        """Raises TagError, which names the place."""
        try:
            value = msgspec.json.decode(source) if isinstance(source, str) else source
            found = msgspec.convert(value, StructuralTag)
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise TagError(str(error), "#") from None
        if found.type != "structural_tag":
            raise TagError(f"type is {found.type!r}, not structural_tag", "#/type")
        if not found.structures or len(found.structures) > MAX_STRUCTURES:
            raise TagError(f"there are {len(found.structures)}, not 1 to {MAX_STRUCTURES}", "#/structures")
        if sum(len(t.encode()) for t in found.triggers) > MAX_BYTES:
            raise TagError(f"they have more than {MAX_BYTES} bytes", "#/triggers")
        for k, trigger in enumerate(found.triggers):
            if not any(s.begin.startswith(trigger) for s in found.structures) or not trigger:
                raise TagError(f"no structure begins with the trigger {trigger!r}", f"#/triggers/{k}")
            inside = next((t for t in found.triggers if t != trigger and t in trigger), None)
            if inside is not None:
                raise TagError(f"the trigger {trigger!r} holds another one, {inside!r}", f"#/triggers/{k}")
        for k, structure in enumerate(found.structures):
            if not any(structure.begin.startswith(t) for t in found.triggers):
                raise TagError(
                    f"it begins with {structure.begin!r}, and that with no trigger", f"#/structures/{k}/begin"
                )
        return found


def tagged_text(tag: StructuralTag, terms: Terms, options: SchemaOptions) -> int:
    """The term of the texts. Raises SchemaError with a pointer into the document, TooLarge or Unsatisfiable."""
    schemas = SchemaSet(terms, options)

    def value(schema: Any, pointer: str) -> int:
        try:
            return schemas.add(Document(schema))
        except SchemaError as error:
            raise SchemaError(error.problem, pointer + error.pointer.removeprefix("#")) from None

    bodies = []
    for k, structure in enumerate(tag.structures):
        inside = value(structure.schema, f"#/structures/{k}/schema")
        bodies.append((structure.begin.encode(), terms.cat(inside, terms.literal(structure.end.encode()))))
    if tag.text is not msgspec.UNSET:
        return terms.alt([value(tag.text, "#/text"), _lines(bodies, terms)])
    automaton = _Search([t.encode() for t in tag.triggers])
    rules = [terms.rule() for _ in automaton.rows]
    free = [terms.reference(rule, True) for rule in rules]
    opened = [
        terms.alt(
            terms.sequence(terms.literal(begin[len(trigger) :]), body, free[0])
            for begin, body in bodies
            if begin.startswith(trigger)
        )
        for trigger in automaton.words
    ]
    for rule, row in zip(rules, automaton.rows, strict=True):
        by_goal: dict[int, int] = {}
        for byte, goal in enumerate(row):
            by_goal[goal] = by_goal.get(goal, 0) | 1 << byte
        options_here = [
            terms.cat(terms.byte_set(mask), free[goal] if goal >= 0 else opened[-1 - goal])
            for goal, mask in by_goal.items()
        ]
        terms.define_reference(rule, terms.alt([EPSILON, *options_here]))
    return free[0]


def _lines(bodies: list[tuple[bytes, int]], terms: Terms) -> int:
    """Structures, one at least, a line each."""
    rule = terms.rule()
    rest = terms.alt([EPSILON, terms.cat(terms.literal(b"\n"), terms.reference(rule, False))])
    each = (terms.sequence(terms.literal(begin), body, rest) for begin, body in bodies)
    terms.define_reference(rule, terms.alt(each))
    return terms.reference(rule, False)


@dataclass(frozen=True)
class _Search:
    """Finds the first of some words in a text (Aho and Corasick, 1975).

    rows  by state, for each byte: the next state, or -1 - k where word k is complete
    """

    words: list[bytes]
    rows: list[list[int]]

    def __init__(self, words: list[bytes]) -> None:
        words = list(dict.fromkeys(words))
        children: list[dict[int, int]] = [{}]
        complete: dict[int, int] = {}
        for k, word in enumerate(words):
            node = 0
            for byte in word:
                if byte not in children[node]:
                    children[node][byte] = len(children)
                    children.append({})
                node = children[node][byte]
            complete[node] = k
        rows = [[0] * 256 for _ in children]
        suffix = [0] * len(children)
        queue = deque([0])
        while queue:
            node = queue.popleft()
            for byte in range(256):
                child = children[node].get(byte)
                behind = rows[suffix[node]][byte] if node else 0
                if child is None:
                    rows[node][byte] = behind
                else:
                    suffix[child] = behind if behind >= 0 else 0
                    rows[node][byte] = child
                    queue.append(child)
            rows[node] = [-1 - complete[g] if g in complete else g for g in rows[node]]
        object.__setattr__(self, "words", words)
        object.__setattr__(self, "rows", rows)


def normalised(tag: StructuralTag) -> str:
    """The document as text, equal for equal documents."""
    return json.dumps(msgspec.to_builtins(tag), ensure_ascii=False)
