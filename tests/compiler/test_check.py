"""`sglc check`: every rule by the examples of its docstring, and 120 small programs."""

from __future__ import annotations

import inspect
import itertools
import json
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from runtime.backends.targets import target
from runtime.config import embedded_model_path
from sglc.check import Budget, CheckOptions, Diagnostic, Severity, Tokens, check_program
from sglc.check.run import RULES
from sglc.lang.program import Program
from tests.modules import module_of

Run = Callable[..., subprocess.CompletedProcess[str]]
COUNT = itertools.count()
Load = Callable[[str], dict[str, Program]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Programs of a source text, from a file of their own."""

    def loaded(source: str) -> dict[str, Program]:
        file = tmp_path / f"checked_{next(COUNT)}.py"
        file.write_text(source, encoding="utf-8")
        return {n: v for n, v in vars(module_of(file)).items() if isinstance(v, Program)}

    return loaded


def options_of(words: str) -> CheckOptions:
    parts = shlex.split(words)
    given = dict(zip(parts[::2], parts[1::2], strict=True))
    number = {n: int(given[f"--{n}"]) for n in ("context", "max-calls", "max-tokens") if f"--{n}" in given}
    backend, length = given.get("--backend"), given.get("--argument-tokens")
    return CheckOptions(
        backend=target(backend) if backend else None,
        context=number.get("context"),
        argument_tokens=int(length) if length else None,
        budget=Budget(number.get("max-calls"), number.get("max-tokens")),
        tokens=Tokens(Path(embedded_model_path()) if given.get("--tokenizer") == "tiny" else None),
    )


def example(rule: Any, word: str) -> str:
    """The code under `Bad:` or `Good:` of a rule's docstring, as a program."""
    text = inspect.getdoc(type(rule))
    assert text is not None
    after = text.split(f"{word}:\n\n", 1)[1]
    lines = list(itertools.takewhile(lambda line: not line or line.startswith("    "), after.splitlines()))
    body = textwrap.indent(textwrap.dedent("\n".join(lines)).strip(), "    ")
    return EXAMPLE_HEAD + body + "\n"


EXAMPLE_HEAD = """import sglc as sgl


@sgl.function
def ask(s, question):
    s += question + sgl.gen("answer")


@sgl.function
def shown(s, question):
"""


@pytest.mark.parametrize("code", RULES)
def test_each_rule_finds_its_bad_example_and_not_its_good_one(code: str, load: Load) -> None:
    rule = RULES[code]
    options = options_of(rule.options)
    bad = check_program(load(example(rule, "Bad"))["shown"], options)
    assert code in {d.code for d in bad}, bad
    good = check_program(load(example(rule, "Good"))["shown"], options)
    assert not good, good
    for item in bad:
        assert item.message and item.fix and item.line > 4 and item.column >= 5
        assert item.severity == RULES[item.code].severity


def findings(program: Program, options: CheckOptions) -> list[Diagnostic]:
    return [d for d in check_program(program, options) if d.severity != Severity.NOTE]


# -- 120 small programs ---------------------------------------------------------------------------------------------

FOLDER = Path(__file__).parent.parent / "golden" / "check"
HEAD = """import sglc as sgl

PIXEL = b"\\x89PNG\\r\\n\\x1a\\n"


@sgl.function
def inner(s, q):
    s += q + sgl.gen("inside", max_tokens=5)
    return s["inside"]


@sgl.function
def checked(s, q):
"""


def programs_of(name: str) -> list[tuple[str, str]]:
    """Title and body of each program of a file."""
    parts = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").split("=== ")[1:]
    return [(p.partition("\n")[0], p.partition("\n")[2].rstrip() + "\n") for p in parts]


def settings(title: str) -> CheckOptions:
    words = [w for w in title.split() if not w.startswith("SGL")]
    given: list[str] = []
    while words and words[0].startswith("--"):
        given += [words.pop(0), words.pop(0)]
    return options_of(" ".join(given))


BAD, GOOD = programs_of("bad"), programs_of("good")


def test_there_are_sixty_of_each() -> None:
    assert len(BAD) >= 60 and len(GOOD) >= 60
    titles = [t for t, _ in BAD + GOOD]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize(("title", "body"), BAD, ids=[t for t, _ in BAD])
def test_the_planted_defect_is_found_at_its_line(title: str, body: str, load: Load) -> None:
    source = HEAD + body
    (line,) = (n for n, text in enumerate(source.splitlines(), 1) if "# <--" in text)
    found = findings(load(source)["checked"], settings(title))
    assert {(d.code, d.line) for d in found} == {(title.split()[0], line)}, found


@pytest.mark.parametrize(("title", "body"), GOOD, ids=[t for t, _ in GOOD])
def test_nothing_is_found_in_good_programs(title: str, body: str, load: Load) -> None:
    assert not findings(load(HEAD + body)["checked"], settings(title))


# -- the command ----------------------------------------------------------------------------------------------------


def test_text_shows_the_line_a_caret_and_the_fix(tmp_path: Path, run_sglc: Run) -> None:
    file = tmp_path / "ask.py"
    file.write_text(HEAD + '    s += q + sgl.select("k", ["no", "not sure"])\n    s += s["kk"]\n')
    done = run_sglc("check", str(file))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    caret = next(k for k, line in enumerate(lines) if line.strip() and set(line.strip()) == {"^"})
    assert lines[caret - 1].index('"not sure"') == lines[caret].index("^")
    assert "SGL101" in done.stdout and "fix: did you mean s['k']?" in done.stdout
    assert lines[-1] == "1 error, 1 warning"


TEXT = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "minLength": 1}}}
REGION = {
    "type": "object",
    "required": ["startLine"],
    "properties": {k: {"type": "integer", "minimum": 1} for k in ("startLine", "startColumn", "endColumn")},
    "additionalProperties": False,
}
PLACE = {
    "type": "object",
    "required": ["artifactLocation", "region"],
    "properties": {
        "artifactLocation": {"required": ["uri"], "properties": {"uri": {"pattern": r"^[^ \\\\]+$"}}},
        "region": REGION,
    },
}
RESULT = {
    "type": "object",
    "required": ["ruleId", "level", "message", "locations"],
    "properties": {
        "level": {"enum": ["none", "note", "warning", "error"]},
        "ruleIndex": {"type": "integer", "minimum": 0},
        "message": TEXT,
        "locations": {"minItems": 1, "items": {"properties": {"physicalLocation": PLACE}}},
    },
}
RULE = {"type": "object", "required": ["id"], "properties": {"shortDescription": TEXT}}
DRIVER = {
    "required": ["name"],
    "properties": {"rules": {"type": "array", "uniqueItems": True, "items": RULE}},
}
SARIF = {  # what SARIF 2.1.0 requires of the parts that are used
    "type": "object",
    "required": ["version", "runs"],
    "properties": {
        "version": {"const": "2.1.0"},
        "runs": {
            "minItems": 1,
            "items": {
                "required": ["tool"],
                "properties": {
                    "tool": {"required": ["driver"], "properties": {"driver": DRIVER}},
                    "results": {"type": "array", "items": RESULT},
                },
            },
        },
    },
}


