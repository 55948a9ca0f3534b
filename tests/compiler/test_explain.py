"""What a run costs before it runs, `sglc explain`, `sglc diff`, and pictures."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sglc as sgl
from runtime.api import render
from runtime.backends.scripted import Scripted
from runtime.config import embedded_model_path
from sglc.check import Tokens
from sglc.exec.session import Session
from sglc.ir.mermaid import to_mermaid
from sglc.ir.svg import to_svg
from sglc.lang.chat_template import get_chat_template
from sglc.lang.program import Program
from sglc.lang.trace import trace
from sglc.passes.pipeline import DEFAULT, Pipeline
from sglc.plan.answers import answer_lengths
from sglc.plan.cost import costs
from sglc.plan.interval import Interval
from sglc.plan.sizes import Sizes
from tests.modules import module_of

Run = Callable[..., subprocess.CompletedProcess[str]]
EXAMPLES = Path(__file__).parents[2] / "examples"


def programs() -> list[tuple[str, Program]]:
    found: list[tuple[str, Program]] = []
    for file in sorted(EXAMPLES.glob("*.py")):
        module = module_of(file, f"explained_{file.stem}")
        found += [(f"{file.stem}.{n}", p) for n, p in vars(module).items() if isinstance(p, Program)]
    return found


ALL = programs()


@pytest.fixture(scope="module")
def engine() -> Iterator[sgl.Engine]:
    with sgl.Engine() as engine:
        yield engine


@pytest.mark.parametrize(("name", "program"), ALL, ids=[n for n, _ in ALL])
def test_bounds_hold_what_is_measured(
    name: str, program: Program, engine: sgl.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    used = {"prompt": 0, "computed": 0, "output": 0}
    submit, score = Session.submit, Session.score

    def submitted(self: Session, request: Any, receive: Any) -> None:
        calls.append("gen")

        def seen(delta: Any) -> None:
            if not isinstance(delta, BaseException) and delta.finish is not None:
                used["prompt"] += delta.usage.prompt_tokens
                used["computed"] += delta.usage.prompt_tokens - delta.usage.cached_tokens
                used["output"] += delta.usage.completion_tokens
            receive(delta)

        submit(self, request, seen)

    def scored(self: Session, request: Any, receive: Any) -> None:
        calls.append("select")
        score(self, request, receive)

    monkeypatch.setattr(Session, "submit", submitted)
    monkeypatch.setattr(Session, "score", scored)
    arguments = {
        n: program.defaults().get(n, "What is the capital of Spain?") for n in program.parameter_names
    }
    program.compile().run(**arguments, backend=engine).sync()
    unknown = frozenset(n for n, v in arguments.items() if type(v) is str)
    module = Pipeline.parse(DEFAULT).run(trace(program, arguments, unknown))
    template = get_chat_template("chatml")
    tokens = Tokens()
    lengths = answer_lengths(module, tokens.compiled)
    found = costs(module, tokens.bound, template, arguments, answers=lengths)
    assert calls and len(calls) in found.total.calls
    assert used["output"] in found.total.output
    if "select" not in calls:
        assert used["prompt"] in found.total.prompt, found
        assert used["computed"] in found.total.computed, found
        assert found.total.prompt.high is not None
    with_lines = [at for at in found.lines if at is not None and at.file.endswith(".py")]
    assert len(with_lines) == len(found.lines)


def test_loops_and_arms_are_bounded_by_their_worst(tmp_path: Path) -> None:
    @sgl.function
    def program(s, q):  # type: ignore[no-untyped-def]
        s += q + sgl.select("k", ["a", "b"])
        if s["k"] == "a":
            s += sgl.gen("x", max_tokens=10)
        else:
            s += sgl.gen("x", max_tokens=30) + sgl.gen("y", max_tokens=5)

    found = costs(
        trace(program, {"q": "hi"}, frozenset({"q"})),
        Tokens().bound,
        get_chat_template("chatml"),
        {"q": "hi"},
    )
    assert (found.total.calls, found.total.output) == (Interval(2, 3), Interval(0, 35))


@given(
    st.lists(st.tuples(st.integers(0, 50), st.one_of(st.none(), st.integers(50, 90))), min_size=1, max_size=5)
)
@settings(max_examples=50, deadline=None)
def test_hulls_and_sums_contain_their_parts(pairs: list[tuple[int, int | None]]) -> None:
    found = [Interval(low, high) for low, high in pairs]
    total = hull = found[0]
    for item in found[1:]:
        total, hull = total + item, hull.hull(item)
    assert sum(i.low for i in found) in total
    assert all(i.low in hull and (i.high is None or i.high in hull) for i in found)


CHANGING = """import sglc as sgl


@sgl.function
def inner(s, q):
    s += q + sgl.gen("in", max_tokens=4)
    return s["in"]


@sgl.function
def outer(s, q):
    s += q + sgl.select("kind", ["bug", "wish", "other"])
    if s["kind"] == "bug":
        s += "Steps:" + sgl.gen("steps", max_tokens=6) + "Really?" + sgl.gen("sure", max_tokens=2)
    elif s["kind"] == "wish":
        s += inner("Why?")["in"]
    for _ in range(3):
        s += "More?" + sgl.select("more", ["yes", "no"])
        if s["more"] == "no":
            break
        s += sgl.gen("what", max_tokens=5)
    forks = s.fork(2)
    for f in forks:
        f += "Mark:" + sgl.gen("mark", max_tokens=2)
    forks.join()
"""


def test_calls_of_every_path_are_within_the_bounds(tmp_path: Path) -> None:
    file = tmp_path / "changing.py"
    file.write_text(CHANGING)
    module = module_of(file)
    traced = trace(module.outer, {}, frozenset({"q"}))
    count, template = Tokens().count, get_chat_template("chatml")
    seen: set[int] = set()
    for number in range(24):
        found = costs(traced, Tokens().bound, template, {"q": f"Mail {number}"}).total
        backend = Scripted()
        module.outer.run(q=f"Mail {number}", backend=backend).sync()
        assert len(backend.calls) in found.calls
        prompts = sum(count(render(c.prompt)) for c in backend.calls)
        assert found.prompt.low <= prompts
        seen.add(len(backend.calls))
    assert len(seen) >= 3  # paths of different length were taken
    assert found.calls == Interval(4, 11) and found.output == Interval(0, 27)


@sgl.function
def quoting(s: Any, q: str) -> None:
    s += "Begin. "
    with s.var_scope("all"):
        s += q + sgl.gen("a", max_tokens=10)
    forks = s.fork(2)
    for k, fork in enumerate(forks):
        with fork.var_scope("part"):
            fork += f"Part {k}: " + sgl.gen("b", max_tokens=7)
    forks.join()
    s += "Again: " + s["all"] + forks[0]["part"] + sgl.gen("c", max_tokens=5)
    s += f"First: {s['c'].split(',')[0]}" + sgl.gen("d", max_tokens=4)


def test_texts_of_scopes_and_parts_of_answers_are_bounded() -> None:
    count = Tokens().count
    for number in range(12):
        question = f"Question {number} " * number
        traced = trace(quoting, {}, frozenset({"q"}))
        found = costs(traced, Tokens().bound, get_chat_template("chatml"), {"q": question}).total
        backend = Scripted(length=1 + number % 4)
        quoting.run(q=question, backend=backend).sync()
        assert found.prompt.high is not None
        assert sum(count(render(c.prompt)) for c in backend.calls) in found.prompt


@pytest.fixture(scope="module")
def graphs() -> ModuleType:
    """The generator of random graphs, which is another test's."""
    return module_of(Path(__file__).with_name("test_pass_properties.py"), "graphs_explained")


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs_stay_within_their_bounds_and_can_be_drawn(seed: int, graphs: ModuleType) -> None:
    """Tokens are characters here, and the model is a hash of its prompt."""
    module = graphs.random_module(seed)
    arguments = {p.name: f"<{p.name}>" for p in module.graph.params}
    whole = costs(module, Sizes.bound(len), graphs.Plain(), arguments)
    found, room = whole.total, [r.high for r in whole.room.values()]
    _, calls = graphs.outcome(module)
    assert sum(calls.values()) in found.calls
    assert sum(len(key[0]) * number for key, number in calls.items()) in found.prompt
    assert (
        not calls
        or None in room
        or max(len(key[0]) for key in calls) <= max(h for h in room if h is not None)
    )
    assert_tidy(ElementTree.fromstring(to_svg(module.graph)))
    assert to_mermaid(module.graph).startswith("flowchart TD\n")


def test_explain_prints_passes_lines_and_money(tmp_path: Path, run_sglc: Run) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text("[small]\ninput = 1.0\noutput = 4.0\n")
    done = run_sglc("explain", str(EXAMPLES / "tips.py"), "--prices", str(prices))
    assert done.returncode == 0, done.stderr
    assert "hoist-prefix" in done.stdout and "in all" in done.stdout and "small: " in done.stdout
    data = json.loads(run_sglc("explain", str(EXAMPLES / "tips.py"), "--json").stdout)
    assert data["total"]["calls"] == [3, 3] and data["total"]["output"] == [0, 256]
    assert data["total"]["computed"][1] < data["computed_before"][1]  # hoisted text is computed once
    assert [c["name"] for c in data["critical_path"]] == ["detailed_tip", "summary"]
    as_json = tmp_path / "prices.json"
    as_json.write_text('{"small": {"input": 1, "output": 4}}')
    assert "small: " in run_sglc("explain", str(EXAMPLES / "tips.py"), "--prices", str(as_json)).stdout
    bad = run_sglc("explain", str(EXAMPLES / "tips.py"), "--prices", str(tmp_path / "none.toml"))
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1


def test_explain_tells_where_the_graph_breaks(tmp_path: Path, run_sglc: Run) -> None:
    (tmp_path / "p.py").write_text(ONE + '    print(s["a"])\n')
    done = run_sglc("explain", str(tmp_path / "p.py"))
    assert done.returncode == 0 and f"graph break at {tmp_path}/p.py:8: " in done.stdout, done.stderr
    (found,) = json.loads(run_sglc("explain", str(tmp_path / "p.py"), "--json").stdout)["breaks"]
    assert found["at"] == f"{tmp_path}/p.py:8" and "print" in found["reason"]


BREAKS = """import sglc as sgl


@sgl.function
def tips(s, q):
    s += sgl.system("You are helpful, and know much.")
    s += sgl.user(q)
    s += sgl.assistant(sgl.gen("a", max_tokens=30))
    forks = s.fork(2)
    for k, f in enumerate(forks):
        f += sgl.user("Give a tip, number " + str(k))
        f += sgl.assistant(sgl.gen("tip", max_tokens=10))
    forks.join()
    print(s["a"])
    s += sgl.user("More!")
    s += sgl.assistant(sgl.gen("b", max_tokens=40))
"""


def test_explain_tells_what_is_known_before_the_break(tmp_path: Path, run_sglc: Run) -> None:
    (tmp_path / "p.py").write_text(BREAKS)
    data = json.loads(run_sglc("explain", str(tmp_path / "p.py"), "-D", "q=Why?", "--json").stdout)
    assert data["total"]["calls"] == [3, None] and data["total"]["output"] == [0, None]
    assert [p["pass"] for p in data["passes"]] == ["canonicalize", "inline"]  # what such a run is made with
    assert [line["calls"] for line in data["lines"]] == [[1, 1], [2, 2]]
    assert data["lines"][1]["output"] == [0, 20]
    assert data["nominal"]["computed"] <= data["nominal"]["prompt"]
    done = run_sglc("explain", str(tmp_path / "p.py"), "-D", "q=Why?")
    assert "at least 3" in done.stdout and "is not counted below" in done.stdout
    wrong = run_sglc("explain", str(tmp_path / "p.py"), "-D", "p=Why?")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1


def test_explain_tells_what_is_kept_of_each_constraint(tmp_path: Path, run_sglc: Run) -> None:
    (tmp_path / "p.py").write_text(
        ONE.replace('stop="\\n"', 'regex="[0-9]{4}-x"')
        + '    s += sgl.gen("r", json_schema=\'{"type": "string", "format": "colour"}\')\n'
    )
    date, colour = json.loads(run_sglc("explain", str(tmp_path / "p.py"), "--json").stdout)["constraints"]
    assert (date["kind"], date["exact"], date["shortest"][4:]) == ("regex", True, "-x")
    assert 1 <= date["tokens"][0] <= date["tokens"][1] <= 6 and "engine" in date["kept_by"]
    assert not colour["exact"] and "colour" in colour["refused"]
    shown = run_sglc("explain", str(tmp_path / "p.py")).stdout
    assert "regex [0-9]{4}-x" in shown and f"refused at {tmp_path}/p.py:8: #/format: " in shown


