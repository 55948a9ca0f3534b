"""gen(structural_tag=...): free text whose marked parts are constrained, the same interpreted and compiled."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import sglc as sgl
from grammar import compile_constraint
from sglc.errors import IRError
from sglc.ir.json import from_json, to_json
from sglc.ir.parser import parse_module

TAG = {
    "triggers": ["<pick="],
    "structures": [
        {"begin": "<pick=colour>", "schema": {"enum": ["red", "green"]}, "end": "</pick>"},
        {
            "begin": "<pick=count>",
            "schema": {"type": "integer", "minimum": 1, "maximum": 9},
            "end": "</pick>",
        },
    ],
}


@sgl.function
def program(s: sgl.ProgramState, what: str) -> None:
    s += what + ": <pick=" + sgl.gen("free", structural_tag=TAG, max_tokens=20, temperature=1.0, seed=3)


@pytest.fixture(scope="module")
def engine() -> Iterator[sgl.Engine]:
    with sgl.Engine() as engine:
        yield engine


@pytest.mark.parametrize("seed", range(3))
def test_compiled_is_interpreted_and_no_trigger_stands_open(engine: sgl.Engine, seed: int) -> None:
    @sgl.function
    def one(s: sgl.ProgramState, what: str) -> None:
        s += what + sgl.gen("t", structural_tag=json.dumps(TAG), max_tokens=30, temperature=3.0, seed=seed)

    runs = [p.run(what="Write <pick=colour>", backend=engine) for p in (one, one.compile(verify=True))]
    assert runs[0].text() == runs[1].text() and runs[0]["t"]
    assert compile_constraint("structural_tag", TAG).begins(runs[0]["t"].rstrip("\ufffd"))


def test_the_ir_keeps_it() -> None:
    module = program.trace()
    assert "structural_tag" in str(module)
    assert str(parse_module(str(module))) == str(module)
    assert str(from_json(to_json(module))) == str(module)
    with pytest.raises(IRError, match="is not one of regex, json_schema, ebnf, structural_tag, choices"):
        parse_module(str(module).replace("structural_tag", "tags", 1))


def test_it_goes_with_no_other_constraint() -> None:
    with pytest.raises(ValueError, match="ebnf and structural_tag cannot be given together"):
        sgl.gen("x", ebnf='root ::= "a"', structural_tag=TAG)


SOURCE = """
import sglc as sgl

@sgl.function
def picks(s, q):
    s += q + sgl.gen("code", regex="id-[0-9]{3}")
    s += sgl.gen("sum", ebnf='root ::= [0-9]+ ("+" [0-9]+)*')
    s += sgl.gen("tag", structural_tag={"triggers": ["<t>"], "structures": [{"begin": "<t>", "schema": {"type": "integer"}, "end": "</t>"}]})
    s += sgl.gen("list", type=list[bool])
    s += sgl.gen("bad", json_schema={"type": "objekt"})
"""


def test_check_says_how_each_constraint_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from sglc.cli import app

    (tmp_path / "picks.py").write_text(SOURCE)
    told = CliRunner().invoke(app, ["check", "--constraints", str(tmp_path / "picks.py")])
    assert told.exit_code == 1 and "this schema cannot be enforced" in told.output
    lines = [
        line for line in told.output.splitlines() if " of " in line and ("exact" in line or "refused" in line)
    ]
    kinds = [re.search(r": (\w+) of (\w+): (exact|refused)", line) for line in lines]
    assert [m.groups() for m in kinds if m] == [
        ("regex", "code", "exact"),
        ("ebnf", "sum", "exact"),
        ("structural_tag", "tag", "exact"),
        ("json_schema", "list", "exact"),
        ("json_schema", "bad", "refused"),
    ]
    assert "50 % of the shortest forced" in lines[0]
    other = CliRunner().invoke(
        app, ["check", "--constraints", "--format", "json", str(tmp_path / "picks.py")]
    )
    assert other.exit_code != 0
