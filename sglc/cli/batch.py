"""`sglc run --batch`: once for each row of a file, results to a journal as they come."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import typer

from sglc.cli.common import Mistake, must_be_writable


def counted(file: Path, out: Path | None) -> tuple[int, Path]:
    """How many rows there are, and where their results go. Raises Mistake: rows are read once before anything is opened."""
    from sglc.exec.batch_file import RowError, rows_of

    if not file.is_file():
        raise Mistake(f"--batch {file}: there is no such file; give JSON lines, or CSV with a header")
    out = out or file.with_suffix(".results.jsonl")
    must_be_writable(out, "--out")
    if out.resolve() == file.resolve():
        raise Mistake(f"--out {out}: that is the file of the rows; name another one")
    try:
        return sum(1 for _ in rows_of(file)), out
    except RowError as error:
        raise Mistake(str(error)) from None


def run_batch(
    program: Any,
    given: dict[str, Any],
    backend: Any,
    file: Path,
    total: int,
    out: Path,
    restart: bool,
    retry_failed: bool,
    interpret: bool,
    sampling: dict[str, Any],
) -> None:
    """Rows by the chunk, results to the journal as each row is done."""
    from tqdm import tqdm

    from runtime.backends.metered import Metered
    from sglc.exec.batch_file import CHUNK, Journal, RowError, rows_of
    from sglc.lang.program import resolve_backend

    try:
        journal = Journal(out, _identity(program, given, sampling), restart=restart)
    except RowError as error:
        raise Mistake(str(error)) from None
    if journal.foreign:
        print(f"sglc: {journal.foreign} results in {out} are of another program or other options; they stay, and their "
              "rows run again", file=sys.stderr)  # fmt: skip
    runnable = program if interpret else program.compile()
    failed, first = 0, ""
    began = time.perf_counter()
    metered = Metered(resolve_backend(backend))
    bar = tqdm(total=total, unit="row", disable=None)
    try:
        for chunk in _chunks(rows_of(file), CHUNK):
            todo = [row for row in chunk if not journal.has(row, retry_failed)]
            bar.update(len(chunk) - len(todo))
            for row, found in _results(runnable, program, todo, given, metered, sampling):
                journal.write(row, found)
                bar.update(1)
                if not first and "error" in found:
                    first = f"row {row.number}: {found['error']}"
        journal.sort()
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


def _results(
    runnable: Any,
    program: Any,
    rows: list[Any],
    given: dict[str, Any],
    backend: Any,
    sampling: dict[str, Any],
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The result of each row, or its error, as rows end; they run in a thread beside the caller's."""
    bound: list[dict[str, Any]] = []
    good: list[Any] = []
    for row in rows:
        try:
            bound.append(program.bind_arguments((), {**given, **row.values}))
            good.append(row)
        except (TypeError, AssertionError) as error:
            yield row, {"error": str(error)}
    if not good:
        return
    ended: SimpleQueue[tuple[int, Any]] = SimpleQueue()

    def run() -> None:
        options = {"backend": backend, "return_exceptions": True, **sampling}
        try:
            runnable.run_batch(bound, on_done=lambda number, state: ended.put((number, state)), **options)
        except BaseException as error:
            ended.put((-1, error))

    threading.Thread(target=run, daemon=True, name="sglc-batch").start()
    for _ in good:
        number, state = ended.get()
        if number < 0:
            raise state
        failure = state if isinstance(state, BaseException) else state.error()
        yield good[number], {"error": str(failure)} if failure is not None else shown(state)


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


def shown(state: Any) -> dict[str, Any]:
    """The outcome of a run as JSON."""
    return {
        "text": state.text(),
        "messages": state.messages(),
        "variables": {str(name): value for name, value in state.sink.variables().items()},
        "result": state.ret_value,
    }