def test_explain_fits_narrow_terminals(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(BREAKS)
    command = [sys.executable, "-m", "sglc.cli", "explain", str(tmp_path / "p.py")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "64"}
    )
    rows = done.stdout[done.stdout.index("prompt tokens") :].splitlines()
    assert any(row.startswith("8 ") and "0 to 30" in row for row in rows), done.stdout
    assert "…" not in done.stdout


def test_diff_compares_what_comes_before_a_break(tmp_path: Path, run_sglc: Run) -> None:
    (tmp_path / "one.py").write_text(BREAKS)
    (tmp_path / "two.py").write_text(
        BREAKS.replace("much", "little").replace("max_tokens=10", "max_tokens=20")
    )
    (tmp_path / "three.py").write_text(BREAKS.replace('    print(s["a"])\n', ""))
    done = run_sglc("diff", str(tmp_path / "one.py"), str(tmp_path / "two.py"))
    assert done.returncode == 0 and "A: compared up to the graph break in line 14: print" in done.stdout
    assert "call tip: max_tokens 10 -> 20\n" in done.stdout and done.stdout.count("call tip") == 1
    assert "text + 'You are helpful, and know little.'" in done.stdout
    mended = run_sglc("diff", str(tmp_path / "one.py"), str(tmp_path / "three.py"), "-D", "q=Why?")
    assert "graph break: line 14: " in mended.stdout and "-> none" in mended.stdout
    assert "call + b\n" in mended.stdout and "calls: at least 3 -> 4\n" in mended.stdout
    unknown = run_sglc("diff", str(tmp_path / "one.py"), str(tmp_path / "two.py"), "-D", "question=Why?")
    assert unknown.returncode == 2 and "neither version has an argument 'question'" in unknown.stderr


ONE = """import sglc as sgl


@sgl.function
def ask(s, q):
    s += "You are a careful assistant, and you answer in one sentence.\\n"
    s += "Q: " + q + "\\nA:" + sgl.gen("a", max_tokens=30, stop="\\n")
"""


def test_diff_tells_prompts_fields_prefix_and_cost(tmp_path: Path, run_sglc: Run) -> None:
    (tmp_path / "one.py").write_text(ONE)
    (tmp_path / "two.py").write_text(
        ONE.replace("careful", "careless").replace(', stop="\\n"', "").replace("max_tokens=30", "max_tokens=60")
        .replace('s += "You', 's += q + "You')
    )  # fmt: skip
    same = run_sglc("diff", str(tmp_path / "one.py"), str(tmp_path / "one.py"), "--exit-code")
    assert (same.returncode, same.stdout) == (0, "no difference\n")
    done = run_sglc("diff", str(tmp_path / "one.py"), str(tmp_path / "two.py"), "--exit-code")
    assert done.returncode == 1, done.stderr
    for told in (
        "careless",
        "call a: max_tokens 30 -> 60",
        "call a: stop ('\\n',) -> unset",
        "shared prefix: ",
        "new tokens: ",
    ):
        assert told in done.stdout, (told, done.stdout)


def test_diff_prints_json(tmp_path: Path, run_sglc: Run) -> None:
    (tmp_path / "one.py").write_text(ONE)
    (tmp_path / "two.py").write_text(ONE.replace('stop="\\n"', 'regex="[a-z]{2}"'))
    data = json.loads(run_sglc("diff", str(tmp_path / "one.py"), str(tmp_path / "two.py"), "--json").stdout)
    assert "constraint" not in data["before"]["calls"]["a"]
    assert data["after"]["calls"]["a"]["constraint"] == "regex [a-z]{2}"
    assert "call a: constraint none -> regex [a-z]{2}" in data["changes"]


