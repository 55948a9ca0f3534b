"""Artefacts: one file that runs as its source would, and refuses what it was not made for."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sglc as sgl
from runtime.config import embedded_model_path
from runtime.errors import InvalidRequest
from sglc.artifact import Artifact, load_artifact
from sglc.errors import PlanError
from sglc.lang.chat_template import get_chat_template
from sglc.lang.prefix import beginning
from sglc.lang.trace import trace
from sglc.passes.pipeline import DEFAULT, Pipeline
from tests.modules import module_of

Run = Callable[..., subprocess.CompletedProcess[str]]
SOURCE = """import sglc as sgl


@sgl.function
def ask(s, q, style="short", k=2):
    s += sgl.user(f"{style}: {q}")
    with s.assistant():
        s += sgl.select("kind", ["fact", "opinion"])
        if s["kind"] == "fact":
            s += sgl.gen("answer", max_tokens=6)
        for i in range(k):
            s += sgl.gen(f"more{i}", max_tokens=3)
    return s["kind"]
"""


def program_of(tmp_path: Path) -> Any:
    file = tmp_path / "ask.py"
    file.write_text(SOURCE)
    return module_of(file, "asked").ask


def made_of(program: Any, **options: Any) -> Artifact:
    module = Pipeline.parse(DEFAULT).run(trace(program, program.defaults(), frozenset({"q", "style"})))
    return Artifact.of(module, get_chat_template("default"), defaults=program.defaults(), **options)


def test_it_runs_as_its_source_does(tmp_path: Path) -> None:
    program = program_of(tmp_path)
    made_of(program).save(tmp_path / "ask.sglc")
    (tmp_path / "ask.py").unlink()
    loaded = sgl.load_artifact(tmp_path / "ask.sglc")
    for k in range(12):
        one = program.run(f"why {k}?", backend=sgl.Scripted())
        two = loaded.run(q=f"why {k}?", backend=sgl.Scripted())
        assert (two.text(), two.messages(), two.ret_value) == (one.text(), one.messages(), one.ret_value)
        assert two.sink.variables() == one.sink.variables()  # type: ignore[attr-defined]
    rows = [{"q": f"row {k}", "style": "long"} for k in range(5)]
    one_by_one = [loaded.run(**row, backend=sgl.Scripted()).text() for row in rows]
    assert [s.text() for s in loaded.run_batch(rows, backend=sgl.Scripted())] == one_by_one


def test_equal_inputs_give_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        made_of(program_of(tmp_path)).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_changed_file_is_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("artifact")
    made_of(program_of(folder)).save(folder / "ask.sglc")
    whole = (folder / "ask.sglc").read_bytes()
    at = data.draw(st.integers(0, len(whole) - 2))
    bit = data.draw(st.integers(0, 7))
    changed = bytearray(whole)
    changed[at] ^= 1 << bit
    (folder / "bad.sglc").write_bytes(bytes(changed))
    try:
        found = load_artifact(folder / "bad.sglc")
    except InvalidRequest:
        return
    # A change that JSON does not see, such as another space, leaves the same artefact.
    assert msgspec.json.encode(found, order="sorted") == whole.rstrip(b"\n")


def test_another_template_or_tokenizer_is_refused(tmp_path: Path) -> None:
    made = made_of(program_of(tmp_path), tokenizer=Path(embedded_model_path()))
    with pytest.raises(InvalidRequest, match="was compiled for the chat template default"):
        made.run(q="a", backend=sgl.Scripted(chat_template="chatml"))
    other = msgspec.structs.replace(made, tokenizer="0" * 24, template_digest="x")
    with pytest.raises(InvalidRequest, match="chat template"):
        other.run(q="a", backend=sgl.Scripted())


def test_arguments_are_checked(tmp_path: Path) -> None:
    made = made_of(program_of(tmp_path))
    backend = sgl.Scripted()
    assert made.run(q="a", k=2, backend=backend).text()
    for given_, told in (
        ({}, "missing a required argument: 'q'"),
        ({"q": "a", "colour": "red"}, "unexpected argument 'colour'"),
        ({"q": "a", "k": 3}, "was compiled for k=2, not 3"),
        ({"q": 5}, "q is a int"),
    ):
        with pytest.raises(TypeError, match=told):
            made.run(**given_, backend=backend)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("{}")
    (tmp_path / "b").write_bytes(b"\xff\xfe")
    (tmp_path / "c").write_text("[" * 100_000)
    for name in "abcd":
        with pytest.raises(InvalidRequest):
            load_artifact(tmp_path / name)


@sgl.host
def look_up(word: str) -> str:
    return word


@sgl.function
def with_host(s, q):  # type: ignore[no-untyped-def]
    s += q + sgl.gen("x", max_tokens=3)
    s += look_up(s["x"])


def test_a_program_with_host_functions_needs_its_source() -> None:
    with pytest.raises(PlanError, match="runs from its source"):
        Artifact.of(trace(with_host, {"q": "a"}, frozenset({"q"})), get_chat_template("default"))


@sgl.function
def breaks(s: Any, q: str) -> None:
    s += q + sgl.gen("a", max_tokens=3)
    print(s["a"])


def test_a_program_with_a_graph_break_needs_its_source() -> None:
    module, _ = beginning(breaks, {})
    assert module is not None
    with pytest.raises(
        PlanError, match=r"test_artifact\.py:\d+: breaks runs interpreted from here on .* from its source"
    ):
        Artifact.of(module, get_chat_template("default"))


def test_the_command_line(tmp_path: Path, run_sglc: Run) -> None:
    file = tmp_path / "ask.py"
    file.write_text(SOURCE)
    out = tmp_path / "ask.sglc"
    done = run_sglc("compile", str(file), "--emit", "artifact", "-o", str(out), "--template", "default")
    assert done.returncode == 0 and "build " in done.stderr, done.stderr
    file.unlink()
    ran = run_sglc("run", str(out), "--q", "why?", "--backend", "scripted", cwd=tmp_path)
    assert ran.returncode == 0 and "user: short: why?" in ran.stdout, ran.stderr
    assert run_sglc("compile", str(file), "--emit", "artifact").returncode == 2
    out.write_bytes(out.read_bytes().replace(b"why", b"who").replace(b"max_tokens", b"max_tokenz"))
    bad = run_sglc("run", str(out), "--q", "why?", "--backend", "scripted")
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1 and "Traceback" not in bad.stderr
    wrong = run_sglc("run", str(out), "--backend", "scripted")
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr
