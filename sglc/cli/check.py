"""`sglc check`: what is wrong with programs, without running them."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sglc.cli.common import (
    Define,
    Mistake,
    chat_template,
    defined,
    load,
    named,
    near,
    split,
    tokenizer_folder,
    top_programs,
)
from sglc.cli.prices import FORM, prices_in
from sglc.cli.settings import settings_for

if TYPE_CHECKING:
    from sglc.check import CheckOptions


def check_command(
    targets: Annotated[
        list[str],
        typer.Argument(metavar="FILE[:PROGRAM]...", help="Python files, programs of them, or folders."),
    ],
    format_: Annotated[str, typer.Option("--format", help="text, json, sarif or github.")] = "text",
    backend: Annotated[
        str | None,
        typer.Option(help="What it is to run on: engine, scripted, openai, anthropic, vertex, litellm."),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Folder of a model whose tokenizer counts tokens; tiny: the small one."),
    ] = None,
    context: Annotated[int | None, typer.Option(help="Tokens that the model has room for.")] = None,
    max_calls: Annotated[int | None, typer.Option(help="Calls that one run may take.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens that one run may take, of prompts and answers.")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(help="What one run may cost, by --prices, with every model of them.")
    ] = None,
    prices: Annotated[Path | None, typer.Option(help=FORM)] = None,
    argument_tokens: Annotated[
        int | None, typer.Option(help="How long an argument is at most that is not defined.")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Chat template of the model; chatml if none is named.")
    ] = None,
    select: Annotated[
        list[str] | None, typer.Option(help="Only these rules, by code or its beginning: SGL3.")
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Not these rules.")] = None,
    constraints: Annotated[
        bool, typer.Option("--constraints", help="Also say how each constraint is kept: exactly, or why not.")
    ] = False,
    define: Define = None,
) -> None:
    """Check programs: variables, forks, choices, constraints, budgets, and what a backend can do.

    Exit code 1 if there are errors. `# sglc: ignore[SGL202]` at the end of a line silences a rule there. Options stand
    in [tool.sglc.check] of pyproject.toml too: context = 8192, max-calls = 20, ignore = ["SGL207"].
    """
    from sglc import __version__
    from sglc.check import Severity
    from sglc.check.diagnostic import to_github, to_json, to_sarif, to_text
    from sglc.check.fidelity import fidelity, to_line
    from sglc.check.run import RULES, check_file, lines_of
    from sglc.check.subject import Subject

    forms = ("text", "json", "sarif", "github")
    if format_ not in forms:
        raise Mistake(f"--format {format_}: choose text, json, sarif or github{near(format_, forms)}")
    if constraints and format_ != "text":
        raise Mistake(
            f"--constraints goes with --format text, not {format_}; sglc explain --json has the same facts"
        )
    own = settings_for(Path.cwd())
    select, ignore = select or own.get("select"), ignore or own.get("ignore")
    for code in [*(select or []), *(ignore or [])]:
        if not any(known.startswith(str(code)) for known in RULES):
            raise Mistake(f"there is no rule {code}{near(str(code), RULES)}; `sglc rules` lists them")
    options = _options(
        own,
        {
            "backend": backend, "tokenizer": tokenizer, "context": context, "max-calls": max_calls,
            "max-tokens": max_tokens, "max-cost": max_cost, "prices": prices, "argument-tokens": argument_tokens,
            "template": template,
        },
    )  # fmt: skip
    asked = [pair.partition("=")[0] for pair in define or []]
    taken: set[str] = set()
    codes = _chosen(RULES, select or ["SGL"]) - _chosen(RULES, ignore or [])
    found = set()
    kept: list[dict[str, Any]] = []
    for name in _files(targets):
        file, which = split(name)
        module = load(file)
        programs = [named(module, which, file)] if which else _all_programs(module, file)
        for program in programs:
            taken.update(program.parameter_names)
            given = defined(
                program, [p for p in define or [] if p.partition("=")[0] in program.parameter_names]
            )
            here = replace(options, arguments=given)
            found.update(check_file([program], here, codes))
            module_here = Subject(program, here).module if constraints else None
            if module_here is not None:
                kept += fidelity(module_here, options.tokens)
    for given_name in asked:
        if given_name not in taken:
            raise Mistake(
                f"no program has an argument {given_name!r}{near(given_name, taken)}; they take {', '.join(sorted(taken)) or 'none'}"
            )
    ordered = sorted(found)
    if format_ == "json":
        sys.stdout.write(to_json(ordered))
    elif format_ == "github":
        sys.stdout.write(to_github(ordered))
    elif format_ == "sarif":
        sys.stdout.write(
            to_sarif(ordered, {c: (r.name, *_described(r)) for c, r in RULES.items()}, __version__)
        )
    else:
        sys.stdout.write(to_text(ordered, {d.file: lines_of(d.file) for d in ordered}))
        counts = {s: sum(d.severity == s for d in ordered) for s in Severity}
        told = ", ".join(f"{n} {s}{'s' if n != 1 else ''}" for s, n in counts.items() if n)
        print(told or "nothing found")
        for one in kept:
            print(to_line(one))
    if any(d.severity == Severity.ERROR for d in ordered):
        raise typer.Exit(1)


def _options(own: dict[str, Any], words: dict[str, Any]) -> CheckOptions:
    """What is said of the target: `words` of the command line, before those that the project has of its `own`."""
    from runtime.backends.targets import target
    from runtime.errors import InvalidRequest
    from sglc.check import Budget, CheckOptions, Tokens

    given = {**own, **{key: value for key, value in words.items() if value is not None}}
    for key in ("context", "max-calls", "max-tokens", "max-cost", "argument-tokens"):
        least = 1 if key == "context" else 0
        if key in given and not given[key] >= least:
            raise Mistake(f"--{key} {given[key]}: it must be at least {least}")
    try:
        able = target(given["backend"]) if "backend" in given else None
    except InvalidRequest as error:
        raise Mistake(f"--backend: {error.message}") from None
    rates = prices_in(Path(given["prices"]) if "prices" in given else None)
    if "max-cost" in given and not rates:
        raise Mistake("--max-cost needs the prices of a model: --prices prices.toml")
    template = given.get("template", CheckOptions.template)
    chat_template(template)
    return CheckOptions(
        backend=able,
        tokens=Tokens(tokenizer_folder(Path(given["tokenizer"]) if "tokenizer" in given else None)),
        context=given.get("context"),
        argument_tokens=given.get("argument-tokens"),
        template=template,
        budget=Budget(given.get("max-calls"), given.get("max-tokens"), given.get("max-cost"), rates),
    )


def _chosen(codes: Iterable[str], beginnings: list[str]) -> set[str]:
    return {code for code in codes if code.startswith(tuple(beginnings))}


def _described(rule: object) -> tuple[str, str]:
    """Its first line, and all of it."""
    text = inspect.getdoc(type(rule)) or ""
    return text.partition("\n")[0], text


def _files(targets: list[str]) -> list[str]:
    found: list[str] = []
    for target in targets:
        path = Path(target)
        if not path.is_dir():
            found.append(target)
            continue
        files = sorted(p for p in path.rglob("*.py") if _has_programs(p))
        if not files:
            raise Mistake(f"{target} has no file with programs; write @sgl.function above a function of it")
        found += map(str, files)
    return found


def _has_programs(path: Path) -> bool:
    try:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text) if "sglc" in text and "function" in text else None
    except (OSError, UnicodeDecodeError):
        return False
    except SyntaxError:  # which is told when it is loaded
        return True
    return tree is not None and any(_is_program(part) for part in tree.body)


def _is_program(part: ast.stmt) -> bool:
    """Whether it is decorated as `@sgl.function`, `@function` or `@sgl.function(...)`."""
    for mark in part.decorator_list if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)) else ():
        named = mark.func if isinstance(mark, ast.Call) else mark
        if (named.attr if isinstance(named, ast.Attribute) else getattr(named, "id", "")) == "function":
            return True
    return False


def _all_programs(module: Any, file: Path) -> list[Any]:
    from sglc.cli.common import programs

    own = [p for p in programs(module).values() if p.func.__module__ == module.__name__]
    return own or top_programs(module, file)
