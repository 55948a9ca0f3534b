"""`sglc compile`, `sglc run`, `sglc check`, ...: the commands, one file each.

What the user got wrong (a missing file, a syntax error in it, a wrong argument) is told in one line with the
place, and the exit code is 2; a run that fails exits with 1. Heavy imports wait until a command needs
them, so `sglc --help` is quick.
"""

from __future__ import annotations

import sys
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import typer

from sglc.cli.check import check_command
from sglc.cli.common import Mistake
from sglc.cli.compile import compile_command
from sglc.cli.diff import diff
from sglc.cli.explain import explain
from sglc.cli.lsp import lsp
from sglc.cli.passes import passes
from sglc.cli.rules import rules
from sglc.cli.run import run

app = typer.Typer(
    name="sglc",
    help="Compile and run LLM programs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("compile")(compile_command)
app.command("check")(check_command)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(run)
app.command()(explain)
app.command()(diff)
app.command()(passes)
app.command()(rules)
app.command()(lsp)


def main(words: Sequence[str] | None = None) -> None:
    """The console script. `words`: its arguments; None: those of the process."""
    from runtime.errors import EngineError
    from sglc.errors import RunError, SglcError

    try:
        code = app(
            words, standalone_mode=False
        )  # what click makes of typer.Exit, or of a command that returns
        if isinstance(code, int) and code:
            sys.exit(code)
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
    except Exception as error:
        if hasattr(error, "format_message"):  # of click: usage errors carry their own message
            _die(error.format_message(), 2)
        own = _users_part(error)
        if own is None:
            raise
        print(own, file=sys.stderr, end="")
        sys.exit(1)


def _die(message: str, code: int) -> NoReturn:
    if message:  # none where the help was printed instead
        print(f"sglc: {message}", file=sys.stderr)
    sys.exit(code)


def _users_part(error: Exception) -> str | None:
    """The traceback of an error that a user's code raised, without the calls that led there; None if it did not."""
    told = traceback.TracebackException.from_exception(error)
    ours = [sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib", "scripts")]
    ours += [str(Path(__file__).parents[2] / name) for name in ("sglc", "runtime", "grammar", "stdlib")]
    first = next(
        (k for k, step in enumerate(told.stack) if not step.filename.startswith((*ours, "<"))),
        None,
    )
    if first is None:
        return None
    told.stack = traceback.StackSummary.from_list(told.stack[first:])
    return "".join(told.format(chain=False))
