"""`sglc run`: run the programs of a file, once or for every row of a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from sglc.cli.batch import counted, run_batch, shown
from sglc.cli.common import (
    Define,
    Mistake,
    Target,
    arguments,
    defined,
    load,
    must_be_writable,
    named,
    pairs,
    split,
    top_programs,
    use_backend,
)


def run(
    context: typer.Context,
    target: Target,
    define: Define = None,
    backend: Annotated[
        str | None,
        typer.Option(help="http://... of a server, `scripted`, or nothing: the model that comes with sglc."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Folder of a model to run in this process.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print text as it is written.")] = False,
    interpret: Annotated[
        bool, typer.Option("--interpret", help="Run the Python function, without compiling.")
    ] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Print text, variables and messages as JSON.")
    ] = False,
    batch: Annotated[
        Path | None,
        typer.Option(help="Run once for each row of this file: JSON lines, or CSV with a header."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where results of a batch go; if it is there already, only what is missing runs."),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Begin the results anew.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run rows again whose result is an error.")
    ] = False,
    timeline: Annotated[
        Path | None, typer.Option(help="Write a Chrome trace of all calls, for Perfetto or chrome://tracing.")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(help="Keep all calls in this file, and take from it those that are there already."),
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(help="Take all calls from this file; no model is needed.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of gens that name none.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Of gens that name none.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of gens that name none.")] = None,
) -> None:
    """Run a program. Its arguments are options: sglc run ask.py --question "Why?"

    The file is imported, not run as a script. If it has a function `main()`, that is called, with the backend set as
    the default. Otherwise its programs are run, one after the other (those that another one calls are not
    run by themselves); FILE:PROGRAM runs one. A program needs a value for each argument without a default.
    """
    file, name = split(target)
    if file.suffix == ".sglc" and batch is None:
        words = [*(define or []), *pairs(context.args)]
        with _backend(backend, model, timeline, record, replay) as chosen:
            _run_artifact(file, words, chosen, stream, json_, _sampling(temperature, max_tokens, seed))
        return
    module = load(file, heard=True)
    found = [named(module, name, file)] if name else top_programs(module, file)
    entry = getattr(module, "main", None)
    words = [*(define or []), *pairs(context.args)]
    sampling = _sampling(temperature, max_tokens, seed)
    if (out is not None or restart or retry_failed) and batch is None:
        raise Mistake("--out, --restart and --retry-failed belong to --batch rows.jsonl")
    if record is not None and replay is not None:
        raise Mistake("--record and --replay name two cassettes; give one")
    if name is None and callable(entry) and not words and batch is None:
        with _backend(backend, model, timeline, record, replay):
            entry()
        return
    if batch is not None:
        if len(found) > 1:
            raise Mistake(f"--batch runs one program; name it: {file}:{found[0].__name__}")
        given = defined(found[0], words)
        total, results = counted(batch, out)
        with _backend(backend, model, timeline, record, replay) as chosen:
            run_batch(
                found[0], given, chosen, batch, total, results, restart, retry_failed, interpret, sampling
            )
        return
    work = [(program, arguments(program, words, file)) for program in found]
    with _backend(backend, model, timeline, record, replay) as chosen:
        for program, given in work:
            _run_one(program, given, chosen, stream, interpret, json_, sampling, title=len(work) > 1)


def _sampling(temperature: float | None, max_tokens: int | None, seed: int | None) -> dict[str, Any]:
    given = {"temperature": temperature, "max_new_tokens": max_tokens, "seed": seed}
    return {name: value for name, value in given.items() if value is not None}


@contextmanager
def _backend(
    backend: str | None, model: str | None, timeline: Path | None, record: Path | None, replay: Path | None
) -> Iterator[Any]:
    """The backend of the run, with what listens to it; files are written when the run is over, however it ends."""
    import sglc
    from runtime.backends.cassette import Cassette
    from runtime.backends.timeline import Timeline

    must_be_writable(timeline, "--timeline")
    must_be_writable(record, "--record")
    if replay is not None and not replay.is_file():
        raise Mistake(f"--replay {replay}: there is no such file; make it with --record {replay}")
    chosen: Any = None if replay is not None else use_backend(backend, model)
    inner = getattr(chosen, "endpoint", chosen)
    cassette = None
    if record is not None or replay is not None:
        cassette = Cassette(record or replay or "", inner)
        chosen = inner = cassette
    watch = Timeline(inner) if timeline is not None else None
    chosen = watch or chosen
    sglc.set_default_backend(chosen)
    try:
        yield chosen
    finally:
        if watch is not None and timeline is not None:
            watch.save(timeline)
            print(f"sglc: {len(watch.spans)} calls written to {timeline}", file=sys.stderr)
        if cassette is not None:
            total = cassette.hits + cassette.misses
            print(f"sglc: {cassette.hits} of {total} calls from {cassette.path}", file=sys.stderr)


def _run_artifact(
    file: Path, words: list[str], backend: Any, stream: bool, as_json: bool, sampling: dict[str, Any]
) -> None:
    from sglc.artifact import load_artifact

    made = load_artifact(file)
    given = dict(word.partition("=")[::2] for word in words)
    try:
        state = made.run(**given, **sampling, backend=backend, stream=stream)
    except TypeError as error:
        raise Mistake(f"{file}: {error}") from None
    _show(state, stream, as_json)


def _run_one(
    program: Any,
    arguments: dict[str, Any],
    backend: Any,
    stream: bool,
    interpret: bool,
    as_json: bool,
    sampling: dict[str, Any],
    title: bool,
) -> None:
    runnable = program if interpret else program.compile()
    if title:
        print(f"# {program.__name__}")
    _show(runnable.run(**arguments, **sampling, backend=backend, stream=stream), stream, as_json)


def _show(state: Any, stream: bool, as_json: bool) -> None:
    if stream and not as_json:
        for chunk in state.text_iter():
            print(chunk, end="", flush=True)
        print()
    state.sync()
    if state.error() is not None:
        from sglc.errors import RunError

        raise state.error() if isinstance(state.error(), RunError) else RunError(str(state.error()))
    if as_json:
        print(json.dumps(shown(state), ensure_ascii=False, indent=1, default=repr))
    elif not stream:
        messages = state.messages()
        for message in messages:
            print(f"{message['role']}: {message['content']}")
        if not messages:
            print(state.text())