def test_diff_reads_a_revision(tmp_path: Path, run_sglc: Run) -> None:
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    (tmp_path / "one.py").write_text(ONE)
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    (tmp_path / "one.py").write_text(ONE.replace("max_tokens=30", "max_tokens=31"))
    done = run_sglc("diff", "HEAD:one.py", "one.py", cwd=tmp_path)
    assert done.returncode == 0 and "call a: max_tokens 30 -> 31" in done.stdout, done.stderr


@pytest.mark.parametrize(("name", "program"), ALL, ids=[n for n, _ in ALL])
def test_pictures_are_well_formed(name: str, program: Program) -> None:
    unknown = frozenset(n for n in program.parameter_names if type(program.defaults().get(n, "")) is str)
    graph = trace(program, program.defaults(), unknown).graph
    root = ElementTree.fromstring(to_svg(graph))
    assert_tidy(root)
    text = to_mermaid(graph)
    assert text.startswith("flowchart TD\n")
    lines = [line.strip() for line in text.splitlines()]
    assert sum(line.startswith("subgraph ") for line in lines) == lines.count("end")


def assert_tidy(root: ElementTree.Element) -> None:
    """No box lies on another, and of frames and boxes one is in the other, or beside it; all are on the page."""
    rects = [e for e in root if e.tag.endswith("rect")]
    spots = [tuple(float(r.attrib[k]) for k in ("width", "height")) for r in rects[:1]]
    width, height = spots[0]
    seen: list[tuple[float, float, float, float, bool]] = []
    for rect in rects[1:]:
        left, top = float(rect.attrib["x"]), float(rect.attrib["y"])
        right, low = left + float(rect.attrib["width"]), top + float(rect.attrib["height"])
        assert 0 <= left < right <= width and 0 <= top < low <= height
        frame = rect.attrib.get("class") == "frame"
        for x, y, to_x, to_y, framed in seen:
            apart = right <= x or to_x <= left or low <= y or to_y <= top
            within = framed and x <= left and right <= to_x and y <= top and low <= to_y
            around = frame and left <= x and to_x <= right and top <= y and to_y <= low
            assert apart or within or around
        seen.append((left, top, right, low, frame))


def test_a_picture_has_a_frame_for_each_arm_and_loop(tmp_path: Path, run_sglc: Run) -> None:
    (tmp_path / "p.py").write_text(CHANGING)
    done = run_sglc("compile", str(tmp_path / "p.py:outer"), "--emit", "svg", "--passes", "canonicalize")
    root = ElementTree.fromstring(done.stdout)
    assert_tidy(root)
    frames = [r for r in root if r.attrib.get("class") == "frame"]
    ir = run_sglc("compile", str(tmp_path / "p.py:outer"), "--passes", "canonicalize").stdout
    assert len(frames) == 2 * ir.count("= if ") and len(frames) >= 4
    mermaid = run_sglc(
        "compile", str(tmp_path / "p.py:outer"), "--emit", "mermaid", "--passes", "canonicalize"
    ).stdout
    names = re.findall(r"subgraph (\S+)\[", mermaid)
    assert len(set(names)) == len(names) == len(frames) and all(name.isalnum() for name in names)


def test_compile_emits_and_refuses(tmp_path: Path, run_sglc: Run) -> None:
    tips = str(EXAMPLES / "tips.py")
    assert run_sglc("compile", tips, "--emit", "rt").stdout.startswith("{")
    assert run_sglc("compile", tips, "--emit", "svg").stdout.startswith("<svg")
    record = str(EXAMPLES / "json_record.py")
    done = run_sglc("compile", record, "--tokenizer", "tiny")
    assert done.returncode == 0 and ("min_tokens=" in done.stdout or "constraint" not in done.stdout), (
        done.stderr
    )
    (tmp_path / "r.py").write_text(ONE.replace('stop="\\n"', 'regex="[a-z]+"'))
    refused = run_sglc("compile", str(tmp_path / "r.py"), "--backend", "anthropic")
    assert refused.returncode == 2 and f"{tmp_path}/r.py:7" in refused.stderr and "regex" in refused.stderr
    kept = run_sglc("compile", str(tmp_path / "r.py"), "--tokenizer", "tiny")
    assert "states=" in kept.stdout and "min_tokens=1" in kept.stdout, kept.stderr
    assert embedded_model_path()
