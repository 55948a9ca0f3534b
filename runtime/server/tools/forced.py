"""Calls that a request demands, whatever the model's family: the answer is constrained to a JSON document of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from runtime.server.tools.calls import json_calls
from runtime.server.tools.parser import Bracketed, Region, ToolCall, ToolFormat

MAX_CALLS = 16  # in one answer


class Forced(ToolFormat):
    """`[{"name": "f", "arguments": {...}}, ...]`; each call is known when its brace closes."""

    name = "forced"
    marks = ()
    first = ("{",)
    noise = ("[", "]")
    separators = ","

    def region(self) -> Region:
        return Bracketed()

    def read(self, text: str, tools: Mapping[str, Any]) -> list[ToolCall] | None:
        return json_calls(text, tools)


def schema_of_calls(tools: Mapping[str, Any], *, several: bool) -> str:
    """JSON schema of the document: one call, or up to `MAX_CALLS`."""
    items, definitions = [], {}
    for i, (name, schema) in enumerate(tools.items()):
        definitions[f"tool{i}"] = _moved(schema, f"#/$defs/tool{i}")
        properties = {"name": {"const": name}, "arguments": {"$ref": f"#/$defs/tool{i}"}}
        call = {"type": "object", "properties": properties, "required": list(properties)}
        items.append({**call, "additionalProperties": False})
    document = {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_CALLS if several else 1,
        "items": {"anyOf": items} if len(items) > 1 else items[0],
        "$defs": definitions,
    }
    return json.dumps(document, ensure_ascii=False)


def _moved(schema: Any, home: str) -> Any:
    """A schema whose references into itself still hold when it stands at `home`."""
    if isinstance(schema, list):
        return [_moved(s, home) for s in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        k: home + v[1:] if k == "$ref" and isinstance(v, str) and v.startswith("#") else _moved(v, home)
        for k, v in schema.items()
    }
