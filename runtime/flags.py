"""Config classes as options of commands: one field is one flag."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

T = TypeVar("T")


def flags_of(config: type) -> list[str]:
    """Every flag of a config class, aliases included."""
    fields = dataclasses.fields(config)
    return [n for f in fields for n in ("--" + f.name.replace("_", "-"), *f.metadata.get("aliases", ()))]


def whole_names(arguments: Sequence[str], command: Any) -> list[str]:
    """The arguments of a click command with the flags that were cut short written out, where only one begins so.

    Other servers of the field take `--tp` or `--num-prompt` for the whole name, and their users write them.
    """
    out = list(arguments)
    at = 0
    while at < len(out) and not out[at].startswith("-") and hasattr(command, "commands"):
        inner = command.commands.get(out[at])
        if inner is None:
            return out
        command, at = inner, at + 1
    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts) if name.startswith("--")}
    for i in range(at, len(out)):
        name, equals, value = out[i].partition("=")
        if name == "--":
            break
        if name.startswith("--") and name not in known and name != "--help" and len(name) > 3:
            meant = {n for n in known if n.startswith(name)}
            if len(meant) == 1:
                out[i] = meant.pop() + equals + value
    return out


def with_options(*configs: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option for each field of the config classes, beside its own. It takes them as `**options`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = get_type_hints(command, include_extras=True)
        parameters = [
            p.replace(annotation=own[p.name], kind=inspect.Parameter.KEYWORD_ONLY)
            for p in inspect.signature(command).parameters.values()
            if p.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        for config in configs:
            hints = get_type_hints(config)
            for f in dataclasses.fields(config):
                flag = "--" + f.name.replace("_", "-")
                names = [flag, *f.metadata.get("aliases", ())]
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


def fields_of(config: type[T], options: dict[str, Any]) -> T:
    """A config from those of a command's options that are its fields."""
    names = {f.name for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    return config(**{k: v for k, v in options.items() if k in names})
