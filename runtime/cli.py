"""`runtime`: serve a model, or look at one."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from runtime.config import EngineConfig, ServerConfig
from runtime.errors import EngineError

app = typer.Typer(
    help="The inference runtime of sglc.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _with_options(*configs: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option for each field of the config classes."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = []
        for config in configs:
            hints = get_type_hints(config)
            for f in dataclasses.fields(config):
                flag = "--" + f.name.replace("_", "-")
                names = [flag, *f.metadata["aliases"]]
                option = typer.Option(*names, help=f.metadata["help"], show_default=f.default is not None)
                parameters.append(
                    inspect.Parameter(
                        f.name,
                        inspect.Parameter.KEYWORD_ONLY,
                        default=f.default,
                        annotation=Annotated[hints[f.name], option],
                    )
                )
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _split(options: dict[str, Any]) -> tuple[EngineConfig, ServerConfig]:
    engine = {f.name for f in dataclasses.fields(EngineConfig)}
    return (
        EngineConfig(**{k: v for k, v in options.items() if k in engine}),
        ServerConfig(**{k: v for k, v in options.items() if k not in engine}),
    )


@app.command()
@_with_options(EngineConfig, ServerConfig)
def serve(**options: Any) -> None:
    """Serve a model over HTTP: the native API and OpenAI's. Without --model-path, the embedded model."""
    from runtime.log import configure
    from runtime.server.app import run

    config, server = _split(options)
    configure(server.log_level, server.log_format)
    raise typer.Exit(run(config, server))


@app.command()
@_with_options(EngineConfig)
def info(**options: Any) -> None:
    """Show the architecture of a model folder and what it would take to run it."""
    from rich.console import Console
    from rich.table import Table

    from runtime.config import find_folder
    from runtime.kv.store import bytes_per_token
    from runtime.models.load import read_spec, resolve_dtype

    config = EngineConfig(**options)
    folder = find_folder(config.folder)
    spec, _, data = read_spec(folder, config.overrides)
    layer = spec.layers[0]
    dtype = resolve_dtype(config.dtype, "cpu" if config.device == "auto" else config.device, data)
    table = Table("", "", show_header=False, title=str(folder))
    rows = {
        "architecture": spec.name,
        "layers": len(spec.layers),
        "hidden size": spec.hidden,
        "heads (q / kv / dim)": f"{layer.attention.heads} / {layer.attention.kv_heads} / {layer.attention.head_dim}",
        "MLP size": layer.mlp.size,
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
        app()
    except EngineError as error:
        print(f"runtime: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
