"""`sglc compile`: trace a program and print what it becomes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sglc.cli.common import Define, Mistake, Target, defined, near, one_program

if TYPE_CHECKING:
    from sglc.ir.core import Module


def compile_command(
    target: Target,
    emit: Annotated[str, typer.Option(help="raw (as traced), ir, plan, dot or json.")] = "ir",
    define: Define = None,
    passes: Annotated[str | None, typer.Option(help="Passes in order: a,b{k=v}.")] = None,
    print_after_all: Annotated[bool, typer.Option(help="Print the IR after every pass, to stderr.")] = False,
    verify: Annotated[bool, typer.Option(help="Verify the IR around every pass.")] = False,
    locations: Annotated[bool, typer.Option(help="Print where each node was written.")] = False,
    template: Annotated[str, typer.Option(help="Chat template that a plan is made for.")] = "chatml",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write to this file.")] = None,
) -> None:
    """Trace a program and print what it becomes.

    Arguments that are not defined, and have no default, stay unknown; defaults that are numbers or lists are constants.
    """
    forms = ("raw", "ir", "plan", "dot", "json")
    if emit not in forms:
        raise Mistake(f"--emit {emit}: choose one of {', '.join(forms)}{near(emit, forms)}")
    program = one_program(target)
    module = _traced(program, defined(program, define or []))
    if emit != "raw":
        module = _optimised(module, passes, verify, print_after_all)
    text = _emitted(module, emit, locations, template)
    if out is None:
        sys.stdout.write(text)
    else:
        out.write_text(text, encoding="utf-8")


def _traced(program: Any, given: Mapping[str, Any]) -> Module:
    from sglc.lang.trace import trace

    known = {**program.defaults(), **given}
    names = list(program.parameter_names)
    # What is defined on the command line is a constant; what has only a string as default stays unknown.
    unknown = frozenset(n for n in names if n not in given and (n not in known or type(known[n]) is str))
    return trace(program, known, unknown)


def _optimised(module: Module, passes: str | None, verify: bool, print_after_all: bool) -> Module:
    from sglc.passes.pipeline import DEFAULT, Pipeline

    def after(item: Any, changed: Any, report: Any) -> None:
        print(f"// after {item}: {report}\n{changed}", file=sys.stderr)

    pipeline = Pipeline.parse(DEFAULT if passes is None else passes)
    return pipeline.run(module, verify=verify, after=after if print_after_all else None)


def _emitted(module: Module, emit: str, locations: bool, template: str) -> str:
    if emit == "plan":
        from sglc.lang.chat_template import get_chat_template
        from sglc.plan.lower import lower
        from sglc.plan.render import to_text

        try:
            chosen = get_chat_template(template)
        except KeyError:
            raise Mistake(f"--template {template}: there is no chat template of that name") from None
        return to_text(lower(module, chosen))
    if emit == "dot":
        from sglc.ir.dot import to_dot

        return to_dot(module)
    if emit == "json":
        from sglc.ir.json import to_json

        return to_json(module, indent=1) + "\n"
    from sglc.ir.printer import print_module

    return print_module(module, locations=locations)
