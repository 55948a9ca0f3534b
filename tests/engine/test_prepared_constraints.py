"""A compiled program's constraints are ready when its calls come: told ahead, compiled once, kept on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import sglc as sgl
from grammar import compile as door
from grammar.token_fsm import TokenFsm
from runtime.api import Constraint
from runtime.backends.scripted import Scripted
from runtime.config import embedded_model_path
from runtime.constrain.compiler import ConstraintCompiler
from runtime.tokenizer.tokenizer import Tokenizer
from sglc.ir.parser import parse_module
from sglc.passes.pipeline import Pipeline

CODE = r"[A-Z]{2}-[0-9]{4}"
SCHEMA = '{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": false}'


@sgl.function
def labelled(s: Any, q: str) -> None:
    s += q + sgl.gen("code", regex=CODE, max_tokens=16, temperature=0)
    s += " and " + sgl.gen("record", json_schema=SCHEMA, max_tokens=24, temperature=0)
    s += " again " + sgl.gen("other", regex=CODE, max_tokens=16, temperature=0)


@sgl.function
def refused(s: Any, q: str) -> None:
    s += q + sgl.gen("code", regex=r"([0-9])\1", max_tokens=16, temperature=0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "sglc" / "constraints"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The automata that were made into tables."""
    found: list[Any] = []
    plain = TokenFsm.of

    def counted(fsm: Any, *args: Any, **options: Any) -> TokenFsm:
        found.append(fsm)
        return plain(fsm, *args, **options)

    monkeypatch.setattr(door.TokenFsm, "of", counted)
    yield found


def compiler() -> ConstraintCompiler:
    folder = embedded_model_path()
    return ConstraintCompiler(folder, Tokenizer(folder).ends)


def test_an_engine_finds_what_the_pass_compiled(cache: Path, made: list[Any]) -> None:
    text = f'constraint @c0 = regex "{CODE}"\ngraph @f(%q: str) {{\n  %0 = begin\n  %1 = text %0, %q\n'
    text += '  %2, %3 = gen %1 {name="a", constraint=@c0}\n  return %2\n}\n'
    Pipeline.parse('precompile-constraints{tokenizer="tiny"}').run(parse_module(text), verify=True)
    assert len(made) == 1 and len(list(cache.iterdir())) == 1
    automaton = compiler().get(Constraint("regex", CODE))
    assert len(made) == 1
    state = automaton.advance_bytes(0, b"AB-1234")
    assert state >= 0 and automaton.can_end(state)


def test_other_end_tokens_are_another_table(cache: Path, made: list[Any]) -> None:
    compiler().get(Constraint("regex", CODE))
    folder = embedded_model_path()
    ConstraintCompiler(folder, (0,)).get(Constraint("regex", CODE))
    assert len(made) == 2 and len(list(cache.iterdir())) == 2


def test_both_sides_of_an_engine_share_one_table(cache: Path, made: list[Any]) -> None:
    with sgl.Engine() as engine:
        state = labelled.compile(backend=engine).run(q="The code is ")
        code, record = state["code"], state["record"]
        assert len(made) == 1 and len(list(cache.iterdir())) == 1
        plain = labelled.run(q="The code is ", backend=engine)
        assert (plain["code"], plain["record"], plain.text()) == (code, record, state.text())


def test_a_refusal_is_told_where_the_gen_is(cache: Path) -> None:
    with sgl.Engine() as engine:
        compiled = refused.compile(backend=engine).run(q="The code is ")
        plain = refused.run(q="The code is ", backend=engine)
        assert str(compiled.error()) == str(plain.error())
        assert "regex is refused" in str(plain.error())


class Told(Scripted):
    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[Constraint, ...]] = []

    def prepare_constraints(self, constraints: Sequence[Constraint]) -> None:
        self.told.append(tuple(constraints))


def test_a_backend_is_told_once_and_in_order() -> None:
    backend = Told()
    program = labelled.compile(backend=backend)
    program.run(q="a").sync()
    program.run(q="b").sync()
    program.run_batch([{"q": "c"}, {"q": "d"}])
    assert backend.told == [(Constraint("regex", CODE), Constraint("json_schema", SCHEMA))]
    other = Told()
    program.run_batch([{"q": "c"}, {"q": "d"}], backend=other)
    assert other.told == backend.told


def test_nothing_is_told_of_a_program_without_constraints() -> None:
    @sgl.function
    def plain(s: Any, q: str) -> None:
        s += q + sgl.gen("a")

    backend = Told()
    plain.compile(backend=backend).run(q="a").sync()
    assert backend.told == []


def test_what_constraints_share_is_made_ahead() -> None:
    compiler = ConstraintCompiler(embedded_model_path(), [0])
    thread = compiler.warm_up()
    automaton = compiler.get(Constraint("json_schema", '{"type": "string"}'))  # waits for it, or comes first
    thread.join(timeout=60)
    assert not thread.is_alive() and automaton.min_tokens >= 1
