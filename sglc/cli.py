"""`sglc compile`, `sglc run`, `sglc passes`.

What the user got wrong (a missing file, a syntax error in it, a wrong argument) is told in one line with the
place, and the exit code is 2; a run that fails exits with 1. Heavy imports wait until a command needs
them, so `sglc --help` is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from sglc.ir.core import Module

app = typer.Typer(
    name="sglc",
    help="Compile and run LLM programs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Target = Annotated[
    str, typer.Argument(metavar="FILE[:PROGRAM]", help="A Python file, and which program of it.")
]
Define = Annotated[
    list[str] | None, typer.Option("-D", "--define", metavar="NAME=VALUE", help="An argument of the program.")
]
_EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}


class Mistake(Exception):
    """Something that the user can put right."""


def main() -> None:
    """The console script."""
    from runtime.errors import EngineError
    from sglc.errors import RunError, SglcError

    try:
        app(standalone_mode=False)
    except (Mistake, SglcError) as error:
        _die(str(error), 1 if isinstance(error, RunError) else 2)
    except EngineError as error:
        _die(error.message, 2 if error.status in (400, 404) or error.code == "model_error" else 1)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _die("interrupted", 130)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:  # of click: usage errors carry their own message
        if hasattr(error, "format_message"):
            _die(error.format_message(), 2)
        raise


def _die(message: str, code: int) -> NoReturn:
    print(f"sglc: {message}", file=sys.stderr)
    sys.exit(code)


@app.command("compile")
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
        raise Mistake(f"--emit {emit}: choose one of {', '.join(forms)}{_near(emit, forms)}")
    program = _one_program(target)
    module = _traced(program, _defined(program, define or []))
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


@app.command(context_settings=_EXTRA)
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
    file, name = _split(target)
    module = _load(file)
    found = [_named(module, name, file)] if name else _top_programs(module, file)
    entry = getattr(module, "main", None)
    pairs = [*(define or []), *_pairs(context.args)]
    if name is None and callable(entry) and not pairs:
        _use_backend(backend, model)
        entry()
        return
    work = [(program, _arguments(program, pairs, file)) for program in found]
    chosen = _use_backend(backend, model)
    for program, arguments in work:
        _run_one(program, arguments, chosen, stream, interpret, json_, title=len(work) > 1)


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


@app.command()
def passes() -> None:
    """List the passes and their options."""
    import inspect

    from rich.console import Console
    from rich.table import Table

    from sglc.passes.base import passes as known
    from sglc.passes.pipeline import DEFAULT

    table = Table("pass", "options", "what it does", box=None, pad_edge=False)
    for name, cls in known().items():
        options = ", ".join(f"{key}={f.default}" for key, f in cls.options().items())
        table.add_row(name, options, (inspect.getdoc(cls) or "").partition("\n")[0])
    console = Console()
    console.print(table)
    console.print(f"default: {DEFAULT}")


# Files, programs and arguments.


def _near(word: str, known: Any) -> str:
    import difflib

    found = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def _split(target: str) -> tuple[Path, str | None]:
    file, colon, name = target.rpartition(":")
    if not colon or "/" in name or name.endswith(".py"):
        return Path(target), None
    return Path(file), name


def _load(file: Path) -> Any:
    import importlib.util

    if not file.is_file():
        folder = file.parent if file.parent.is_dir() else Path()
        hint = _near(file.name, (p.name for p in folder.glob("*.py")))
        raise Mistake(f"there is no file {file}{hint}")
    name = "".join(c if c.isalnum() else "_" for c in file.stem)
    spec = importlib.util.spec_from_file_location(f"sglc_file_{name}", file)
    if spec is None or spec.loader is None:
        raise Mistake(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.resolve().parent))
    sys.modules[module.__name__] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise Mistake(f"{error.filename}:{error.lineno}: {error.msg}") from None
    except Exception as error:
        place = _place_in(error, file)
        told = str(error) if _is_ours(error) else f"{type(error).__name__}: {error}"
        raise Mistake(told if told.startswith(place) else f"{place}: {told}") from error
    return module


def _is_ours(error: BaseException) -> bool:
    """Whether sglc itself refused what the file does; then the message says it all."""
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    return step is not None and step.tb_frame.f_code.co_filename.startswith(str(Path(__file__).parent))


def _place_in(error: BaseException, file: Path) -> str:
    """The line of the user's file from which the error came."""
    found, step = str(file), error.__traceback__
    while step is not None:
        if Path(
            step.tb_frame.f_code.co_filename
        ) == file.resolve() or step.tb_frame.f_code.co_filename == str(file):
            found = f"{file}:{step.tb_lineno}"
        step = step.tb_next
    return found


