"""What every command needs: files, programs and arguments, and how a user's mistake is told."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from sglc.errors import SglcError
    from sglc.ir.core import Module

Target = Annotated[
    str, typer.Argument(metavar="FILE[:PROGRAM]", help="A Python file, and which program of it.")
]
Define = Annotated[
    list[str] | None, typer.Option("-D", "--define", metavar="NAME=VALUE", help="An argument of the program.")
]


class Mistake(Exception):
    """Something that the user can put right."""


def near(word: str, known: Any) -> str:
    import difflib

    found = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def split(target: str) -> tuple[Path, str | None]:
    file, colon, name = target.rpartition(":")
    if not colon or "/" in name or name.endswith(".py"):
        return Path(target), None
    return Path(file), name


def load(file: Path, *, heard: bool = False) -> Any:
    """The module of a file. What it prints goes to stderr, unless it is `heard`: stdout is for what was asked.

    Never from bytecode of before, which may be that of a file saved twice within a second.
    """
    import contextlib
    import importlib.util
    from importlib.machinery import SourceFileLoader

    class Source(SourceFileLoader):
        def get_code(self, fullname: str) -> Any:
            return self.source_to_code(self.get_data(self.path), self.path)

    if not file.is_file():
        folder = file.parent if file.parent.is_dir() else Path()
        hint = near(file.name, (p.name for p in folder.glob("*.py")))
        raise Mistake(f"there is no file {file}{hint or '; give FILE.py or FILE.py:PROGRAM'}")
    name = "".join(c if c.isalnum() else "_" for c in file.stem)
    if file.suffix != ".py":
        raise Mistake(f"{file} is not a Python file; its name must end in .py")
    name = f"sglc_file_{name}"
    spec = importlib.util.spec_from_file_location(name, file, loader=Source(name, str(file)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.resolve().parent))
    sys.modules[module.__name__] = module
    try:
        with contextlib.nullcontext() if heard else contextlib.redirect_stdout(sys.stderr):
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
    return step is not None and step.tb_frame.f_code.co_filename.startswith(str(Path(__file__).parent.parent))


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


def programs(module: Any) -> dict[str, Any]:
    from sglc.lang.program import Program

    return {name: value for name, value in vars(module).items() if isinstance(value, Program)}


def named(module: Any, name: str, file: Path) -> Any:
    found = programs(module)
    if name not in found:
        raise Mistake(
            f"{file} has no program {name!r}; it has {', '.join(found) or 'none'}{near(name, found)}"
        )
    return found[name]


def top_programs(module: Any, file: Path) -> list[Any]:
    found = {n: p for n, p in programs(module).items() if p.func.__module__ == module.__name__}
    if not found:
        plain = [
            n
            for n, v in vars(module).items()
            if callable(v) and getattr(v, "__module__", "") == module.__name__
        ]
        hint = f"; write @sgl.function above `def {plain[0] if plain else 'ask'}(s, ...)`"
        raise Mistake(f"{file} has no program{hint}")
    called = {n for p in found.values() for n in p.func.__code__.co_names if found.get(n) is not p}
    return [p for n, p in found.items() if n not in called] or list(found.values())


def one_program(target: str) -> Any:
    file, name = split(target)
    module = load(file)
    if name is not None:
        return named(module, name, file)
    found = top_programs(module, file)
    if len(found) > 1:
        names = ", ".join(p.__name__ for p in found)
        raise Mistake(f"{file} has several programs ({names}); name one: {file}:{found[0].__name__}")
    return found[0]


def pairs(words: list[str]) -> list[str]:
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
                raise Mistake(f"--{name} has no value; write --{name} VALUE or --{name}=VALUE")
            value = rest.pop(0)
        found.append(f"{name.replace('-', '_')}={value}")
    return found


def defined(program: Any, pairs: list[str]) -> dict[str, Any]:
    """NAME=VALUE as arguments.

    Where the default is not a string, or the annotation is of another type, the value is read as Python's literals are.
    """
    import ast

    defaults = program.defaults()
    annotated = _annotated(program)
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise Mistake(f"-D {pair}: write it as NAME=VALUE")
        if name not in program.parameter_names:
            names = ", ".join(program.parameter_names) or "no arguments"
            raise Mistake(
                f"{program.__name__} has no argument {name!r}; it takes {names}{near(name, program.parameter_names)}"
            )
        value: Any = text
        default = defaults.get(name)
        kind = annotated.get(name) if default is None else type(default).__name__
        if kind not in (None, "str"):
            try:
                value = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                raise Mistake(
                    f"{name}={text!r} is not of type {kind}; write it as in Python, such as {_EXAMPLES.get(str(kind), '7')}"
                ) from None
        found[name] = value
    return found


_EXAMPLES = {"int": "7", "float": "0.5", "bool": "True", "list": "\"['a', 'b']\"", "dict": "\"{'a': 1}\""}


def _annotated(program: Any) -> dict[str, str]:
    """By parameter, the plain type that it is annotated with."""
    found = {}
    for name, annotation in getattr(program.func, "__annotations__", {}).items():
        kind = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
        kind = kind.partition("[")[0]
        if kind in _EXAMPLES:
            found[name] = kind
    return found


def arguments(program: Any, pairs: list[str], file: Path) -> dict[str, Any]:
    found = defined(program, pairs)
    missing = [n for n in program.parameter_names if n not in found and n not in program.defaults()]
    if missing:
        raise Mistake(
            f"{program.__name__} needs a value for {missing[0]!r}: sglc run {file} --{missing[0]} ..."
        )
    return found


def use_backend(backend: str | None, model: str | None) -> Any:
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


def traced_for(program: Any, given: Mapping[str, Any]) -> tuple[Module, SglcError | None]:
    """The trace of a program; what is defined on the command line is a constant of it.

    If the program breaks, the trace of what comes before, and the break. Raises its error if the program is wrong, or
    nothing of it is certain.
    """
    from sglc.lang.prefix import beginning

    module, error = beginning(program, given)
    wrong = error is not None and (bool(getattr(error, "mark", "")) or error.__cause__ is not None)
    if error is not None and (module is None or wrong):
        raise error
    assert module is not None
    return module, error


def optimised(module: Module, passes: str | None, *, verify: bool = False, after: Any = None) -> Module:
    """The module after these passes, or those that it runs with."""
    from sglc.passes.pipeline import Pipeline

    chosen = default_passes(module) if passes is None else passes
    return Pipeline.parse(chosen).run(module, verify=verify, after=after)


def default_passes(module: Module) -> str:
    from sglc.ir.ops import Break
    from sglc.passes.pipeline import BEFORE_BREAK, DEFAULT

    return BEFORE_BREAK if isinstance(module.graph.nodes[-1], Break) else DEFAULT


def end_of(module: Module) -> str:
    """Where a trace that breaks ends, and why."""
    end = module.graph.nodes[-1]
    return f"{end.at}: {end.attrs['reason']}" if end.at else str(end.attrs["reason"])


def console() -> Console:
    """For tables: as wide as the terminal, and wide where there is none."""
    from rich.console import Console

    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
    return Console(width=wide, highlight=False, markup=False)


def chat_template(name: str) -> Any:
    from sglc.lang.chat_template import chat_template_registry, get_chat_template

    try:
        return get_chat_template(name)
    except KeyError:
        hint = near(name, chat_template_registry) or f"; there are {', '.join(chat_template_registry)}"
        raise Mistake(f"--template {name}: there is no chat template of that name{hint}") from None


def write_text(text: str, file: Path, option: str) -> None:
    """Raises Mistake where that cannot be."""
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Mistake(f"{option} {file}: {error.strerror}") from None


def must_be_writable(file: Path | None, option: str) -> None:
    """Before a run of which the outcome is to be written there. Raises Mistake."""
    if file is None:
        return
    if file.is_dir():
        raise Mistake(f"{option} {file}: that is a folder; name a file")
    if not file.absolute().parent.is_dir():
        raise Mistake(f"{option} {file}: there is no folder {file.absolute().parent}; make it first")


def tokenizer_folder(given: Path | None) -> Path | None:
    """The folder of --tokenizer; `tiny` is the model that comes with sglc."""
    if given is None:
        return None
    if str(given) == "tiny":
        from runtime.config import embedded_model_path

        return Path(embedded_model_path())
    if not (given / "tokenizer.json").is_file():
        raise Mistake(
            f"--tokenizer {given}: there is no tokenizer.json in that folder; name the folder of a model, or tiny"
        )
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(given / "tokenizer.json"))
    except Exception as error:  # the library raises nothing narrower
        raise Mistake(
            f"--tokenizer {given}: its tokenizer.json cannot be read: {error}; name the folder of a model, or tiny"
        ) from None
    return given
