"""Every keyword of JSON Schema (drafts 4 to 7, 2019-09, 2020-12) and what becomes of it.

enforced    type enum const  minimum maximum exclusiveMinimum exclusiveMaximum multipleOf
            minLength maxLength pattern format  items prefixItems additionalItems minItems maxItems
            uniqueItems contains  properties required additionalProperties patternProperties
            propertyNames minProperties maxProperties dependencies dependentRequired
            dependentSchemas  allOf anyOf oneOf not if then else  $ref
            (where one cannot be enforced in the combination at hand, that place is refused)
annotations title description default examples and the like: they never decide validity
refused     $dynamicRef $recursiveRef where subschemas have an $id (else they are as $ref), unevaluatedItems,
            unevaluatedProperties beside what it looks into, minContains and maxContains other than 1 and
            none, $vocabulary, what draft 3 alone has
others      are not keywords of JSON Schema; the specification says that they do not count

Keywords of all these drafts are read whatever `$schema` names; it only decides whether what stands beside a
`$ref` counts.
"""

from __future__ import annotations

ANNOTATIONS = frozenset(
    [
        "title",
        "description",
        "default",
        "examples",
        "example",
        "$comment",
        "readOnly",
        "writeOnly",
        "deprecated",
        "$schema",
        "$id",
        "id",
        "$anchor",
        "definitions",
        "$defs",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
        "discriminator",
    ]
)

REFUSED = {
    "$dynamicRef": "it depends on where evaluation came from, and is followed only to an anchor of a document without other $id; use $ref",
    "$recursiveRef": "it depends on where evaluation came from, and is followed only in a document without other $id; use $ref",
    "unevaluatedItems": "it depends on which other keywords looked at an item; use items: false after prefixItems",
    "$vocabulary": "other vocabularies are not known",
    "divisibleBy": "it is of draft 3; use multipleOf",
    "disallow": "it is of draft 3; use not",
    "extends": "it is of draft 3; use allOf",
}

COMBINING = (
    "$ref",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "dependentSchemas",
    "dependencies",
    "dependentRequired",
)

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")

BY_TYPE = {
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "array": (
        "items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "contains",
        "minContains", "maxContains",
    ),
    "object": (
        "properties", "required", "additionalProperties", "patternProperties", "propertyNames",
        "minProperties", "maxProperties",
    ),
}  # fmt: skip
"""What each type's keywords are; they say nothing about values of other types."""