def test_commands_of_a_workflow(tmp_path: Path, run_sglc: Run) -> None:
    file = tmp_path / "50%, ask.py"
    file.write_text(HEAD + '    s += q + sgl.select("k", ["no", "not sure"])\n')
    done = run_sglc("check", file.name, "--format", "github", cwd=tmp_path)
    assert done.stdout.startswith(
        "::warning file=50%25%2C ask.py,line=14,col=37,endColumn=47,title=SGL202::the choice"
    )
    assert done.stdout.count("\n") == 1 and "%0AFix: " in done.stdout


def test_json_and_sarif(tmp_path: Path, run_sglc: Run) -> None:
    file = tmp_path / "ask me.py"
    file.write_text(HEAD + '    s += q + sgl.select("k", ["no", "not sure"])\n')
    done = run_sglc("check", str(file), "--format", "json")
    assert done.returncode == 0
    (item,) = json.loads(done.stdout)
    assert (item["code"], item["severity"], item["line"]) == ("SGL202", "warning", 14)
    log = json.loads(run_sglc("check", str(file), "--format", "sarif").stdout)
    jsonschema.validate(log, SARIF)
    (one,) = log["runs"]
    (result,) = one["results"]
    assert log["version"] == "2.1.0" and result["ruleId"] == "SGL202"
    assert one["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == "SGL202"
    assert one["columnKind"] == "unicodeCodePoints"
    assert result["locations"][0]["physicalLocation"]["region"]["startLine"] == 14


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--backend", "opnai"], "did you mean 'openai'"),
        (["--format", "xml"], "choose text, json, sarif or github"),
        (["--select", "SGL999"], "there is no rule SGL999"),
        (["--tokenizer", "nowhere"], "there is no tokenizer.json"),
        (["--template", "chatlm"], "no chat template of that name; did you mean 'chatml'"),
        (["--max-calls", "-1"], "--max-calls -1: it must be at least 0"),
        (["--max-cost", "0.5"], "--prices prices.toml"),
        (["--max-cost", "0.5", "--prices", "none.toml"], "--prices none.toml: No such file"),
    ],
)
def test_mistakes_are_told_in_one_line(words: list[str], told: str, tmp_path: Path, run_sglc: Run) -> None:
    file = tmp_path / "ask.py"
    file.write_text(HEAD + "    s += q\n")
    done = run_sglc("check", str(file), *words)
    assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1


