"""Every example runs on the embedded model, and says what it should; run in one process to load the model once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import sglc as sgl
from tests.modules import module_of

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    return module_of(EXAMPLES / f"{name}.py", f"example_{name}")


@pytest.fixture(scope="module")
def engine() -> Iterator[sgl.Engine]:
    with sgl.Engine() as engine:
        yield engine


def test_quick_start(engine: sgl.Engine) -> None:
    program = load("quick_start").multi_turn_question
    state = program.run(backend=engine)
    assert [m["content"] for m in state.messages()[1:]] == [
        "What is the capital of France?",
        "The capital of France is Paris.",
        "List two sights there.",
        "Two sights in Paris are the Eiffel Tower and the Louvre.",
    ]
    assert "Tokyo" in program.run(country="Japan", backend=engine)["sights"]


def test_tool_use(engine: sgl.Engine) -> None:
    program = load("tool_use").tool_use
    state = program.run(backend=engine)
    assert (state["tool"], state["expression"]) == ("calculator", " 12 + 35")
    state = program.run("What is the capital of Italy?", backend=engine)
    assert (state["tool"], state["word"]) == ("search engine", " capital of Italy")


def test_tips(engine: sgl.Engine) -> None:
    state = load("tips").tip_suggestion.run(backend=engine)
    assert "Tip 1:A balanced diet" in state.text() and "Tip 2:Regular exercise" in state.text()
    assert state["summary"]


def test_batch(engine: sgl.Engine) -> None:
    module = load("batch")
    states = module.text_qa.run_batch([{"question": q} for q in module.QUESTIONS], backend=engine)
    answers = [s["answer"].strip() for s in states]
    assert answers == [
        "The capital of the United Kingdom is London.",
        "The capital of Spain is Madrid.",
        "The capital of Japan is Tokyo.",
        "The currency of Japan is the yen.",
        "21 + 34 = 55",
    ]


def test_streaming(engine: sgl.Engine) -> None:
    state = load("streaming").capital.run(backend=engine, stream=True)
    chunks = list(state.text_iter("answer"))
    assert len(chunks) > 3
    assert "".join(chunks) == state["answer"] == "The capital of Germany is Berlin."


def test_roles_are_all_the_same(engine: sgl.Engine) -> None:
    module = load("roles")
    programs = (module.with_functions, module.with_methods, module.with_blocks, module.with_markers)
    states = [p.run(backend=engine) for p in programs]
    assert {s["answer"] for s in states} == {"The currency of Japan is the yen."}
    assert len({s.text() for s in states}) == 1
    assert all(s.messages() == states[0].messages() for s in states)


def test_choices(engine: sgl.Engine) -> None:
    module = load("choices")
    for country, capital in (("France", " Paris"), ("Italy", " Rome"), ("Japan", " Tokyo")):
        assert module.pick_capital.run(country, backend=engine)["capital"] == capital
        assert module.pick_capital_greedily.run(country, backend=engine)["capital"] == capital


def test_json_record(engine: sgl.Engine) -> None:
    state = load("json_record").city_record.run(backend=engine)
    assert json.loads(state["record"]) == {"name": "Paris", "country": "France", "language": "French"}


PROGRAMS = [
    ("quick_start", "multi_turn_question", {"country": "Peru"}),
    ("tool_use", "tool_use", {"question": "What is 48 + 27?"}),
    ("tips", "tip_suggestion", {"topic": "learning a language"}),
    ("batch", "text_qa", {"question": "What is the currency of Mexico?"}),
    ("streaming", "capital", {"country": "Kenya"}),
    ("roles", "with_functions", {}),
    ("roles", "with_methods", {}),
    ("roles", "with_blocks", {}),
    ("roles", "with_markers", {}),
    ("choices", "pick_capital", {"country": "Spain"}),
    ("choices", "pick_capital_greedily", {"country": "Spain"}),
    ("json_record", "city_record", {"city": "Lima"}),
]


@pytest.mark.parametrize(("file", "name", "arguments"), PROGRAMS, ids=[n for _, n, _ in PROGRAMS])
def test_compiled_equals_interpreted(
    engine: sgl.Engine, file: str, name: str, arguments: dict[str, str]
) -> None:
    program = getattr(load(file), name)
    interpreted, compiled = (
        program.run(backend=engine, **arguments),
        program.compile().run(backend=engine, **arguments),
    )
    assert compiled.text() == interpreted.text()
    assert compiled.messages() == interpreted.messages()
    assert compiled.error() is None and interpreted.error() is None
    names = [
        n
        for n in ("capital", "sights", "tool", "expression", "summary", "answer", "record")
        if n in interpreted
    ]
    assert names and all(compiled[n] == interpreted[n] for n in names)


def test_compiled_batches_equal_interpreted_ones(engine: sgl.Engine) -> None:
    module = load("batch")
    rows = [{"question": q} for q in module.QUESTIONS]
    interpreted = module.text_qa.run_batch(rows, backend=engine)
    compiled = module.text_qa.compile().run_batch(rows, backend=engine)
    assert [s.text() for s in compiled] == [s.text() for s in interpreted]
