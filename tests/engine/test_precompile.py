"""--precompile: the constraints of a file or of a compiled program are ready before the first request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sglc as sgl
from runtime.api import Constraint
from runtime.config import EngineConfig
from runtime.constrain.precompile import read_constraints
from runtime.engine.loop import EngineLoop
from runtime.engine.native import sampling_params
from runtime.errors import ModelError


def test_lines_are_compiled_before_the_engine_is_ready(tmp_path: Path) -> None:
    schema = {"enum": ["red", "green"]}
    file = tmp_path / "constraints.jsonl"
    lines = [{"regex": "[0-9]{3}"}, {"json_schema": schema}, {"ebnf": 'root ::= "a" root | "b"'}]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    loop = EngineLoop(EngineConfig(precompile=str(file)))
    assert loop.constraints is not None
    for kind, source in (("regex", "[0-9]{3}"), ("json_schema", '{"enum":["red","green"]}')):
        assert loop.constraints._cache.known(Constraint(kind, source)) is not None  # type: ignore[arg-type]


def test_a_schema_is_found_again_however_it_is_written(tmp_path: Path) -> None:
    schema = {"enum": ["é", 12345678901234567890123, 1.5]}
    ways = [
        json.dumps(schema),
        json.dumps(schema, indent=2, ensure_ascii=False),
        json.dumps(schema, separators=(",", ":")),
    ]
    file = tmp_path / "constraints.jsonl"
    file.write_text("\n".join(json.dumps({"json_schema": way}) for way in [schema, *ways]), encoding="utf-8")
    found = {constraint for _, constraint in read_constraints(file)}
    found |= {sampling_params({"json_schema": way}).constraint for way in ways}
    assert found == {Constraint("json_schema", ways[2].replace("\\u00e9", "é"))}
    assert sampling_params({"json_schema": "{"}).constraint == Constraint("json_schema", "{")


def test_those_of_a_compiled_program(tmp_path: Path) -> None:
    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        s += (
            "a"
            + sgl.gen("x", regex="[ab]{2}")
            + "b"
            + sgl.gen("y", regex="[ab]{2}")
            + sgl.gen("z", ebnf='root ::= "q"')
        )

    from sglc.artifact import Artifact
    from sglc.lang.chat_template import get_chat_template

    file = tmp_path / "program.json"
    Artifact.of(program.trace(), get_chat_template("chatml")).save(file)
    assert [c for _, c in read_constraints(file)] == [
        Constraint("regex", "[ab]{2}"),
        Constraint("ebnf", 'root ::= "q"'),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"regex": "a"}\n{"regex"', "constraints.jsonl:2: not JSON"),
        ('{"regex": 5}', "constraints.jsonl:1: regex is a text, not 5"),
        ('{"pattern": "a"}', "constraints.jsonl:1: a line is an object with one of regex"),
        ('{"regex": "a", "ebnf": "b"}', "constraints.jsonl:1: a line is an object"),
        ('{"regex": "(?=a)b"}', r"constraints.jsonl:1: regex is refused: .*lookahead"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "constraints.jsonl"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        EngineLoop(EngineConfig(precompile=str(file)))
    with pytest.raises(ModelError, match=r"--precompile .*missing: No such file"):
        read_constraints(tmp_path / "missing")
