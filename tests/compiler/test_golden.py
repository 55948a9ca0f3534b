"""Golden files: input above `// -----` (or `# -----`), the whole output below. `pytest --update-golden` rewrites them.

passes/<pass>/*.ir   first line names the pipeline; IR in, IR out
trace/*.py           a program; its IR as traced
plan/*.py            a program; its plan as text
errors/*.ir, *.py    the full text of the error
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sglc.errors import SglcError
from sglc.ir.parser import parse_module
from sglc.ir.verify import verify_module
from sglc.lang.chat_template import get_chat_template
from sglc.lang.program import Program
from sglc.lang.trace import trace
from sglc.passes.pipeline import DEFAULT, Pipeline
from sglc.plan.lower import lower
from sglc.plan.render import to_text
from tests.modules import module_of

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
CASES = sorted(p for p in GOLDEN.rglob("*") if p.suffix in (".ir", ".py") and p.parent.name != "arch")


def split(path: Path) -> tuple[str, str, str]:
    mark = "# -----\n" if path.suffix == ".py" else "// -----\n"
    above, _, below = path.read_text(encoding="utf-8").partition(mark)
    return above, mark, below


def program_of(path: Path) -> Program:
    module = module_of(path, f"golden_{path.stem.replace('-', '_')}")
    found = [v for v in vars(module).values() if isinstance(v, Program)]
    return found[-1]


def traced(program: Program) -> Any:
    defaults = program.defaults()
    return trace(
        program,
        defaults,
        frozenset(program.parameter_names) - {n for n, v in defaults.items() if type(v) is not str},
    )


def run_case(path: Path, text: str) -> str:
    kind = path.relative_to(GOLDEN).parts[0]
    if kind == "passes":
        pipeline = re.match(r"// passes: (.*)\n", text)
        assert pipeline is not None, f"{path}: the first line names the passes"
        return str(Pipeline.parse(pipeline[1]).run(parse_module(text), verify=True))
    if kind == "trace":
        return commented(str(traced(program_of(path))))
    if kind == "plan":
        module = Pipeline.parse(DEFAULT).run(traced(program_of(path)), verify=True)
        return commented(to_text(lower(module, get_chat_template("chatml"))))
    assert kind == "errors", kind
    with pytest.raises(SglcError) as caught:
        if path.suffix == ".ir":
            verify_module(parse_module(text))
        else:
            traced(program_of(path))
    shown = f"{type(caught.value).__name__}: {caught.value}\n".replace(str(GOLDEN) + "/", "")
    return commented(shown) if path.suffix == ".py" else shown


def commented(text: str) -> str:
    return "".join(f"# {line}\n" if line else "#\n" for line in text.splitlines())


@pytest.mark.parametrize("path", CASES, ids=[str(p.relative_to(GOLDEN)) for p in CASES])
def test_golden(path: Path, request: pytest.FixtureRequest) -> None:
    above, mark, below = split(path)
    found = run_case(path, above)
    if request.config.getoption("--update-golden"):
        path.write_text(above + mark + found, encoding="utf-8")
    else:
        assert found == below


def test_there_are_cases() -> None:
    kinds = {p.relative_to(GOLDEN).parts[0] for p in CASES}
    assert kinds >= {"passes", "trace", "plan", "errors"}
