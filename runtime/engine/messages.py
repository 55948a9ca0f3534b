"""What passes between the text side (HTTP process or caller) and the engine loop: ids and numbers, no text.

In a process of its own the loop receives these as msgpack over a local socket; in a thread, as objects.
"""

from __future__ import annotations

from typing import Any

import msgspec

from runtime.api import Finish, LogprobOptions, SamplingParams, TokenLogprob


class Add(msgspec.Struct, frozen=True, tag=True):
    """Start a request. `seed` is resolved; `max_new` None means as many as fit; `pool`: for the prompt's vector."""

    id: str
    tokens: list[int]
    sampling: SamplingParams
    seed: int
    logprobs: LogprobOptions | None = None
    priority: int = 0
    salt: str = ""
    pool: bool = False


class End(msgspec.Struct, frozen=True, tag=True):
    """The text side ends a request: its caller is gone, or a stop string was found."""

    id: str


class Ask(msgspec.Struct, frozen=True, tag=True):
    """Something asked of the engine as a whole, such as `stats`; `value` belongs to `what`."""

    ticket: int
    what: str
    value: str = ""


class Weights(msgspec.Struct, frozen=True):
    """The value of an `Ask` for `update_weights`, as JSON: where they come from."""

    model_path: str
    load_format: str = "auto"


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End the loop."""


class Output(msgspec.Struct, frozen=True, tag=True):
    """New tokens of a request, `forced` of them by its constraint. `cached` counts reused prompt tokens; prompt scores come
    once. `vector`, little-endian float32, is what one with `pool` asked for."""

    id: str
    tokens: list[int]
    logprobs: list[tuple[TokenLogprob, list[TokenLogprob]]] = []
    prompt_scores: list[tuple[TokenLogprob, list[TokenLogprob]]] | None = None
    finish: Finish | None = None
    cached: int = 0
    forced: int = 0
    vector: bytes | None = None


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The request cannot run; `code` is that of the error."""

    id: str
    code: str
    message: str


class Answer(msgspec.Struct, frozen=True, tag=True):
    """To an `Ask`; with a `code`, what went wrong."""

    ticket: int
    value: dict[str, Any] = {}
    code: str = ""
    message: str = ""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The model is loaded."""

    info: dict[str, Any]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The loop cannot start or go on."""

    code: str
    message: str


class Lost(msgspec.Struct, frozen=True, tag=True):
    """The loop is gone with all its requests, and another one starts: `Ready` or `Failed` follows."""

    message: str


class Beat(msgspec.Struct, frozen=True, tag=True):
    """The loop turns; `stats` is what it would answer to `Ask`."""

    stats: dict[str, Any]


In = Add | End | Ask | Stop
Out = Output | Refused | Answer | Ready | Failed | Lost | Beat
