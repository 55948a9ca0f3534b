"""`sglc check`: what is wrong with programs, without running them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sglc.cli.common import Define, Mistake, defined, load, named, near, split, tokenizer_folder, top_programs


def check_command(
    targets: Annotated[
        list[str],
        typer.Argument(metavar="FILE[:PROGRAM]...", help="Python files, programs of them, or folders."),
    ],
    format_: Annotated[str, typer.Option("--format", help="text, json or sarif.")] = "text",
    backend: Annotated[
        str | None,
        typer.Option(help="What it is to run on: engine, scripted, openai, anthropic, vertex, litellm."),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Folder of a model whose tokenizer counts tokens; tiny: the small one."),
    ] = None,
    context: Annotated[int | None, typer.Option(help="Tokens that the model has room for.")] = None,
    select: Annotated[list[str] | None, typer.Option(help="Only these rules, by code.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Not these rules, by code.")] = None,
    define: Define = None,
) -> None:
    """Check programs: variables, forks, choices, constraints, budgets, and what a backend can do.

    Exit code 1 if there are errors. `# sglc: ignore[SGL202]` at the end of a line silences a rule there.
    """
    from runtime.backends.targets import target
    from runtime.errors import InvalidRequest
    from sglc import __version__
    from sglc.check import CheckOptions, Severity
    from sglc.check.diagnostic import to_json, to_sarif, to_text
    from sglc.check.run import RULES, check_file, lines_of

    if format_ not in ("text", "json", "sarif"):
        raise Mistake(
            f"--format {format_}: choose text, json or sarif{near(format_, ('text', 'json', 'sarif'))}"
        )
    for code in [*(select or []), *(ignore or [])]:
        if code not in RULES:
            raise Mistake(f"there is no rule {code}{near(code, RULES)}")
    tokenizer = tokenizer_folder(tokenizer)
    if context is not None and context < 1:
        raise Mistake(f"--context {context}: it must be at least 1")
    try:
        able = target(backend) if backend is not None else None
    except InvalidRequest as error:
        raise Mistake(f"--backend: {error.message}") from None
    codes = set(select or RULES) - set(ignore or ())
    found = set()
    for name in _files(targets):
        file, which = split(name)
        module = load(file)
        programs = [named(module, which, file)] if which else _all_programs(module, file)
        for program in programs:
            given = defined(
                program, [p for p in define or [] if p.partition("=")[0] in program.parameter_names]
            )
            found.update(check_file([program], CheckOptions(able, tokenizer, context, given), codes))
    ordered = sorted(found)
    if format_ == "json":
        sys.stdout.write(to_json(ordered))
    elif format_ == "sarif":
        sys.stdout.write(to_sarif(ordered, {c: (r.name, _summary(r)) for c, r in RULES.items()}, __version__))
    else:
        sys.stdout.write(to_text(ordered, {d.file: lines_of(d.file) for d in ordered}))
        counts = {s: sum(d.severity == s for d in ordered) for s in Severity}
        told = ", ".join(f"{n} {s}{'s' if n != 1 else ''}" for s, n in counts.items() if n)
        print(told or "nothing found")
    if any(d.severity == Severity.ERROR for d in ordered):
        raise typer.Exit(1)


def _summary(rule: object) -> str:
    return (type(rule).__doc__ or "").partition("\n")[0]


def _files(targets: list[str]) -> list[str]:
    found: list[str] = []
    for target in targets:
        path = Path(target)
        if not path.is_dir():
            found.append(target)
            continue
        files = sorted(p for p in path.rglob("*.py") if _has_programs(p))
        if not files:
            raise Mistake(f"{target} has no file with programs")
        found += map(str, files)
    return found


def _has_programs(path: Path) -> bool:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return "sglc" in text and ".function" in text


def _all_programs(module: Any, file: Path) -> list[Any]:
    from sglc.cli.common import programs

    own = [p for p in programs(module).values() if p.func.__module__ == module.__name__]
    return own or top_programs(module, file)
