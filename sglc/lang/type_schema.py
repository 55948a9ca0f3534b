"""The JSON schema of a Python type: every text that it allows is one of the type's values.

Pydantic's models and what holds them say their own schema; all other types are read by msgspec: int, float, str, bool, None,
Literal, Enum, Optional and unions, list, tuple, set, dict, dataclasses, TypedDict, NamedTuple and msgspec's Struct. Objects with
named properties have no others: what a type does not name, its value would not keep.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache, lru_cache
from typing import Any, get_type_hints, is_typeddict

import msgspec

_DURATION = (  # what both libraries read; weeks, months and years they do not
    "^P(?:[0-9]{1,6}D|(?:[0-9]{1,6}D)?T(?:[0-9]{1,5}H(?:[0-9]{1,5}M)?(?:[0-9]{1,5}S)?"
    "|[0-9]{1,5}M(?:[0-9]{1,5}S)?|[0-9]{1,5}S))$"
)
_DECIMAL = r"^-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?$"
_BASE64 = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$"
_HOST = r"(?:[a-z0-9]+(?:-[a-z0-9]+)*\.)*[a-z]{2,16}"
_BEHIND = r"(?::[0-9]{1,4})?(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-F]{2})*)?"
_WHOLE = "^(?:0|-?[1-9][0-9]{0,17})$"


def schema_of(type: Any) -> str:
    """The JSON schema of a type, as JSON text. Raises TypeError for a type whose values JSON cannot say."""
    try:
        return _schema(type)
    except TypeError as error:
        if "unhashable" in str(error):
            return _schema.__wrapped__(type)
        raise


@lru_cache(maxsize=512)
def _schema(type: Any) -> str:
    try:
        if is_pydantic(type):
            from pydantic import TypeAdapter

            found = TypeAdapter(type).json_schema(schema_generator=_pydantic_schemas())
        else:
            found = msgspec.json.schema(type)
            _check(msgspec.inspect.type_info(type), set())
    except Exception as error:
        problem = str(error)
        if "schema_hook" in problem:
            problem = "msgspec knows no JSON schema for it; use a pydantic model, or json_schema="
        raise TypeError(f"gen(type={name_of(type)}): {problem}") from None
    return json.dumps(_closed(found), ensure_ascii=False)


def name_of(type: Any) -> str:
    return getattr(type, "__name__", None) or repr(type)


def is_pydantic(type: Any, seen: frozenset[Any] = frozenset()) -> bool:
    """Whether pydantic made the type, or one inside of it, or a bound that stands beside one."""
    if any(hasattr(type, f"__{name}__") for name in _PYDANTIC):
        return True
    bounds = getattr(type, "__metadata__", ())
    if any(b.__class__.__module__.partition(".")[0] in ("pydantic", "annotated_types") for b in bounds):
        return True
    inner = [*getattr(type, "__args__", ()), getattr(type, "__value__", None)]
    if is_dataclass(type) or is_typeddict(type) or hasattr(type, "_fields"):
        if type in seen:
            return False
        seen |= {type}
        try:
            inner += get_type_hints(type, include_extras=True).values()
        except NameError:
            pass  # msgspec says which name it is
    return any(t is not None and is_pydantic(t, seen) for t in inner)


_PYDANTIC = ("pydantic_core_schema", "pydantic_validator", "get_pydantic_core_schema")


@cache
def _pydantic_schemas() -> Any:
    """Pydantic's generator of schemas, without texts that its own validation refuses."""
    from pydantic.json_schema import GenerateJsonSchema

    class Schemas(GenerateJsonSchema):
        def decimal_schema(self, schema: Any) -> Any:
            """A number; pydantic's takes any text beside it."""
            found = super().decimal_schema(schema)
            return found["anyOf"][0] if "anyOf" in found else found

        def _common_set_schema(self, schema: Any) -> Any:
            return _set(super()._common_set_schema(schema))

        def _common_dict_schema(self, schema: Any) -> Any:
            found = super()._common_dict_schema(schema)
            keys = self.generate_inner(schema["keys_schema"]) if "keys_schema" in schema else {}
            if keys.get("type", "string") == "integer":
                return {**found, "propertyNames": {"pattern": _WHOLE}}
            if "patternProperties" in found:
                return {**found, "additionalProperties": False}
            if keys.get("type", "string") != "string":
                raise TypeError(f"names of a JSON object are texts, not {keys}; use dict[str, ...]")
            return found

        def url_schema(self, schema: Any) -> Any:
            """With a host, which a URI need not have."""
            schemes = "|".join(schema.get("allowed_schemes") or ["[a-z][a-z0-9]{1,9}"])
            return {**super().url_schema(schema), "pattern": f"^(?:{schemes})://{_HOST}{_BEHIND}$"}

    return Schemas


def _set(schema: dict[str, Any]) -> dict[str, Any]:
    """A set's items may be written twice, unless their number counts."""
    if schema.get("minItems", 0) <= 1:
        schema.pop("uniqueItems", None)
    return schema


def _check(info: Any, seen: set[int]) -> None:
    """Raise TypeError where msgspec's schema says less than it reads."""
    if id(info) in seen:
        return
    seen.add(id(info))
    inspect = msgspec.inspect
    if isinstance(info, inspect.DictType) and not isinstance(
        info.key_type, inspect.StrType | inspect.AnyType
    ):
        kind = info.key_type.__class__.__name__.removesuffix("Type").lower()
        raise TypeError(f"names of a JSON object are texts, not of kind {kind}; use dict[str, ...]")
    if isinstance(info, inspect.DateTimeType | inspect.TimeType) and info.tz is not True:
        raise TypeError(
            "a time without a zone has no format; use Annotated[datetime, msgspec.Meta(tz=True)], or a pydantic model"
        )
    for inner in _inside(info):
        _check(inner, seen)


def _inside(info: Any) -> Iterator[Any]:
    if isinstance(info, tuple | list):
        yield from info
    elif isinstance(info, msgspec.inspect.Type | msgspec.inspect.Field):
        yield from (getattr(info, name) for name in info.__struct_fields__)


def _closed(schema: Any) -> Any:
    """Without titles, and with objects that have the named properties alone."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs", "definitions", "patternProperties") and isinstance(value, dict):
            found[key] = {name: _closed(part) for name, part in value.items()}
        elif key in ("const", "enum", "default", "examples", "discriminator"):
            found[key] = value
        elif key != "title":
            found[key] = _closed(value)
    found.pop("discriminator", None)  # a hint for readers; the alternatives say the same
    found.pop("default", None)
    if "properties" in found and "additionalProperties" not in found:
        found["additionalProperties"] = False
    pattern = {"duration": _DURATION, "decimal": _DECIMAL}.get(found.get("format", ""))
    if pattern is not None:
        del found["format"]
    elif found.get("contentEncoding") == "base64":
        pattern = _BASE64
    return _set(found if pattern is None else {**found, "pattern": pattern})
