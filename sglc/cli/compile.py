"""`sglc compile`: trace a program and print what it becomes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sglc.cli.common import (
    Define,
    Mistake,
    Target,
    chat_template,
    default_passes,
    defined,
    end_of,
    must_be_writable,
    near,
    one_program,
    optimised,
    tokenizer_folder,
    traced_for,
    write_text,
)

if TYPE_CHECKING:
    from sglc.ir.core import Module


def compile_command(
    target: Target,
    emit: Annotated[
        str,
        typer.Option(
            help="raw (as traced), ir, plan, rt (the plan as JSON), json, dot, mermaid, svg or artifact (with -o: a file that sglc run takes)."
        ),
    ] = "ir",
    define: Define = None,
    passes: Annotated[str | None, typer.Option(help="Passes in order: a,b{k=v}.")] = None,
    print_after_all: Annotated[
        bool, typer.Option("--print-after-all", help="Print the IR after every pass, to stderr.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Verify the IR around every pass.")] = False,
    locations: Annotated[
        bool, typer.Option("--locations", help="Print where each node was written.")
    ] = False,
    template: Annotated[str, typer.Option(help="Chat template that a plan is made for.")] = "chatml",
    backend: Annotated[
        str | None, typer.Option(help="Refuse what it cannot do: engine, openai, anthropic, vertex, litellm.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Compile constraints for this model's folder, or `tiny`, the small model."),
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write to this file.")] = None,
) -> None:
    """Trace a program and print what it becomes.

    Arguments that are not defined, and have no default, stay unknown; defaults that are numbers or lists are constants.
    """
    forms = ("raw", "ir", "plan", "rt", "json", "dot", "mermaid", "svg", "artifact")
    if emit not in forms:
        raise Mistake(f"--emit {emit}: choose one of {', '.join(forms)}{near(emit, forms)}")
    must_be_writable(out, "--out")
    folder = tokenizer_folder(Path(tokenizer) if tokenizer is not None else None)
    program = one_program(target)
    module, broken = traced_for(program, defined(program, define or []))
    if broken is not None:
        if emit in ("plan", "rt", "artifact"):
            raise broken
        print(f"graph break at {end_of(module)}; interpreted from there on", file=sys.stderr)
    if emit != "raw":
        module = optimised(
            module,
            _with(default_passes(module) if passes is None else passes, backend, tokenizer),
            verify=verify,
            after=_shown if print_after_all else None,
        )
    if emit == "artifact":
        if out is None:
            raise Mistake("--emit artifact: say where with -o FILE.sglc")
        _save(program, module, template, folder, out)
        return
    text = _emitted(module, emit, locations, template)
    if out is None:
        sys.stdout.write(text)
    else:
        write_text(text, out, "--out")


def _with(passes: str, backend: str | None, tokenizer: str | None) -> str:
    """The pipeline with what the options ask for at its end."""
    found = passes
    if backend is not None:
        found += f',legalize{{backend="{backend}"}}'
    if tokenizer is not None:
        found += f',precompile-constraints{{tokenizer="{tokenizer}"}}'
    return found.lstrip(",")


def _save(program: Any, module: Module, template: str, tokenizer: Path | None, out: Path) -> None:
    from sglc.artifact import Artifact

    made = Artifact.of(module, chat_template(template), tokenizer, program.defaults())
    made.save(out)
    print(f"{out}: build {made.build}", file=sys.stderr)


def _shown(item: Any, changed: Any, report: Any) -> None:
    print(f"// after {item}: {report}\n{changed}", file=sys.stderr)


def _emitted(module: Module, emit: str, locations: bool, template: str) -> str:
    if emit in ("plan", "rt"):
        from sglc.plan.lower import lower
        from sglc.plan.render import to_json, to_text

        plan = lower(module, chat_template(template))
        return to_text(plan) if emit == "plan" else to_json(plan) + "\n"
    if emit == "dot":
        from sglc.ir.dot import to_dot

        return to_dot(module)
    if emit == "mermaid":
        from sglc.ir.mermaid import to_mermaid

        return to_mermaid(module.graph)
    if emit == "svg":
        from sglc.ir.svg import to_svg

        return to_svg(module.graph)
    if emit == "json":
        from sglc.ir import json

        return json.to_json(module, indent=1) + "\n"
    from sglc.ir.printer import print_module

    return print_module(module, locations=locations)
