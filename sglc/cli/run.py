"""`sglc run`: run the programs of a file, once or for every row of a file."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

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
        with _backend(backend, model, timeline, record, replay) as chosen:
            _run_batch(found[0], given, chosen, batch, out, restart, retry_failed, interpret, sampling)
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
        print(json.dumps(_shown(state), ensure_ascii=False, indent=1, default=repr))
    elif not stream:
        messages = state.messages()
        for message in messages:
            print(f"{message['role']}: {message['content']}")
        if not messages:
            print(state.text())


def _shown(state: Any) -> dict[str, Any]:
    return {
        "text": state.text(),
        "messages": state.messages(),
        "variables": {str(name): value for name, value in state.sink.variables().items()},
        "result": state.ret_value,
    }


def _run_batch(
    program: Any,
    given: dict[str, Any],
    backend: Any,
    file: Path,
    out: Path | None,
    restart: bool,
    retry_failed: bool,
    interpret: bool,
    sampling: dict[str, Any],
) -> None:
    """Rows by the chunk, results to the journal as each chunk is done."""
    from tqdm import tqdm

    from runtime.backends.metered import Metered
    from sglc.exec.batch_file import CHUNK, Journal, RowError, rows_of
    from sglc.lang.program import resolve_backend

    if not file.is_file():
        raise Mistake(f"--batch {file}: there is no such file; give JSON lines, or CSV with a header")
    out = out or file.with_suffix(".results.jsonl")
    must_be_writable(out, "--out")
    if out.resolve() == file.resolve():
        raise Mistake(f"--out {out}: that is the file of the rows; name another one")
    runnable = program if interpret else program.compile()
    try:
        total = sum(1 for _ in rows_of(file))  # all rows are read once before the first one runs
        journal = Journal(out, _identity(program, given, sampling), restart=restart)
    except RowError as error:
        raise Mistake(str(error)) from None
    if journal.foreign:
        print(f"sglc: {journal.foreign} results in {out} are of another program or other options; they stay, and their "
              "rows run again", file=sys.stderr)  # fmt: skip
    failed, first = 0, ""
    began = time.perf_counter()
    metered = Metered(resolve_backend(backend))
    bar = tqdm(total=total, unit="row", disable=None)
    try:
        for chunk in _chunks(rows_of(file), CHUNK):
            todo = [row for row in chunk if not journal.has(row, retry_failed)]
            bar.update(len(chunk) - len(todo))
            if todo:
                results = _run_rows(runnable, program, todo, given, metered, sampling)
                journal.write(results)
                bar.update(len(todo))
                wrong = (f"row {row.number}: {r['error']}" for row, r in results if "error" in r)
                first = first or next(wrong, "")
        failed = len(journal.failed - journal.done)
    except KeyboardInterrupt:
        raise Mistake(f"interrupted; the same command goes on where it was, from {out}") from None
    finally:
        bar.close()
        journal.close()
    print(f"{total} row{'s' if total != 1 else ''}, {failed} failed: {out}")
    if first:
        print(f"sglc: {first}", file=sys.stderr)
    spent = metered.spent
    if spent.calls:
        print(
            f"{spent.calls} calls in {time.perf_counter() - began:.1f} s: {spent.prompt_tokens} prompt tokens, "
            f"{spent.hit_rate:.0%} of them from the prefix cache, {spent.completion_tokens} written"
        )
    if failed:
        raise typer.Exit(1)


def _run_rows(
    runnable: Any,
    program: Any,
    rows: list[Any],
    given: dict[str, Any],
    backend: Any,
    sampling: dict[str, Any],
) -> list[tuple[Any, dict[str, Any]]]:
    """The result of each row, or its error."""
    bound: list[dict[str, Any]] = []
    good: list[Any] = []
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        try:
            bound.append(program.bind_arguments((), {**given, **row.values}))
            good.append(row)
        except (TypeError, AssertionError) as error:
            found[row.number] = {"error": str(error)}
    states = runnable.run_batch(bound, backend=backend, return_exceptions=True, **sampling)
    for row, state in zip(good, states, strict=True):
        failure = state if isinstance(state, BaseException) else state.error()
        found[row.number] = {"error": str(failure)} if failure is not None else _shown(state)
    return [(row, found[row.number]) for row in rows]


def _identity(program: Any, given: dict[str, Any], sampling: dict[str, Any]) -> str:
    """What results depend on beside their row: the program's source, fixed arguments and sampling."""
    import inspect

    from sglc.exec.batch_file import digest_of

    try:
        source = inspect.getsource(program.func)
    except OSError:
        source = repr(program.func.__code__.co_code)
    return f"{program.__name__}-{digest_of([source, given, sampling])}"


def _chunks(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
