"""The command line: what it prints, and one line with exit code 2 for what the user got wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sglc.ir.json import from_json
from sglc.ir.parser import parse_module

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]
PROGRAM = """
import sglc as sgl


@sgl.function
def ask(s, question, times=1):
    s += sgl.user(question)
    for _ in range(times):
        s += sgl.assistant(sgl.gen("answer", max_tokens=8, temperature=0))
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ask.py"
    path.write_text(PROGRAM)
    return path


def test_compile_emits_every_form(file: Path, run_sglc: Run) -> None:
    raw = run_sglc("compile", str(file), "--emit", "raw", "-D", "times=2", "--verify").stdout
    assert 'graph @ask(%question: str) {times="2"}' in raw
    assert str(parse_module(raw)) == raw
    assert raw.count(" gen ") == 2
    data = run_sglc("compile", f"{file}:ask", "--emit", "json").stdout
    assert from_json(data).main == "ask"
    assert (
        "decode p"
        in run_sglc("compile", str(file), "--emit", "plan", "--template", "llama-3-instruct").stdout
    )
    assert run_sglc("compile", str(file), "--emit", "dot").stdout.startswith("digraph")
    shown = run_sglc(
        "compile", str(file), "--print-after-all", "--passes", "canonicalize,hoist-prefix{min-chars=4}"
    )
    assert "// after canonicalize" in shown.stderr and "// after hoist-prefix{min-chars=4}" in shown.stderr
    assert f'loc("{file}":7:0)' in run_sglc("compile", str(file), "--locations").stdout


def test_run_with_arguments(file: Path, run_sglc: Run) -> None:
    done = run_sglc("run", str(file), "--question", "Why?", "--backend", "scripted", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["messages"][0] == {"role": "user", "content": "Why?"}
    for flag in ("--interpret", "--stream"):
        other = run_sglc(
            "run", str(file), "--question=Why?", "-D", "times=1", "--backend", "scripted", "--json", flag
        )
        assert json.loads(other.stdout) == found
    plain = run_sglc("run", str(file), "--question", "Why?", "--backend", "scripted").stdout
    assert plain.startswith("user: Why?\nassistant: ")


def test_passes_are_listed(run_sglc: Run) -> None:
    shown = run_sglc("passes").stdout
    assert "hoist-prefix" in shown and "min-chars=1" in shown


def test_rules_are_listed_and_explained(run_sglc: Run) -> None:
    shown = run_sglc("rules").stdout
    assert "SGL101" in shown and "read-before-gen" in shown
    for which in ("SGL201", "impossible-compare"):
        assert "Bad:" in run_sglc("rules", which).stdout
    assert "did you mean 'impossible-compare'" in run_sglc("rules", "impossible-compares").stderr


def test_help_is_short_of_nothing(run_sglc: Run) -> None:
    for words in ((), ("compile",), ("run",), ("check",), ("explain",), ("diff",), ("passes",), ("rules",)):
        done = run_sglc(*words, "--help")
        assert done.returncode == 0 and "Usage" in done.stdout


def test_what_a_body_raises_is_shown_without_our_calls(file: Path, run_sglc: Run) -> None:
    file.write_text(
        PROGRAM.replace("        s += sgl.assistant", "        open('/none/x')\n        s += sgl.assistant")
    )
    done = run_sglc("run", str(file), "--question", "Why?", "--backend", "scripted")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0].startswith("Traceback") and lines[1] == f'  File "{file}", line 9, in ask'
    assert (
        lines[-1].startswith("FileNotFoundError") and sum(": line" in x or ", line" in x for x in lines) == 1
    )


def test_what_a_file_prints_is_not_in_the_way_of_json(file: Path, run_sglc: Run) -> None:
    file.write_text(PROGRAM + "\nprint('imported')\n")
    done = run_sglc("check", str(file), "--format", "json")
    assert json.loads(done.stdout) == [] and done.stderr == "imported\n"
    assert "imported" in run_sglc("run", str(file), "--question", "Why?", "--backend", "scripted").stdout
    assert not list(file.parent.glob("__pycache__/ask*"))


def test_annotated_arguments_are_read_as_their_type(file: Path, run_sglc: Run) -> None:
    file.write_text(PROGRAM.replace("times=1", "times: int"))
    done = run_sglc("run", str(file), "--question", "Why?", "--times", "2", "--backend", "scripted", "--json")
    assert len(json.loads(done.stdout)["messages"]) == 3, done.stderr


