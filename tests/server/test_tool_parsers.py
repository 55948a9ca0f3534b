"""Tool calls in the text of each family: read as a whole, piece by piece, and from whatever else a model may write."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import InvalidRequest, Unsupported
from runtime.server import tools
from runtime.server.conversation import Tool, _text_or_calls
from runtime.server.tools import ALIASES, FORMATS, format_of_template, tool_format
from runtime.server.tools.forced import Forced, schema_of_calls
from runtime.server.tools.parser import Piece, Region, ToolCall, ToolFormat, ToolParser

TOOLS = {"f": {"type": "object", "properties": {"s": {"type": "string"}}}, "g": {"type": "object"}}
F, G = ToolCall("f", '{"a":1}'), ToolCall("g", "{}")
CASES: list[tuple[str, str, list[Piece]]] = [
    (
        "hermes",
        'Sure.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>{"name":"g","arguments":{}}'
        "</tool_call>",
        ["Sure.", F, G],
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"s": "</tool_call>}"}}</tool_call> Done.\n',
        [ToolCall("f", '{"s":"</tool_call>}"}'), "Done.\n"],
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
        [F],
    ),
    (
        "hermes",
        'x <tool_call> y {"name": "f"}, <tool_call>{"name":"h","arguments":{}}',
        ['x <tool_call> y {"name": "f"}, <tool_call>{"name":"h","arguments":{}}'],
    ),
    ("hermes", ' <tool_call><tool_call>{"name":"g","arguments":{}}', [" <tool_call>", G]),
    ("hermes", '<tool_call>{"name":"g","argum', ['<tool_call>{"name":"g","argum']),
    ("hermes", "a < b <tool", ["a < b <tool"]),
    ("llama3_json", '{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}', [F, G]),
    ("llama3_json", '<|python_tag|>{"name": "g", "parameters": {}}<|eom_id|>', [G]),
    (
        "llama3_json",
        '{"foo": 1} {"name": "g", "parameters": {}}',
        ['{"foo": 1} {"name": "g", "parameters": {}}'],
    ),
    ("llama3_json", 'Use {"name": "g", "parameters": {}}', ['Use {"name": "g", "parameters": {}}']),
    (
        "mistral",
        '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]',
        [F, G],
    ),
    ("mistral", 'Hi[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g{}', ["Hi", F, G]),
    (
        "deepseek",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{"a": 1}\n```<｜tool▁call▁end｜>\n'
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [F, G],
    ),
    (
        "deepseek",
        'Well.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        ["Well.", F],
    ),
    ("pythonic", "[f(a=1), g()]", [F, G]),
    (
        "pythonic",
        "<|python_start|>[f(s='it\\'s \"]\"', x=[1, -2.5, True], y={'k': None, \"l\": (1,)})]<|python_end|>",
        [ToolCall("f", '{"s":"it\'s \\"]\\"","x":[1,-2.5,true],"y":{"k":null,"l":[1]}}')],
    ),
    ("pythonic", "[1, 2] is a list", ["[1, 2] is a list"]),
    ("pythonic", "[f(__import__('os'))]", ["[f(__import__('os'))]"]),
    ("pythonic", "[h()]", ["[h()]"]),
    (
        "qwen3_coder",
        "Ok\n<tool_call>\n<function=f>\n<parameter=s>\n12\n</parameter>\n<parameter=n>\n[12]\n</parameter>\n</function>\n"
        "</tool_call>",
        ["Ok", ToolCall("f", '{"s":"12","n":[12]}')],
    ),
    ("qwen3_coder", "<tool_call><function=f></tool_call>", ["<tool_call><function=f></tool_call>"]),
]


def read(form: ToolFormat, parts: Iterable[str]) -> list[Piece]:
    parser = ToolParser(form, TOOLS)
    out: list[Piece] = []
    for piece in [p for part in parts for p in parser.feed(part)] + parser.close():
        if isinstance(piece, str) and out and isinstance(out[-1], str):
            out[-1] += piece
        else:
            out.append(piece)
    return out


def chunks(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


@pytest.mark.parametrize(("name", "text", "expected"), CASES)
def test_each_family_whole_and_in_pieces(name: str, text: str, expected: list[Piece]) -> None:
    for size in (len(text), 1, 2, 3, 5, 8):
        assert read(tool_format(name), chunks(text, size)) == expected


def test_text_streams_while_no_call_can_have_begun() -> None:
    parser = ToolParser(tool_format("hermes"), TOOLS)
    assert parser.feed("Hello <b") == ["Hello <b"]
    assert parser.feed(" there <too") == [" there"]
    assert parser.feed("ls>") == [" <tools>"]


FRAGMENTS = st.sampled_from(
    [
        *sorted({w for f in FORMATS.values() for w in (*f.marks, *f.first, *f.noise)}),
        '{"name": "f", "arguments": {}}',
        '"',
        "\\",
        "{",
        "}",
        "]",
        "f",
        "(",
        ")",
        "a=",
        "1",
        " ",
        "\n",
        "é",
        "<",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.lists(FRAGMENTS, max_size=25), st.integers(1, 9))
def test_pieces_say_what_the_whole_says(name: str, words: list[str], size: int) -> None:
    text = "".join(words)
    whole = read(tool_format(name), [text])
    assert read(tool_format(name), chunks(text, size)) == whole
    for piece in whole:
        if isinstance(piece, ToolCall):
            assert piece.name in TOOLS and isinstance(json.loads(piece.arguments), dict)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.text(alphabet="abc {}[]\"'\n<|", max_size=60))
def test_text_without_calls_is_not_changed(name: str, text: str) -> None:
    assert "".join(p for p in read(tool_format(name), [text]) if isinstance(p, str)) == text


class Counting(ToolParser):
    """Counts the characters that it looks at."""

    looked = 0

    def _outside(self, new: str, out: list[Piece]) -> str:
        self.looked += len(self._pending) + len(new)
        return super()._outside(new, out)

    def _inside(self, region: Region, text: str, out: list[Piece]) -> str:
        self.looked += len(text) + len(getattr(region, "_before", "")) + len(getattr(region, "_tail", ""))
        return super()._inside(region, text, out)


def near_misses(form: ToolFormat) -> list[str]:
    """What each format looks at most often, repeated."""
    word = form.marks[0] if form.marks else form.first[0]
    return [
        word,
        word + "{",
        word[:-1] or word,
        word + "[" * 5,
        word + " ",
        " " + word,
        '{"',
        "\n",
        "\\",
        "'",
    ]


@pytest.mark.parametrize(("size", "some"), [(40_000, 10), (1_000_000, 1)])
@pytest.mark.parametrize("part", [16, 1_000_000], ids=["streamed", "whole"])
@pytest.mark.parametrize("form", [*map(tool_format, sorted(FORMATS)), Forced()], ids=lambda form: form.name)
def test_what_is_nearly_a_call_is_looked_at_a_bounded_number_of_times(
    form: ToolFormat, part: int, size: int, some: int
) -> None:
    for text in near_misses(form)[:some]:
        parser = Counting(form, TOOLS)
        whole = (text * size)[:size]
        for piece in chunks(whole, part):
            parser.feed(piece)
        parser.close()
        assert len(whole) <= parser.looked < 40 * len(whole), text


def test_parsers_never_evaluate() -> None:
    import importlib
    import pkgutil

    for module in pkgutil.iter_modules(tools.__path__):
        source = inspect.getsource(importlib.import_module(f"runtime.server.tools.{module.name}"))
        calls = [n.func for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)]
        assert not {f.id for f in calls if isinstance(f, ast.Name)} & {
            "eval",
            "exec",
            "compile",
            "__import__",
        }


def test_demanded_calls_are_one_document() -> None:
    schema = {
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/n"}},
        "$defs": {"n": {"type": "integer"}},
    }
    import jsonschema

    document = json.loads(schema_of_calls({"f": schema, "g": {"type": "object"}}, several=True))
    validator = jsonschema.Draft202012Validator(document)
    assert validator.is_valid([{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}])
    assert not validator.is_valid([{"name": "f", "arguments": {"x": "1"}}])
    assert not validator.is_valid([{"name": "h", "arguments": {}}]) and not validator.is_valid([])
    text = '[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]'
    assert read(Forced(), chunks(text, 3)) == [F, G]


@pytest.mark.parametrize("name", [n for n in FORMATS if tool_format(n).alone("f") is not None])
def test_calls_that_are_constrained_are_read(name: str) -> None:
    """What an answer of calls alone is held to is what the parser takes for calls."""
    form = tool_format(name)
    lines = []
    for tool, arguments in (("f", '{"a": 1}'), ("g", "{}")):
        found = form.alone(tool)
        assert found is not None
        lines.append(f"{found[0]}{arguments}{found[1]}")
    assert read(form, chunks("\n".join(lines), 3)) == [F, G]


def test_a_schema_beside_calls_that_cannot_be_constrained() -> None:
    """The text alone is held to it; strict tools are refused."""
    mistral, tool = tool_format("mistral"), Tool("f", {"type": "object"})
    assert _text_or_calls(mistral, (tool,), "{}") is None
    found = _text_or_calls(tool_format("hermes"), (tool,), '{"enum": [1]}')
    assert found is not None and json.loads(found.source)["text"] == {"enum": [1]}
    with pytest.raises(Unsupported, match=r"format mistral .* leave strict or the schema out"):
        _text_or_calls(mistral, (tool, Tool("g", {"type": "object"}, strict=True)), "{}")


def test_formats_by_name_and_template() -> None:
    assert {tool_format(a).name for a in ALIASES} == {"hermes", "llama3_json", "deepseek"}
    with pytest.raises(InvalidRequest, match="did you mean 'mistral'"):
        tool_format("mistrl")
    assert format_of_template("... [TOOL_CALLS] ...").name == "mistral"
    assert format_of_template("<tool_call>\n<function=x>").name == "qwen3_coder"
    assert format_of_template("{{ message.content }}").name == "hermes"
