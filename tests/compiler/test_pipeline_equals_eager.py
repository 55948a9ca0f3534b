"""Random programs: compiled = interpreted = evaluate() of the traced graph, with the same calls."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

import sglc as sgl
from runtime.api import Constraint, Generate, Score, TextSegment, render
from sglc.errors import RunError
from sglc.exec.session import Session
from sglc.ir.core import Graph
from sglc.ir.evaluate import ModelCall, evaluate
from sglc.ir.ops import Gen, Join, RoleBegin, RoleEnd, Select, Text
from sglc.ir.parser import parse_module
from sglc.ir.specs import RUN_DEFAULTS, GenSpec
from sglc.lang.chat_template import get_chat_template
from sglc.lang.choices import METHODS, decide
from sglc.passes.base import Pass, Report, passes
from sglc.passes.pipeline import Pipeline
from tests.modules import module_of

PROGRAMS = 1000
BRANCHING = 350
SAME_CALLS = "canonicalize,merge-forks,hoist-prefix,canonicalize"  # other passes may leave calls out
A_FILE = 50


class Writer:
    """Writes the source of one random program, all of whose reads are of variables that exist."""

    def __init__(self, rng: random.Random, name: str, callees: list[str], *, branching: bool = False) -> None:
        self.branching = branching
        self.rng = rng
        self.name = name
        self.callees = callees
        self.lines: list[str] = []
        self.count = 0
        self.budget = 14

    def source(self) -> str:
        self.lines = ["@sgl.function", f'def {self.name}(s, a, b="bee", k={self.rng.randint(1, 3)}):']
        strings = ["a", "b"]
        self.block("s", strings, set(), 1, False)
        if self.rng.random() < 0.3:
            self.line(1, f"return {self.rng.choice(strings)}, k")
        elif self.rng.random() < 0.3:
            self.line(1, f"return {self.rng.choice(strings)}.strip()")
        return "\n".join([*self.lines, "    pass", ""])

    def line(self, depth: int, text: str) -> None:
        self.lines.append("    " * depth + text)

    def fresh(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def literal(self) -> str:
        return repr(self.rng.choice(["Q: ", "tell me\n", "Ünï ", "A" * 20, " and ", "x", "", "Tip "]))

    def string(self, strings: list[str]) -> str:
        name = self.rng.choice(strings)
        return self.rng.choice(
            [
                name,
                name,
                self.literal(),
                f"{self.literal()} + {name}",
                f'f"<{{{name}}}|{{k + 1}}>"',
                f'f"{{{name}:>7}}"',
                f"{name}.lower()",
                f"{name}.strip()",
                f'{name}.replace("w", "v")',
                f'{name}.split("w")[0]',
                f'", ".join([{name}, {self.rng.choice(strings)}])',
                f"{name}[:4]",
            ]
        )

    def gen(self, known: set[str], name: str | None = None) -> str:
        name = name or self.fresh("v")
        known.add(name)
        fields = self.rng.choice(
            [
                "",
                ", temperature=0",
                ", max_tokens=3",
                ', stop="w1"',
                ", temperature=0.5, top_p=0.9",
                ", seed=7",
                ", dtype=int",
            ]
        )
        return f'sgl.gen("{name}"{fields})'

    def block(
        self, s: str, strings: list[str], known: set[str], depth: int, in_role: bool, nested: int = 0
    ) -> None:
        for _ in range(self.rng.randint(1, 5)):
            if self.budget <= 0:
                return
            self.budget -= 1
            kinds = ["text", "text", "asks", "asks", "select", "read", "scope", "set", "many"]
            if not in_role:
                kinds += ["message", "with_role", "markers", "call"]
            if nested < 2:
                kinds += ["fork", "fork"]
            if self.branching and nested < 3:
                kinds += ["branch"] * 4 + ["rounds", "until"]
            getattr(self, self.rng.choice(kinds))(s, strings, known, depth, in_role, nested)

    def text(self, s: str, strings: list[str], known: set[str], depth: int, *_: Any) -> None:
        self.line(depth, f"{s} += {self.string(strings)}")

    def asks(self, s: str, strings: list[str], known: set[str], depth: int, *_: Any) -> None:
        self.line(depth, f"{s} += {self.string(strings)} + {self.gen(known)}")

    def select(self, s: str, strings: list[str], known: set[str], depth: int, *_: Any) -> None:
        name = self.fresh("v")
        known.add(name)
        form = self.rng.choice(
            [
                f'sgl.select("{name}", ["yes", "no", "maybe"])',
                f'sgl.gen("{name}", choices=["up", "down"])',
                f'sgl.select("{name}", ["l", "r"], choices_method=sgl.greedy_token_selection)',
            ]
        )
        self.line(depth, f"{s} += {form}")

    def many(self, s: str, strings: list[str], known: set[str], depth: int, *_: Any) -> None:
        name = self.fresh("n")
        self.line(depth, f'{s} += sgl.gen("{name}", n=2, max_tokens=4)')
        self.line(depth, f'{s} += {s}["{name}"][1]')

    def read(self, s: str, strings: list[str], known: set[str], depth: int, *_: Any) -> None:
        if known:
            name = self.rng.choice(sorted(known))
            variable = self.fresh("t")
            self.line(depth, f'{variable} = {s}["{name}"]')
            strings.append(variable)

    def set(self, s: str, strings: list[str], known: set[str], depth: int, *_: Any) -> None:
        name = self.fresh("set")
        self.line(depth, f'{s}["{name}"] = {self.string(strings)}')
        known.add(name)

    def scope(
        self, s: str, strings: list[str], known: set[str], depth: int, in_role: bool, nested: int
    ) -> None:
        name = self.fresh("scope")
        self.line(depth, f'with {s}.var_scope("{name}"):')
        self.line(depth + 1, f"{s} += {self.string(strings)}")
        if self.rng.random() < 0.6:
            self.line(depth + 1, f"{s} += {self.gen(known)}")
        known.add(name)

    def message(self, s: str, strings: list[str], known: set[str], depth: int, *_: Any) -> None:
        role = self.rng.choice(["system", "user", "assistant"])
        inner = self.gen(known) if role == "assistant" else self.string(strings)
        self.line(depth, self.rng.choice([f"{s} += sgl.{role}({inner})", f"{s}.{role}({inner})"]))

    def with_role(
        self, s: str, strings: list[str], known: set[str], depth: int, in_role: bool, nested: int
    ) -> None:
        self.line(depth, f"with {s}.{self.rng.choice(['user', 'assistant'])}():")
        self.line(depth + 1, f"{s} += {self.string(strings)}")
        self.block(s, strings, known, depth + 1, True, 2)

    def markers(self, s: str, strings: list[str], known: set[str], depth: int, *_: Any) -> None:
        role = self.rng.choice(["user", "assistant"])
        self.line(
            depth,
            f"{s} += sgl.{role}_begin() + {self.string(strings)} + {self.gen(known)} + sgl.{role}_end()",
        )

    def call(self, s: str, strings: list[str], known: set[str], depth: int, *_: Any) -> None:
        if not self.callees:
            return
        callee, name = self.rng.choice(self.callees), self.fresh("r")
        sampling = self.rng.choice(["", ", temperature=0", ", max_new_tokens=2"])
        self.line(depth, f"{name} = {callee}({self.string(strings)}{sampling})")
        self.line(depth, f"{s} += {name}.text()")

    def asked(self, s: str, known: set[str], depth: int) -> str:
        """A choice, and a condition on it."""
        name = self.fresh("v")
        self.line(depth, f'{s} += sgl.select("{name}", ["yes", "no", "maybe"])')
        known.add(name)
        value = f'{s}["{name}"]'
        return self.rng.choice(
            [
                f'{value} == "yes"',
                f'{value} != "no"',
                f'{value} in ("no", "maybe")',
                f'not {value}.startswith("m")',
                f'{value} == "yes" or {value} == "maybe"',
                f'{{"yes": 1, "no": 0, "maybe": 0}}[{value}]',
            ]
        )

    def condition(self, s: str, strings: list[str], known: set[str], depth: int) -> str:
        if self.rng.random() < 0.7:
            return self.asked(s, known, depth)
        name, variable = self.fresh("v"), self.fresh("t")
        self.line(depth, f"{s} += {self.gen(known, name)}")
        self.line(depth, f'{variable} = {s}["{name}"]')
        strings.append(variable)
        digit = self.rng.randint(1, 9)
        return self.rng.choice(
            [
                f'"{digit}" in {variable}',
                f'{variable}.strip() < "w{digit}"',
                f'{variable}.endswith("{digit}")',
            ]
        )

    def branch(
        self, s: str, strings: list[str], known: set[str], depth: int, in_role: bool, nested: int
    ) -> None:
        self.line(depth, f"if {self.condition(s, strings, known, depth)}:")
        arms: list[set[str]] = []
        for head in ("", f"{s} += " + self.literal(), "else:" if self.rng.random() < 0.6 else ""):
            if head == "else:":
                self.line(depth, head)
            elif head or arms:
                continue
            inside = set(known)
            self.line(depth + 1, f"{s} += {self.literal()}")
            self.block(s, list(strings), inside, depth + 1, in_role, nested + 1)
            if s == "s" and not in_role and nested == 0 and self.rng.random() < 0.1:
                self.line(depth + 1, "return a + str(k)")
            arms.append(inside)
        if len(arms) == 2:
            known |= arms[0] & arms[1]

    def rounds(
        self, s: str, strings: list[str], known: set[str], depth: int, in_role: bool, nested: int
    ) -> None:
        index = self.fresh("i")
        self.line(depth, f"for {index} in range({self.rng.randint(1, 3)}):")
        self.line(depth + 1, f'{s} += f"round {{{index}}} "')
        self.block(s, list(strings), set(known), depth + 1, in_role, nested + 2)
        self.line(depth + 1, f"if {self.asked(s, set(), depth + 1)}:")
        self.line(depth + 2, "break")

    def until(
        self, s: str, strings: list[str], known: set[str], depth: int, in_role: bool, nested: int
    ) -> None:
        name = self.fresh("v")
        known.add(name)
        ask = f'{s} += sgl.select("{name}", ["on", "done"])'
        self.line(depth, ask)
        self.line(depth, f'while {s}["{name}"] == "on":')
        self.line(depth + 1, f"{s} += {self.literal()} + {self.gen(set())}")
        self.block(s, list(strings), set(known), depth + 1, in_role, nested + 3)
        self.line(depth + 1, ask)

    def fork(
        self, s: str, strings: list[str], known: set[str], depth: int, in_role: bool, nested: int
    ) -> None:
        group, child, index = self.fresh("g"), self.fresh("f"), self.fresh("i")
        size = self.rng.randint(1, 3)
        own = set(known)
        before = list(strings)
        self.line(depth, f"{group} = {s}.fork({size})")
        self.line(depth, f"for {index}, {child} in enumerate({group}):")
        self.line(depth + 1, f"{child} += {self.literal()}")
        self.line(depth + 1, f'{child} += f"branch {{{index}}}: " + {self.gen(own)}')
        self.block(child, strings, own, depth + 1, in_role, nested + 1)
        strings[:] = before
        mode = self.rng.random()
        if mode < 0.4:
            self.line(depth, f"{group}.join()")
            name = self.rng.choice(sorted(n for n in own - known if n[0] == "v"))
            self.line(depth, f'{s} += {s}["{name}"][0]')
        elif mode < 0.6:
            self.line(depth, f'{group}.join("concate_and_append")')
        elif mode < 0.8:
            name = self.rng.choice(sorted(own))
            self.line(depth, f'{s} += {group}[0]["{name}"]')


def write(seed: int, name: str, *, branching: bool = False) -> str:
    rng = random.Random(seed)
    callees: list[str] = []
    sources = []
    if rng.random() < 0.3:
        sources.append(Writer(rng, f"{name}_inner", [], branching=branching).source())
        callees.append(f"{name}_inner")
    sources.append(Writer(rng, name, callees, branching=branching).source())
    return "\n\n".join(sources)


def programs(folder: Path, first: int, count: int, *, branching: bool = False) -> Iterator[tuple[int, Any]]:
    path = folder / f"random_programs_{first}.py"
    names = {seed: f"program_{seed}" for seed in range(first, first + count)}
    path.write_text(
        "import sglc as sgl\n\n\n" + "\n\n".join(write(s, n, branching=branching) for s, n in names.items()),
        encoding="utf-8",
    )
    module = module_of(path)
    for seed, name in names.items():
        yield seed, getattr(module, name)


def scripted(seed: int) -> sgl.Scripted:
    from runtime.backends.base import Capabilities

    able = Capabilities(
        name="scripted", score=True, prefill=True, tokens=True, samples=True, constraints=frozenset({"regex"})
    )
    return sgl.Scripted(
        capabilities=able, chat_template=["default", "chatml", "llama-2-chat", "qwen"][seed % 4]
    )


def calls(backend: sgl.Scripted) -> Counter[Any]:
    found: Counter[Any] = Counter()
    for call in backend.calls:
        if isinstance(call, Generate):
            found[(repr(call.prompt), repr(call.sampling))] += 1
        else:
            found[(repr(call.prompt), call.choices, call.unconditional)] += 1
    return found


def more_calls(two: sgl.Scripted, one: sgl.Scripted) -> Counter[Any]:
    """What `two` was asked beyond `one`, which may still be asked for branches that nobody waits for."""
    for _ in range(200):
        if not (found := calls(two) - calls(one)):
            break
        time.sleep(0.02)
    return found


def seen(state: Any) -> dict[str, Any]:
    return {
        "text": state.text(),
        "messages": state.messages(),
        "variables": state.sink.variables(),
        "result": state.ret_value,
        "error": str(state.error()),
    }


@pytest.mark.parametrize("first", range(0, PROGRAMS, A_FILE))
def test_compiled_equals_interpreted(first: int, tmp_path: Path) -> None:
    for seed, program in programs(tmp_path, first, A_FILE):
        one, two = scripted(seed), scripted(seed)
        arguments = {"a": f"argument {seed}", **({"k": 2} if seed % 3 else {})}
        expected = seen(program.run(**arguments, backend=one))
        three = scripted(seed)
        compiled = program.compile(verify=True)
        found = seen(compiled.run(**arguments, backend=two))
        source = write(seed, f"program_{seed}")
        assert not compiled.breaks, f"{compiled.breaks}\n{source}"
        assert found == expected, source
        assert not more_calls(two, one), source
        assert seen(program.compile(passes=SAME_CALLS).run(**arguments, backend=three)) == expected, source
        assert calls(three) == calls(one), source
        for module in compiled.modules():
            assert str(parse_module(str(module))) == str(module)


@pytest.mark.parametrize("first", range(20_000, 20_000 + BRANCHING, A_FILE))
def test_conditions_and_loops_go_the_same_way(first: int, tmp_path: Path) -> None:
    interpreted = 0
    for seed, program in programs(tmp_path, first, A_FILE, branching=True):
        compiled = program.compile(verify=True)
        source = write(seed, f"program_{seed}", branching=True)
        for row in range(3):
            one, two = scripted(seed % 2), scripted(seed % 2)
            arguments = {"a": f"argument {seed} {row}"}
            expected = seen(program.run(**arguments, backend=one))
            found = seen(compiled.run(**arguments, backend=two))
            assert found == expected, source
            assert compiled.breaks or not more_calls(two, one), source
        interpreted += bool(compiled.breaks)
        for module in compiled.modules():
            assert str(parse_module(str(module))) == str(module)
    assert interpreted <= A_FILE // 5, f"{interpreted} of {A_FILE} programs are not compiled"


@pytest.mark.parametrize("first", range(0, 200, A_FILE))
def test_the_traced_graph_means_the_same(first: int, tmp_path: Path) -> None:
    for seed, program in programs(tmp_path, first, A_FILE):
        backend = text_only(seed)
        expected = seen(program.run("argument", backend=backend))
        template = get_chat_template(backend.model.chat_template or "default")

        def model(call: ModelCall, backend: Any = backend, template: Any = template) -> Any:
            prompt = (TextSegment(call.prompt),)
            if not isinstance(call.node, Gen):
                scores = asyncio.run(backend.score(Score(prompt=prompt, choices=call.choices)))
                return decide(METHODS[call.node.method], call.choices, scores).decision
            constraint = Constraint("regex", "x") if call.node.constraint else None
            spec = GenSpec(None, call.sampling, constraint, call.node.dtype, call.node.n)
            request = Session(backend, template, RUN_DEFAULTS).request(spec, prompt, None, None)
            texts = [backend.answer(request, k)[0] for k in range(call.node.n or 1)]
            return texts[0] if call.node.n is None else texts

        module = program.trace(k=program.defaults()["k"])
        outcome = evaluate(module, model, {"a": "argument", "b": "bee"}, template, RUN_DEFAULTS)
        assert outcome.text == expected["text"]
        assert outcome.variables == expected["variables"]
        assert [{"role": r, "content": c} for r, c in outcome.messages] == expected["messages"]
        assert outcome.result == expected["result"]


def text_only(seed: int) -> sgl.Scripted:
    """A backend whose answers depend on the text alone, not on how it was cut into tokens, nor on constraints."""

    class Plain(sgl.Scripted):
        def answer(self, request: Generate, index: int) -> Any:
            sampling = msgspec.structs.replace(request.sampling, constraint=None)
            plain = msgspec.structs.replace(
                request, prompt=(TextSegment(render(request.prompt)),), sampling=sampling
            )
            return super().answer(plain, index)

    able = scripted(seed).capabilities
    return Plain(capabilities=able, chat_template=scripted(seed).model.chat_template)


def test_many_rows_are_the_same_as_one_at_a_time(tmp_path: Path) -> None:
    for seed, program in programs(tmp_path, 5000, 20):
        rows = [{"a": f"row {k}", "b": f"b{k % 3}"} for k in range(7)]
        one, two = scripted(seed), scripted(seed)
        expected = [seen(program.run(**row, backend=one)) for row in rows]
        states = program.compile(passes=SAME_CALLS).run_batch(rows, backend=two)
        assert [seen(s) for s in states] == expected
        assert calls(two) == calls(one)


def test_streams_give_the_same_text(tmp_path: Path) -> None:
    for seed, program in programs(tmp_path, 6000, 20):
        expected = program.run("argument", backend=scripted(seed))
        state = program.compile().run("argument", backend=scripted(seed), stream=True)
        assert "".join(state.text_iter()) == expected.text()
        assert "".join(state.text_iter()) == expected.text()
        assert state.messages() == expected.messages()


def test_every_pass_alone(tmp_path: Path) -> None:
    for name in passes():
        for seed, program in programs(tmp_path, 7000, 25):
            one, two = scripted(seed), scripted(seed)
            expected = seen(program.run("argument", backend=one))
            found = seen(program.compile(passes=name, verify=True).run("argument", backend=two))
            assert found == expected, name
            assert not calls(two) - calls(one), name


class Stripping(Pass, name="stripping"):
    """Wrong: drops blanks at the end of text."""

    def run(self, graph: Graph, report: Report) -> Graph:
        def change(part: Any) -> Any:
            return part.rstrip(" ") if isinstance(part, str) else part

        return graph.with_nodes(
            [replace(n, parts=tuple(map(change, n.parts))) if isinstance(n, Text) else n for n in graph.nodes]
        )


class Unscoped(Pass, name="unscoped"):
    """Wrong: gives a gen the name of its neighbour."""

    def run(self, graph: Graph, report: Report) -> Graph:
        return graph.with_nodes([replace(n, name="v1") if isinstance(n, Gen) else n for n in graph.nodes])


class Sorted(Pass, name="sorted"):
    """Wrong: joins branches in another order."""

    def run(self, graph: Graph, report: Report) -> Graph:
        return graph.with_nodes(
            [replace(n, branches=n.branches[::-1]) if isinstance(n, Join) else n for n in graph.nodes]
        )


class Greedy(Pass, name="greedy"):
    """Wrong: forgets the temperature of a gen."""

    def run(self, graph: Graph, report: Report) -> Graph:
        return graph.with_nodes(
            [
                replace(n, sampling=replace(n.sampling, temperature=None)) if isinstance(n, Gen) else n
                for n in graph.nodes
            ]
        )


class Roleless(Pass, name="roleless"):
    """Wrong: every message is the user's."""

    def run(self, graph: Graph, report: Report) -> Graph:
        return graph.with_nodes(
            [replace(n, role="user") if isinstance(n, (RoleBegin, RoleEnd)) else n for n in graph.nodes]
        )


class Lonely(Pass, name="lonely"):
    """Wrong: a choice less."""

    def run(self, graph: Graph, report: Report) -> Graph:
        return graph.with_nodes(
            [replace(n, choices=n.choices[:1]) if isinstance(n, Select) else n for n in graph.nodes]
        )


@pytest.mark.parametrize(
    "wrong", [Stripping, Unscoped, Sorted, Greedy, Roleless, Lonely], ids=lambda w: w.name
)
def test_wrong_passes_are_caught(wrong: type[Pass], tmp_path: Path) -> None:
    for seed, program in programs(tmp_path, 8000, 40):
        one, two = scripted(seed), scripted(seed)
        expected = seen(program.run("argument", backend=one))
        compiled = program.compile()
        compiled.pipeline = Pipeline((wrong(),))
        try:
            found = seen(compiled.run("argument", backend=two))
        except (RunError, KeyError, IndexError):
            return
        if found != expected or calls(one) != calls(two):
            return
    pytest.fail(f"no program shows that {wrong.name} is wrong")
