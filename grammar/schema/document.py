"""One JSON Schema document: its places, references and draft, checked before anything is compiled.

Every subschema has a pointer; errors name it. Only references into the same document are followed.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from grammar.constraint_errors import SchemaError, TooLarge
from grammar.schema.resources import plain_references, subschemas

MAX_DEPTH = 200
MAX_NODES = 200_000
_MAX_BITS = 14_000  # of a whole number: what Python writes as text
_SURROGATE = re.compile("[\ud800-\udfff]")
_INDEX = re.compile("0|[1-9][0-9]{0,8}")

Schema = dict[str, Any] | bool


@dataclass(frozen=True, eq=False, slots=True)
class Place:
    """A subschema where it stands. Two places are the same if they are the same object of the document."""

    schema: Schema
    pointer: str

    def __post_init__(self) -> None:
        if not isinstance(self.schema, dict | bool):
            shown = json.dumps(self.schema)[:40]
            raise SchemaError(f"a schema is an object, true or false, not {shown}", self.pointer)

    @property
    def key(self) -> int:
        return id(self.schema) if isinstance(self.schema, dict) else int(self.schema)


class Document:
    def __init__(self, root: Schema) -> None:
        if not isinstance(root, dict | bool):
            raise SchemaError(f"a schema is an object, true or false, not {type(root).__name__}", "")
        _check_size(root)
        dialect = root.get("$schema", "") if isinstance(root, dict) else ""
        self.ref_alone = any(f"draft-0{n}" in str(dialect) for n in (3, 4, 6, 7))
        self._names: dict[str, Place] = {}
        _check_values(root)
        own = "id" if any(f"draft-0{n}" in str(dialect) for n in (3, 4)) else "$id"
        self.root = plain_references(root, self.ref_alone, own) if isinstance(root, dict) else root
        self._collect(self.root)

    @staticmethod
    def read(source: str) -> Document:
        """From JSON text."""
        try:
            root = json.loads(source)
        except RecursionError:
            raise TooLarge(f"the schema is nested deeper than {MAX_DEPTH} levels", where="#") from None
        except ValueError as error:  # not JSON, or a number of more digits than Python reads
            raise SchemaError(f"the schema is not JSON: {error}", "") from None
        return Document(root)

    def _collect(self, root: Schema) -> None:
        """Remember `$id`, `$anchor` and `id` of every subschema."""
        for subschema in subschemas(root):
            node = subschema.node
            place = Place(node, unquote(subschema.pointer))
            for keyword in ("$id", "id"):
                name = node.get(keyword)
                if isinstance(name, str):
                    self._names.setdefault(name.rstrip("#") or "#", place)
            for keyword in ("$anchor", "$dynamicAnchor"):
                if isinstance(node.get(keyword), str):
                    self._names.setdefault("#" + node[keyword], place)

    def resolve(self, reference: Any, pointer: str) -> Place:
        """The place that `$ref: reference` at `pointer` names."""
        where = f"{pointer}/$ref"
        if not isinstance(reference, str):
            raise SchemaError(f"a reference is a string, not {json.dumps(reference)[:40]}", where)
        if reference in ("#", ""):
            return Place(self.root, "#")
        if reference in self._names:
            return self._names[reference]
        base, _, fragment = reference.partition("#")
        start: Any = self.root
        at = "#"
        if base:
            found = self._names.get(base) or next(
                (p for n, p in self._names.items() if n.rsplit("/", 1)[-1] == base), None
            )
            if found is None:
                raise SchemaError(
                    f"{reference!r} is outside of this document; put what it names under $defs", where
                )
            start, at = found.schema, found.pointer
        if not fragment:
            return Place(start, at)
        if not fragment.startswith("/"):
            raise SchemaError(f"no subschema has the anchor {fragment!r}", where)
        for token in fragment[1:].split("/"):
            token = unquote(token).replace("~1", "/").replace("~0", "~")
            if isinstance(start, dict) and token in start:
                start = start[token]
            elif isinstance(start, list) and _INDEX.fullmatch(token) and int(token) < len(start):
                start = start[int(token)]
            else:
                raise SchemaError(f"{reference!r} names nothing in this document", where)
            at += "/" + escape(token)
        if not isinstance(start, dict | bool):
            raise SchemaError(f"{reference!r} names something that is not a schema", where)
        return Place(start, at)


def escape(token: str) -> str:
    """One token of a JSON pointer."""
    return token.replace("~", "~0").replace("/", "~1")


def _check_values(root: Any) -> None:
    """Refuse numbers and texts that are no JSON, though Python's reader takes them."""
    todo: list[tuple[Any, str]] = [(root, "#")]
    while todo:
        node, pointer = todo.pop()
        if isinstance(node, str) and _SURROGATE.search(node):
            raise SchemaError(f"{node[:40]!r} holds half of a surrogate pair, which no text does", pointer)
        if isinstance(node, float) and not math.isfinite(node):
            raise SchemaError(f"{node!r} is no number of JSON, or beyond what a float holds", pointer)
        if isinstance(node, int) and node.bit_length() > _MAX_BITS:
            raise SchemaError(f"the number has more than {_MAX_BITS} bits", pointer)
        if isinstance(node, dict):
            if any(_SURROGATE.search(str(k)) for k in node):
                raise SchemaError("a name holds half of a surrogate pair, which no text does", pointer)
            todo.extend((v, f"{pointer}/{escape(str(k))}") for k, v in node.items())
        elif isinstance(node, list):
            todo.extend((v, f"{pointer}/{i}") for i, v in enumerate(node))


def _check_size(root: Any) -> None:
    level, depth, nodes = [root], 0, 0
    while level:
        depth += 1
        nodes += len(level)
        if depth > MAX_DEPTH:
            raise TooLarge(f"the schema is nested deeper than {MAX_DEPTH} levels", where="#")
        if nodes > MAX_NODES:
            raise TooLarge(f"the schema has more than {MAX_NODES:,} parts", where="#")
        below: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                below.extend(v for v in node.values() if isinstance(v, dict | list))
            elif isinstance(node, list):
                below.extend(v for v in node if isinstance(v, dict | list))
        level = below