def test_a_reader_that_stops_is_no_failure(file: Path) -> None:
    for words in (("explain", str(file)), ("compile", str(file)), ("passes",), ("check", str(file))):
        work = subprocess.Popen(
            [sys.executable, "-m", "sglc.cli", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
        assert work.stdout is not None and work.stderr is not None
        work.stdout.close()
        assert work.stderr.read() == b""
        work.stderr.close()
        work.wait(timeout=60)


MISTAKES = {
    "no file": (("compile", "{folder}/aks.py"), "there is no file {folder}/aks.py; did you mean 'ask.py'?"),
    "no program of that name": (("compile", "{file}:akk"), "{file} has no program 'akk'; it has ask; did you mean 'ask'?"),
    "unknown pass": (("compile", "{file}", "--passes", "hoist"), "there is no pass 'hoist'"),
    "bad option": (("compile", "{file}", "--passes", "hoist-prefix{{min-char=1}}"), "did you mean 'min-chars'?"),
    "bad pipeline": (("compile", "{file}", "--passes", "a,,b"), "'a,,b' is not a pipeline"),
    "unknown form": (("compile", "{file}", "--emit", "plam"), "did you mean 'plan'?"),
    "missing argument": (("run", "{file}", "--backend", "scripted"), "ask needs a value for 'question'"),
    "unknown argument": (("run", "{file}", "--questoin", "x"), "ask has no argument 'questoin'; it takes question, times; did you mean 'question'?"),
    "wrong type": (("run", "{file}", "--question", "x", "--times", "many"), "times='many' is not of type int; write it as in Python, such as 7"),
    "bad backend": (("run", "{file}", "--question", "x", "--backend", "sglang"), "--backend sglang"),
    "no server": (("run", "{file}", "--question", "x", "--backend", "http://127.0.0.1:9"), "127.0.0.1:9"),
    "no s": (("run", "{folder}/no_s.py"), "sglc: {folder}/no_s.py:4: the first argument of a program must be `s`"),
    "syntax": (("run", "{folder}/syntax.py"), "{folder}/syntax.py:2: "),
    "raises": (("run", "{folder}/raises.py"), "{folder}/raises.py:3: ZeroDivisionError"),
    "no program": (("run", "{folder}/plain.py"), "has no program; write @sgl.function above `def ask(s, ...)`"),
    "annotated": (("compile", "{folder}/typed.py", "-D", "count=many"), "count='many' is not of type int"),
    "an artefact that breaks": (("compile", "{folder}/prints.py", "--emit", "artifact", "-o", "{folder}/a.sglc"), "{folder}/prints.py:9: ask is not traced: print(...)"),
    "nowhere to write": (("compile", "{file}", "-o", "{folder}/none/ask.ir"), "--out {folder}/none/ask.ir: there is no folder {folder}/none"),
    "a folder to write": (("compile", "{file}", "-o", "{folder}"), "--out {folder}: that is a folder; name a file"),
    "nowhere for the timeline": (("run", "{file}", "--question", "x", "--backend", "scripted", "--timeline", "{folder}/none/t"), "--timeline"),
    "no tokenizer": (("compile", "{file}", "--tokenizer", "{folder}"), "there is no tokenizer.json in that folder"),
    "not a tokenizer": (("check", "{file}", "--tokenizer", "{folder}/broken"), "its tokenizer.json cannot be read"),
    "not an artefact": (("run", "{folder}/broken.sglc", "--backend", "scripted"), "broken.sglc is not an artefact"),
    "no program takes it": (("check", "{file}", "-D", "tmies=3"), "no program has an argument 'tmies'; did you mean 'times'?"),
    "no programs in the folder": (("check", "{folder}/broken"), "broken has no file with programs"),
    "rows that are not JSON": (("run", "{file}", "--backend", "scripted", "--batch", "{folder}/syntax.py"), "syntax.py:1: this is not JSON"),
    "no revision": (("diff", "HEAD:{folder}/ask.py", "{file}"), "git: "),
    "branches": (("compile", "{folder}/branches.py", "--emit", "plan"), "{folder}/branches.py:8: "),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_one_line(name: str, file: Path, run_sglc: Run) -> None:
    folder = file.parent
    (folder / "no_s.py").write_text("import sglc as sgl\n\n\n@sgl.function\ndef ask(question):\n    pass\n")
    (folder / "syntax.py").write_text("import sglc\ndef (\n")
    (folder / "raises.py").write_text("import sglc\n\n1 / 0\n")
    (folder / "typed.py").write_text(PROGRAM.replace("times=1", "count: int").replace("times", "count"))
    (folder / "prints.py").write_text(PROGRAM.replace("        s +=", "        print(1)\n        s +="))
    (folder / "broken").mkdir()
    (folder / "broken" / "tokenizer.json").write_text("{}")
    (folder / "broken.sglc").write_text("{}")
    (folder / "plain.py").write_text("def ask(s, q):\n    s += q\n")
    (folder / "branches.py").write_text(
        PROGRAM.replace("sgl.user(question)", "sgl.gen('x')\n    for c in s['x']:\n        s += 'y'")
    )
    words, wanted = MISTAKES[name]
    places = {"file": str(file), "folder": str(folder)}
    done = run_sglc(*(w.format(**places) for w in words))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("sglc: ") and done.stderr.count("\n") == 1, done.stderr
    assert wanted.format(**places) in done.stderr
