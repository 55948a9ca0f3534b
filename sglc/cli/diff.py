"""`sglc diff`: what changed between two versions of a program, in prompts, constraints and cost."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from sglc.cli.common import Define, Mistake, chat_template, defined, one_program, optimised, traced_for

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
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 1 if something changed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two versions: each call's prompt, fields and constraint, the shared beginning, and the cost."""
    with tempfile.TemporaryDirectory(prefix="sglc-diff-") as folder:
        places = [_file_of(which, Path(folder) / side) for side, which in (("a", before), ("b", after))]
        one, two = (_facts(place, define or [], template) for place in places)
    changes = _changes(one, two)
    if as_json:
        print(json.dumps({"before": one, "after": two, "changes": changes}, indent=1, ensure_ascii=False))
    else:
        for line in changes or ["no difference"]:
            print(line)
    if changes and exit_code:
        raise typer.Exit(1)


def _facts(which: str, pairs: list[str], template: str) -> dict[str, Any]:
    from sglc.check import CheckOptions
    from sglc.ir.ops import Gen, Select
    from sglc.lang.trace import constant_prefix
    from sglc.plan.cost import costs

    chosen = chat_template(template)
    program = one_program(which)
    given = defined(program, [p for p in pairs if p.partition("=")[0] in program.parameter_names])
    module = optimised(traced_for(program, given), None)
    options = CheckOptions()
    found = costs(module, options.bound, chosen, {**program.defaults(), **given})
    calls: dict[str, Any] = {}
    for node in module.graph.walk():
        if not isinstance(node, (Gen, Select)):
            continue
        name = node.name or f"unnamed {node.op}"
        key, number = name, 2
        while key in calls:
            key, number = f"{name} ({number})", number + 1
        fields = {k: v for k, v in node.attrs.items() if k not in ("name", "constraint", "isolated")}
        entry: dict[str, Any] = {"op": node.op, "fields": {k: repr(v) for k, v in fields.items()}}
        if isinstance(node, Gen) and node.constraint is not None:
            constraint = module.constraint_of(node.constraint)
            entry["constraint"] = f"{constraint.kind} {constraint.source}"
        if isinstance(node, Select):
            entry["choices"] = [c if isinstance(c, str) else str(c) for c in node.choices]
        calls[key] = entry
    prefix = constant_prefix(program, chosen, given)
    total = found.total
    return {
        "program": program.__name__,
        "texts": _texts(module),
        "calls": calls,
        "shared_prefix": {"characters": len(prefix), "tokens": options.count(prefix)},
        "cost": {
            n: [getattr(total, n).low, getattr(total, n).high]
            for n in ("calls", "prompt", "computed", "output")
        },
    }


def _texts(module: Any) -> list[str]:
    """What the program writes, in order: constants, and marks for what is not constant."""
    from sglc.ir.core import Value
    from sglc.ir.ops import RoleBegin, Text

    found: list[str] = []
    for node in module.graph.walk():
        if isinstance(node, Text):
            found.append("".join("{" + str(p) + "}" if isinstance(p, Value) else str(p) for p in node.parts))
        elif isinstance(node, RoleBegin):
            found.append(f"<{node.role}>")
    return [re.sub(r"\{%\d+\}", "{...}", text) for text in found]


def _changes(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    import difflib

    found: list[str] = []
    for line in difflib.unified_diff(one["texts"], two["texts"], lineterm="", n=0):
        if not line.startswith(("---", "+++", "@@")):
            found.append(f"text {line[0]} {line[1:]!r}")
    before, after = one["calls"], two["calls"]
    found += [f"call - {name}" for name in before if name not in after]
    found += [f"call + {name}" for name in after if name not in before]
    for name in before.keys() & after.keys():
        old, new = before[name], after[name]
        for key in sorted(old["fields"].keys() | new["fields"].keys()):
            a, b = old["fields"].get(key, "unset"), new["fields"].get(key, "unset")
            if a != b:
                found.append(f"call {name}: {key} {a} -> {b}")
        for key in ("constraint", "choices"):
            a, b = old.get(key), new.get(key)
            if a != b:
                found.append(f"call {name}: {key} {a or 'none'} -> {b or 'none'}")
    a, b = one["shared_prefix"], two["shared_prefix"]
    if a != b:
        found.append(
            f"shared prefix: {a['tokens']} -> {b['tokens']} tokens ({_percent(a['tokens'], b['tokens'])})"
        )
    for key, title in _COSTS:
        if one["cost"][key] != two["cost"][key]:
            found.append(f"{title}: {_range(one['cost'][key])} -> {_range(two['cost'][key])}")
    return found


def _percent(a: int, b: int) -> str:
    return "new" if not a else f"{(b - a) / a:+.0%}"


def _range(pair: list[int | None]) -> str:
    low, high = pair
    return f"{low}" if low == high else f"{low} to {'no limit' if high is None else high}"


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
            raise Mistake(f"{which}: {told or 'git cannot show it'}")
    return f"{folder / Path(file).name}" + (f":{program}" if program else "")


def _beside(revision: str, file: str) -> list[str]:
    """Python files in the same folder, which the program may import."""
    where = f"./{Path(file).parent}/"
    done = subprocess.run(["git", "ls-tree", "--name-only", revision, where], capture_output=True, text=True)
    return [line for line in done.stdout.splitlines() if line.endswith(".py")]
