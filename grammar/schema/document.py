"""One JSON Schema document: its places, references and draft, checked before anything is compiled.

Every subschema has a pointer; errors name it. Only references into the same document are followed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from grammar.constraint_errors import SchemaError, TooLarge

MAX_DEPTH = 200
MAX_NODES = 200_000

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
        self.root = root
        dialect = root.get("$schema", "") if isinstance(root, dict) else ""
        self.ref_alone = any(f"draft-0{n}" in str(dialect) for n in (3, 4, 6, 7))
        self._names: dict[str, Place] = {}
        self._collect(root)

    @staticmethod
    def read(source: str) -> Document:
        """From JSON text."""
        try:
            root = json.loads(source)
        except RecursionError:
            raise TooLarge(f"the schema is nested deeper than {MAX_DEPTH} levels", where="#") from None
        except json.JSONDecodeError as error:
            raise SchemaError(f"the schema is not JSON: {error}", "") from None
        return Document(root)

    def _collect(self, root: Schema) -> None:
        """Remember `$id`, `$anchor` and `id` of every subschema."""
        todo: list[tuple[Any, str]] = [(root, "#")]
        while todo:
            node, pointer = todo.pop()
            if isinstance(node, dict):
                place = Place(node, pointer)
                for keyword in ("$id", "id"):
                    name = node.get(keyword)
                    if isinstance(name, str):
                        self._names.setdefault(name.rstrip("#") or "#", place)
                for keyword in ("$anchor", "$dynamicAnchor"):
                    if isinstance(node.get(keyword), str):
                        self._names.setdefault("#" + node[keyword], place)
                todo.extend(
                    (v, f"{pointer}/{escape(k)}") for k, v in node.items() if isinstance(v, dict | list)
                )
            elif isinstance(node, list):
                todo.extend((v, f"{pointer}/{i}") for i, v in enumerate(node) if isinstance(v, dict | list))

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
            elif isinstance(start, list) and token.isdigit() and int(token) < len(start):
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
