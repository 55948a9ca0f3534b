"""References of a document that do not mean what they say by themselves, written as plain ones.

A subschema with its own `$id` is a resource: references inside of it begin there, and its anchors are its own. A dynamic
reference means the anchor of the outermost resource, so in a document of one resource it is a plain reference. What is left
as it was is refused where it is met.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urljoin

_MAPS = frozenset(
    ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"]
)
_SCHEMAS = frozenset(
    "allOf anyOf oneOf not if then else items prefixItems additionalItems contains contentSchema "
    "additionalProperties propertyNames unevaluatedItems unevaluatedProperties".split()
)
_DYNAMIC = ("$dynamicRef", "$recursiveRef")


@dataclass(frozen=True, slots=True)
class Subschema:
    """
    pointer  as a URI fragment
    above    the pointer of the subschema that it stands in
    """

    node: dict[str, Any]
    pointer: str
    above: str


def subschemas(root: Any) -> Iterator[Subschema]:
    """Every object that stands where keywords of JSON Schema have a schema, the outer ones first."""
    todo: list[tuple[Any, str, str, bool]] = [(root, "#", "", False)]
    while todo:
        node, pointer, above, names = todo.pop()
        if isinstance(node, dict) and names:
            todo.extend((v, f"{pointer}/{_token(k)}", above, False) for k, v in node.items())
        elif isinstance(node, dict):
            yield Subschema(node, pointer, above)
            todo.extend(
                (v, f"{pointer}/{_token(k)}", pointer, k in _MAPS)
                for k, v in node.items()
                if k in _MAPS or k in _SCHEMAS
            )
        elif isinstance(node, list):
            todo.extend((v, f"{pointer}/{i}", above, False) for i, v in enumerate(node))


def plain_references(root: dict[str, Any], ref_alone: bool, own: str) -> dict[str, Any]:
    """`root`, or a copy in which references are pointers from the root, where that is not what they are.

    ref_alone  what stands beside a `$ref` does not count
    own        the keyword that names a resource: `$id`, or `id`
    """
    places = list(subschemas(root))
    if any(p.above and _own_uri(p.node, ref_alone, own) is not None for p in places):
        return _copied(root, _Resources(places, ref_alone, own).plain)  # type: ignore[no-any-return]
    if ref_alone or not any(k in p.node for p in places for k in _DYNAMIC):
        return root
    anchors = {f"#{p.node.get(k)}" for p in places for k in ("$anchor", "$dynamicAnchor")} | {"#"}
    return _copied(root, lambda node, _: _without_dynamic(node, anchors))  # type: ignore[no-any-return]


def _own_uri(node: dict[str, Any], ref_alone: bool, own: str) -> str | None:
    """The URI that makes a subschema a resource."""
    uri = node.get(own)
    if not isinstance(uri, str) or uri.startswith("#") or (ref_alone and "$ref" in node):
        return None
    return uri.partition("#")[0]


class _Resources:
    """
    bases    by pointer of a subschema: the URI of its resource
    found    by URI, and by URI # anchor: the pointer
    """

    def __init__(self, places: list[Subschema], ref_alone: bool, own: str) -> None:
        self.bases: dict[str, str] = {"": ""}
        self.found: dict[str, str] = {"": "#"}
        for place in places:
            node, base = place.node, self.bases[place.above]
            uri = _own_uri(node, ref_alone, own)
            if uri is not None:
                base = _joined(base, uri)
                self.found.setdefault(base, place.pointer)
            self.bases[place.pointer] = base
            names = [node.get(k) for k in ("$anchor", "$dynamicAnchor")]
            if isinstance(node.get(own), str) and node[own].startswith("#"):
                names.append(node[own][1:])
            for name in names:
                if isinstance(name, str):
                    self.found.setdefault(f"{base}#{name}", place.pointer)

    def plain(self, node: dict[str, Any], pointer: str) -> dict[str, Any]:
        reference = node.get("$ref")
        if not isinstance(reference, str):
            return node
        whole = _joined(self.bases[pointer], reference)
        uri, _, fragment = whole.partition("#")
        if fragment.startswith("/") and uri in self.found:
            return {**node, "$ref": self.found[uri] + fragment}
        return {**node, "$ref": self.found.get(whole if fragment else uri, whole)}


def _joined(base: str, reference: str) -> str:
    if reference.startswith("#") or not reference:
        return base + reference
    try:
        return urljoin(base, reference)
    except ValueError:  # no URI, so it names nothing
        return reference


def _without_dynamic(node: dict[str, Any], anchors: set[str]) -> dict[str, Any]:
    found = dict(node)
    for keyword in _DYNAMIC:
        if isinstance(found.get(keyword), str) and found[keyword] in anchors:
            reference = found.pop(keyword)
            if "$ref" not in found:
                found = {"$ref": reference, **found}
            elif isinstance(found.get("allOf", []), list):
                found["allOf"] = [*found.get("allOf", []), {"$ref": reference}]
    return found


def _copied(root: Any, change: Callable[[dict[str, Any], str], dict[str, Any]]) -> Any:
    """A copy with `change(schema, pointer)` in place of each subschema."""
    places = {p.pointer for p in subschemas(root)}

    def copy(node: Any, pointer: str) -> Any:
        if isinstance(node, list):
            return [copy(v, f"{pointer}/{i}") for i, v in enumerate(node)]
        if not isinstance(node, dict):
            return node
        found = {k: copy(v, f"{pointer}/{_token(k)}") for k, v in node.items()}
        return change(found, pointer) if pointer in places else found

    return copy(root, "#")


def _token(key: str) -> str:
    """One token of a pointer in a URI."""
    return quote(key.replace("~", "~0").replace("/", "~1"))
