"""`sglc diff`: what changed between two versions of a program, in prompts, constraints and cost."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sglc.cli.common import (
    Define,
    Mistake,
    chat_template,
    defined,
    near,
    one_program,
    optimised,
    tokenizer_folder,
    traced_for,
)
from sglc.cli.prices import FORM, prices_in
from sglc.plan.interval import Interval

if TYPE_CHECKING:
    from sglc.check import Tokens
    from sglc.ir.core import Module
    from sglc.plan.interval import Price

_COSTS = (
    ("calls", "calls"),
    ("prompt", "prompt tokens"),
    ("computed", "computed tokens"),
    ("output", "new tokens"),
)


def diff(
    before: Annotated[
        str, typer.Argument(metavar="A", help="FILE[:PROGRAM], or REVISION:FILE[:PROGRAM] of git.")
    ],
    after: Annotated[str, typer.Argument(metavar="B", help="The same, for the new version.")],
    define: Define = None,
    template: Annotated[str, typer.Option(help="Chat template of the model.")] = "chatml",
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of a model whose tokenizer counts tokens; else `tiny`.")
    ] = None,
    prices: Annotated[Path | None, typer.Option(help=FORM)] = None,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 1 if something changed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two versions: each call's prompt, fields and constraint, the shared beginning, and the cost.

    Of a program with a graph break, what comes before it is compared.
    """
    from sglc.check import Tokens

    chosen, rates = chat_template(template), prices_in(prices)
    tokens = Tokens(tokenizer_folder(tokenizer))
    with tempfile.TemporaryDirectory(prefix="sglc-diff-") as folder:
        places = [_file_of(which, Path(folder) / side) for side, which in (("a", before), ("b", after))]
        programs = [one_program(place) for place in places]
        _refuse_unknown(programs, define or [])
        one, two = (_facts(program, define or [], chosen, tokens, rates) for program in programs)
    changes = _changes(one, two)
    notes = [
        f"{side}: compared up to the graph break in {facts['break']}"
        for side, facts in (("A", one), ("B", two))
        if facts["break"]
    ]
    if as_json:
        shown = {"before": one, "after": two, "changes": changes, "notes": notes}
        print(json.dumps(shown, indent=1, ensure_ascii=False))
    else:
        for line in [*notes, *(changes or ["no difference"])]:
            print(line)
    if changes and exit_code:
        raise typer.Exit(1)


def _refuse_unknown(programs: list[Any], pairs: list[str]) -> None:
    """Arguments that neither version takes."""
    names = {name for program in programs for name in program.parameter_names}
    for pair in pairs:
        name, equals, _ = pair.partition("=")
        if not equals:
            raise Mistake(f"-D {pair}: write it as NAME=VALUE")
        if name not in names:
            raise Mistake(
                f"neither version has an argument {name!r}; they take {', '.join(sorted(names)) or 'none'}{near(name, names)}"
            )


def _facts(
    program: Any, pairs: list[str], template: Any, tokens: Tokens, rates: dict[str, Price]
) -> dict[str, Any]:
    from sglc.lang.known_prefix import prefix_of
    from sglc.passes.pipeline import BEFORE_BREAK
    from sglc.plan.answers import answer_lengths
    from sglc.plan.cost import costs

    given = defined(program, [p for p in pairs if p.partition("=")[0] in program.parameter_names])
    raw, broken = traced_for(program, given)
    known = {**program.defaults(), **given}
    module = optimised(raw, None)
    lengths = answer_lengths(module, tokens.compiled)
    total = costs(module, tokens.bound, template, known, answers=lengths).total
    written = optimised(
        raw, BEFORE_BREAK
    )  # as it was written, so that a change in one place shows in one place
    prefix = prefix_of(raw.graph, template).constant
    end = raw.graph.nodes[-1]
    return {
        "program": program.__name__,
        "break": f"line {end.at.line}: {end.attrs['reason']}" if broken is not None and end.at else None,
        "texts": _texts(written),
        "calls": _calls(written),
        "shared_prefix": {"characters": len(prefix), "tokens": tokens.count(prefix)},
        "cost": {n: [getattr(total, n).low, getattr(total, n).high] for n, _ in _COSTS},
        "money": {model: list(total.money(price)) for model, price in rates.items()},
    }


def _calls(module: Module) -> dict[str, Any]:
    """What is asked of each call, by name; calls of one line that ask the same are one."""
    from sglc.ir.ops import Gen, Select

    found: dict[str, Any] = {}
    seen: dict[tuple[Any, str], list[Any]] = {}
    for node in (n for graph in module.graphs.values() for n in graph.walk()):
        if not isinstance(node, (Gen, Select)):
            continue
        name = node.name or f"unnamed {node.op}"
        fields = {k: v for k, v in node.attrs.items() if k not in ("name", "constraint", "isolated")}
        entry: dict[str, Any] = {"op": node.op, "fields": {k: repr(v) for k, v in fields.items()}}
        if isinstance(node, Gen) and node.constraint is not None:
            constraint = module.constraint_of(node.constraint)
            entry["constraint"] = f"{constraint.kind} {constraint.source}"
        if isinstance(node, Select):
            entry["choices"] = [c if isinstance(c, str) else "{...}" for c in node.choices]
        alike = seen.setdefault((node.at, name), [])
        if entry in alike:
            continue
        alike.append(entry)
        key, number = name, 2
        while key in found:
            key, number = f"{name} ({number})", number + 1
        found[key] = entry
    return found