def _programs(module: Any) -> dict[str, Any]:
    from sglc.lang.program import Program

    return {name: value for name, value in vars(module).items() if isinstance(value, Program)}


def _named(module: Any, name: str, file: Path) -> Any:
    found = _programs(module)
    if name not in found:
        raise Mistake(
            f"{file} has no program {name!r}; it has {', '.join(found) or 'none'}{_near(name, found)}"
        )
    return found[name]


def _top_programs(module: Any, file: Path) -> list[Any]:
    found = {n: p for n, p in _programs(module).items() if p.func.__module__ == module.__name__}
    if not found:
        plain = [
            n
            for n, v in vars(module).items()
            if callable(v) and getattr(v, "__module__", "") == module.__name__
        ]
        hint = f"; write @sgl.function above `def {plain[0]}(s, ...)`" if plain else ""
        raise Mistake(f"{file} has no program{hint}")
    called = {n for p in found.values() for n in p.func.__code__.co_names if found.get(n) is not p}
    return [p for n, p in found.items() if n not in called] or list(found.values())


def _one_program(target: str) -> Any:
    file, name = _split(target)
    module = _load(file)
    if name is not None:
        return _named(module, name, file)
    found = _top_programs(module, file)
    if len(found) > 1:
        names = ", ".join(p.__name__ for p in found)
        raise Mistake(f"{file} has several programs ({names}); name one: {file}:{found[0].__name__}")
    return found[0]


def _pairs(words: list[str]) -> list[str]:
    """`--name value` and `--name=value` as NAME=VALUE."""
    found: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise Mistake(f"{word!r} is not an option; give arguments of the program as --name value")
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not rest:
                raise Mistake(f"--{name} has no value")
            value = rest.pop(0)
        found.append(f"{name.replace('-', '_')}={value}")
    return found


def _defined(program: Any, pairs: list[str]) -> dict[str, Any]:
    """NAME=VALUE as arguments. Where the default is not a string, the value is read as Python's literals are."""
    import ast

    defaults = program.defaults()
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise Mistake(f"-D {pair}: write it as NAME=VALUE")
        if name not in program.parameter_names:
            names = ", ".join(program.parameter_names) or "no arguments"
            raise Mistake(
                f"{program.__name__} has no argument {name!r}; it takes {names}{_near(name, program.parameter_names)}"
            )
        value: Any = text
        if name in defaults and defaults[name] is not None and type(defaults[name]) is not str:
            try:
                value = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                raise Mistake(f"{name}={text!r} is not a {type(defaults[name]).__name__}") from None
        found[name] = value
    return found


def _arguments(program: Any, pairs: list[str], file: Path) -> dict[str, Any]:
    found = _defined(program, pairs)
    missing = [n for n in program.parameter_names if n not in found and n not in program.defaults()]
    if missing:
        raise Mistake(
            f"{program.__name__} needs a value for {missing[0]!r}: sglc run {file} --{missing[0]} ..."
        )
    return found


def _use_backend(backend: str | None, model: str | None) -> Any:
    import sglc

    if backend is not None and model is not None:
        raise Mistake("--backend and --model name two places to run; give one")
    made: Any
    if backend is None or backend.startswith(("http://", "https://")):
        from runtime.errors import EngineError

        try:
            made = sglc.RuntimeEndpoint(backend) if backend else sglc.Engine(model_path=model)
        except EngineError as error:
            raise Mistake(error.message) from error
    elif backend == "scripted":
        from runtime.backends.scripted import Scripted

        made = Scripted()
    else:
        raise Mistake(
            f"--backend {backend}: give http://..., `scripted`, or nothing for the model that comes with sglc"
        )
    sglc.set_default_backend(made)
    return made


if __name__ == "__main__":
    main()
