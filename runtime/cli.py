"""`runtime`: serve a model, measure one, or look at one."""

from __future__ import annotations

import json
import logging
import sys
from typing import Annotated, Any

import typer

from runtime.bench.commands import app as bench
from runtime.config import EngineConfig, ServerConfig
from runtime.errors import EngineError
from runtime.flags import fields_of, flags_of, whole_names, with_options
from runtime.foreign_flags import own_flags

app = typer.Typer(
    help="The inference runtime of sglc.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(bench, name="bench")


@app.command()
@with_options(EngineConfig, ServerConfig)
def serve(**options: Any) -> None:
    """Serve a model over HTTP: the native API and OpenAI's. Without --model-path, the embedded model."""
    from runtime.engine.read_ahead import read_ahead
    from runtime.log import configure, level_of

    config, server = fields_of(EngineConfig, options), fields_of(ServerConfig, options)
    read_ahead(config.device)
    from runtime.server.app import run

    configure(server.log_level, server.log_format)
    if server.log_level_http is not None:
        logging.getLogger("runtime.requests").setLevel(level_of("--log-level-http", server.log_level_http))
    raise typer.Exit(run(config, server))


@app.command()
def replay(
    id: Annotated[str, typer.Argument(help="The id of an answer of the server.")],
    url: Annotated[str, typer.Option(help="Where the server is.")] = "http://127.0.0.1:30000",
    api_key: Annotated[str | None, typer.Option(help="A key of the server.")] = None,
) -> None:
    """Run a request again, with the seed that it had, and print the answer."""
    from runtime.backends.replay import run_again

    print(run_again(url, id, api_key))


@app.command()
def check(
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
    run: Annotated[bool, typer.Option(help="Also let the embedded model answer.")] = True,
) -> None:
    """Show what this machine has for the runtime, and try it: for bug reports. Exit code 1 if something does not work."""
    from runtime.environment import environment, problems

    facts = environment()
    wrong = problems(run)
    if as_json:
        print(json.dumps({**facts, "problems": wrong}, indent=2))
    else:
        for name, value in facts.items():
            print(f"{name}: {value}")
        print("\n".join(f"PROBLEM: {p}" for p in wrong) or "everything works")
    raise typer.Exit(1 if wrong else 0)


@app.command()
@with_options(EngineConfig)
def info(**options: Any) -> None:
    """Show the architecture of a model folder and what it would take to run it."""
    from rich.console import Console
    from rich.table import Table

    from runtime.config import find_folder
    from runtime.kv.store import bytes_per_token
    from runtime.models.load import read_spec, resolve_dtype
    from runtime.models.spec import MoeSpec

    config = EngineConfig(**options)
    folder = find_folder(config.folder)
    spec, _, data = read_spec(folder, config.overrides, is_embedding=config.is_embedding)
    layer, last = spec.layers[0], spec.layers[-1]
    a, mixture = layer.attention, last.mlp if isinstance(last.mlp, MoeSpec) else None
    dtype = resolve_dtype(config.dtype, "cpu" if config.device == "auto" else config.device, data)
    table = Table("", "", show_header=False, title=str(folder))
    rows = {
        "architecture": spec.name,
        "layers": len(spec.layers),
        "hidden size": spec.hidden,
        "heads (q / kv / dim)": f"{a.heads} / {a.kv_heads} / {a.head_dim}",
        **({"latent and rotated key": f"{a.mla.kv_rank} + {a.mla.rope}"} if a.mla else {}),
        "MLP size": layer.mlp.size,
        **(
            {"experts (all / a token / size)": f"{mixture.experts} / {mixture.top_k} / {mixture.size}"}
            if mixture
            else {}
        ),
        "vocabulary": spec.vocabulary,
        "context": spec.context,
        "KV bytes per token": bytes_per_token(spec, dtype),
    }
    for name, value in rows.items():
        table.add_row(name, str(value))
    Console().print(table)


def main() -> None:
    """Entry point: errors of the user's are one line and exit code 2."""
    try:
        arguments = whole_names(sys.argv[1:], typer.main.get_command(app))
        if arguments[:1] == ["serve"]:
            known = {flag for config in (EngineConfig, ServerConfig) for flag in flags_of(config)}
            arguments = own_flags(arguments, known)
        app(arguments)
    except EngineError as error:
        print(f"runtime: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