def _texts(module: Module) -> list[str]:
    """What the program writes, in order, with {names} for what is not constant; what one line writes twice is there once."""
    from sglc.ir.core import Value
    from sglc.ir.ops import Gen, Image, RoleBegin, Select, Text

    found: dict[tuple[Any, str], None] = {}
    for graph in module.graphs.values():
        names = {p: p.name for p in graph.params}
        names |= {n.text: n.name for n in graph.walk() if isinstance(n, (Gen, Select)) and n.name}
        for node in graph.walk():
            if isinstance(node, Text):
                parts = [
                    "{" + names.get(p, "...") + "}" if isinstance(p, Value) else str(p) for p in node.parts
                ]
                found[node.at, "".join(parts)] = None
            elif isinstance(node, RoleBegin):
                found[node.at, f"<{node.role}>"] = None
            elif isinstance(node, Image):
                found[node.at, f"<{node.kind} {hashlib.sha256(node.data).hexdigest()[:12]}>"] = None
    return [text for _, text in found]


def _changes(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    import difflib

    found: list[str] = []
    for line in difflib.unified_diff(one["texts"], two["texts"], lineterm="", n=0):
        if not line.startswith(("---", "+++", "@@")):
            found.append(f"text {line[0]} {line[1:]!r}")
    before, after = one["calls"], two["calls"]
    found += [f"call - {name}" for name in before if name not in after]
    found += [f"call + {name}" for name in after if name not in before]
    for name in (name for name in before if name in after):
        old, new = before[name], after[name]
        if old["op"] != new["op"]:
            found.append(f"call {name}: {old['op']} -> {new['op']}")
            continue
        for key in sorted(old["fields"].keys() | new["fields"].keys()):
            a, b = old["fields"].get(key, "unset"), new["fields"].get(key, "unset")
            if a != b:
                found.append(f"call {name}: {key} {a} -> {b}")
        for key in ("constraint", "choices"):
            a, b = old.get(key), new.get(key)
            if a != b:
                found.append(f"call {name}: {key} {a or 'none'} -> {b or 'none'}")
    if one["break"] is None and two["break"] is not None:
        found.append(f"graph break: none -> {two['break']}")
    elif one["break"] is not None and two["break"] is None:
        found.append(f"graph break: {one['break']} -> none")
    a, b = one["shared_prefix"], two["shared_prefix"]
    if a != b:
        found.append(
            f"shared prefix: {a['tokens']} -> {b['tokens']} tokens{_percent(a['tokens'], b['tokens'])}"
        )
    for key, title in _COSTS:
        a, b = one["cost"][key], two["cost"][key]
        if a != b:
            found.append(f"{title}: {Interval(*a)} -> {Interval(*b)}{_percent(a[1], b[1])}")
    for model in one["money"]:
        a, b = one["money"][model], two["money"][model]
        if a != b:
            found.append(f"cost of {model}: {_money(a)} -> {_money(b)}{_percent(a[1], b[1])}")
    return found


def _percent(a: float | None, b: float | None) -> str:
    """How much more the second is than the first, where that says something."""
    return f" ({(b - a) / a:+.0%})" if a and b is not None and a != b else ""


def _money(pair: list[float | None]) -> str:
    low, high = pair
    return f"at least {low:.6f}" if high is None else f"{low:.6f} to {high:.6f}"


def _file_of(which: str, folder: Path) -> str:
    """A target on disk: what stands at a revision is written to a folder, with the files beside it."""
    head, colon, rest = which.partition(":")
    if not colon or Path(head).exists() or not rest.partition(":")[0].endswith(".py"):
        return which
    file, _, program = rest.partition(":")
    folder.mkdir()
    for other in {file, *_beside(head, file)}:
        done = subprocess.run(["git", "show", f"{head}:./{other}"], capture_output=True)
        if not done.returncode:
            (folder / Path(other).name).write_bytes(done.stdout)
        elif other == file:
            told = done.stderr.decode(errors="replace").strip().partition("\n")[0]
            raise Mistake(f"{which}: git: {told.removeprefix('fatal: ') or 'it cannot be shown'}")
    return f"{folder / Path(file).name}" + (f":{program}" if program else "")


def _beside(revision: str, file: str) -> list[str]:
    """Python files in the same folder, which the program may import."""
    where = f"./{Path(file).parent}/"
    done = subprocess.run(["git", "ls-tree", "--name-only", revision, where], capture_output=True, text=True)
    return [line for line in done.stdout.splitlines() if line.endswith(".py")]