ASK = HEAD + '    s += q + sgl.gen("a", max_tokens=100)\n'


def test_the_budget_in_money_holds_for_each_model(tmp_path: Path, run_sglc: Run) -> None:
    (tmp_path / "ask.py").write_text(ASK)
    (tmp_path / "prices.toml").write_text(
        "[small]\ninput = 1\noutput = 2\n[large]\ninput = 50\noutput = 99\n"
    )
    words = [
        str(tmp_path / "ask.py:checked"),
        "--prices",
        str(tmp_path / "prices.toml"),
        "--max-cost",
        "0.01",
    ]
    done = run_sglc("check", *words, "-D", "q=Why?")
    assert done.returncode == 1
    assert "cost of large: up to 0.0" in done.stdout and ", and 0.01 is allowed" in done.stdout
    assert "small" not in done.stdout
    unbounded = run_sglc("check", *words)
    assert "cost of small: no limit is known, as the length of q is not known" in unbounded.stdout


def test_a_project_sets_options_and_the_command_line_comes_first(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "ask.py").write_text(ASK)
    (tmp_path / "prices.toml").write_text("[small]\ninput = 1\noutput = 2\n")
    table = '[tool.sglc.check]\ncontext = 64\nmax-cost = 9\nprices = "prices.toml"\nargument-tokens = 9\n'
    (tmp_path / "pyproject.toml").write_text(table)

    def check(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sglc.cli", "check", "ask.py:checked", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path / "src")

    assert "SGL401" in check().stdout and check("--context", "4096").returncode == 0
    (tmp_path / "pyproject.toml").write_text("[tool.sglc.check]\ncontex = 64\n")
    assert "has no option 'contex'" in check().stderr and "did you mean 'context'" in check().stderr
    (tmp_path / "pyproject.toml").write_text('[tool.sglc.check]\ncontext = "64"\n')
    assert check().stderr.endswith("context = '64'; give an integer\n")


def test_programs_that_run_have_no_errors(tmp_path: Path) -> None:
    """Random programs, of which the interpreter can run every one."""
    written = module_of(Path(__file__).with_name("test_pipeline_equals_eager.py"), "programs_checked")
    checked = 0
    for branching in (False, True):
        for _, program in written.programs(tmp_path, 4000, 12, branching=branching):
            found = [d for d in check_program(program) if d.severity == Severity.ERROR]
            assert not found, found
            checked += 1
    assert checked == 24


def test_columns_count_characters(load: Load) -> None:
    program = load(HEAD + '    s += q + "größer? 日本語 " + sgl.select("k", ["ja", "nein"]) + s["kk"]\n')[
        "checked"
    ]
    (found,) = check_program(program)
    line = Path(found.file).read_text(encoding="utf-8").splitlines()[found.line - 1]
    assert line[found.column - 1 : found.end_column - 1] == 's["kk"]'


def test_rules_are_chosen_by_the_beginning_of_their_code(tmp_path: Path, run_sglc: Run) -> None:
    file = tmp_path / "ask.py"
    file.write_text(HEAD + '    s += q + sgl.select("k", ["no", "not sure"])\n    s += s["kk"]\n')
    assert "SGL202" in run_sglc("check", str(file), "--select", "SGL2").stdout
    assert "SGL101" not in run_sglc("check", str(file), "--select", "SGL2").stdout
    assert run_sglc("check", str(file), "--ignore", "SGL1", "--ignore", "SGL202").stdout == "nothing found\n"


def test_examples_of_the_project_have_no_errors(run_sglc: Run) -> None:
    done = run_sglc(
        "check", str(Path(__file__).parents[2] / "examples"), "--select", "SGL101", "--select", "SGL201"
    )
    assert done.returncode == 0, done.stdout + done.stderr
