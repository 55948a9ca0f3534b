"""`sglc run`: run the programs of a file."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sglc.cli.common import Define, Target, arguments, load, named, pairs, split, top_programs, use_backend


def run(
    context: typer.Context,
    target: Target,
    define: Define = None,
    backend: Annotated[
        str | None,
        typer.Option(help="http://... of a server, `scripted`, or nothing: the model that comes with sglc."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Folder of a model to run in this process.")] = None,
    stream: Annotated[bool, typer.Option(help="Print text as it is written.")] = False,
    interpret: Annotated[bool, typer.Option(help="Run the Python function, without compiling.")] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Print text, variables and messages as JSON.")
    ] = False,
) -> None:
    """Run a program. Its arguments are options: sglc run ask.py --question "Why?"

    The file is imported, not run as a script. If it has a function `main()`, that is called, with the backend set as
    the default. Otherwise its programs are run, one after the other (those that another one calls are not
    run by themselves); FILE:PROGRAM runs one. A program needs a value for each argument without a default.
    """
    file, name = split(target)
    module = load(file)
    found = [named(module, name, file)] if name else top_programs(module, file)
    entry = getattr(module, "main", None)
    words = [*(define or []), *pairs(context.args)]
    if name is None and callable(entry) and not words:
        use_backend(backend, model)
        entry()
        return
    work = [(program, arguments(program, words, file)) for program in found]
    chosen = use_backend(backend, model)
    for program, given in work:
        _run_one(program, given, chosen, stream, interpret, json_, title=len(work) > 1)


def _run_one(
    program: Any,
    arguments: dict[str, Any],
    backend: Any,
    stream: bool,
    interpret: bool,
    as_json: bool,
    title: bool,
) -> None:
    import json

    runnable = program if interpret else program.compile()
    if title:
        print(f"# {program.__name__}")
    state = runnable.run(**arguments, backend=backend, stream=stream)
    if stream and not as_json:
        for chunk in state.text_iter():
            print(chunk, end="", flush=True)
        print()
    state.sync()
    if state.error() is not None:
        from sglc.errors import RunError

        raise state.error() if isinstance(state.error(), RunError) else RunError(str(state.error()))
    if as_json:
        shown = {
            "text": state.text(),
            "messages": state.messages(),
            "variables": _variables(state),
            "result": state.ret_value,
        }
        print(json.dumps(shown, ensure_ascii=False, indent=1, default=repr))
    elif not stream:
        messages = state.messages()
        for message in messages:
            print(f"{message['role']}: {message['content']}")
        if not messages:
            print(state.text())


def _variables(state: Any) -> dict[str, Any]:
    return {str(name): value for name, value in state.sink.variables().items()}
