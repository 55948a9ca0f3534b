"""A compiler for LLM programs with its own inference runtime.

    import sglc as sgl

    @sgl.function
    def ask(s, question):
        s += sgl.user(question)
        s += sgl.assistant(sgl.gen("answer", max_tokens=64))

    print(ask.run("What is the capital of France?", backend=sgl.Engine())["answer"])

Loading this package loads no torch; an engine does when it is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglc.config import global_config
from sglc.lang.choices import (
    greedy_token_selection,
    token_length_normalized,
    unconditional_likelihood_normalized,
)
from sglc.lang.host import host
from sglc.lang.pieces import (
    assistant,
    assistant_begin,
    assistant_end,
    gen,
    gen_int,
    gen_string,
    image,
    select,
    separate_reasoning,
    system,
    system_begin,
    system_end,
    user,
    user_begin,
    user_end,
    video,
)
from sglc.lang.program import flush_cache, function, get_server_args, get_server_info, set_default_backend

if TYPE_CHECKING:
    from runtime.backends.cassette import Cassette
    from runtime.backends.scripted import Scripted
    from runtime.backends.timeline import Timeline
    from runtime.engine.engine import Engine
    from sglc.artifact import Artifact, load_artifact
    from sglc.backends import Anthropic, LiteLLM, OpenAI, Runtime, RuntimeEndpoint, VertexAI

__version__ = "0.1.0"

__all__ = [
    "Anthropic",
    "Artifact",
    "Cassette",
    "Engine",
    "LiteLLM",
    "OpenAI",
    "Runtime",
    "RuntimeEndpoint",
    "Scripted",
    "Timeline",
    "VertexAI",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "flush_cache",
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "get_server_args",
    "get_server_info",
    "global_config",
    "greedy_token_selection",
    "host",
    "image",
    "load_artifact",
    "select",
    "separate_reasoning",
    "set_default_backend",
    "system",
    "system_begin",
    "system_end",
    "token_length_normalized",
    "unconditional_likelihood_normalized",
    "user",
    "user_begin",
    "user_end",
    "video",
]

_LAZY = {
    "Anthropic": "sglc.backends",
    "LiteLLM": "sglc.backends",
    "OpenAI": "sglc.backends",
    "VertexAI": "sglc.backends",
    "Artifact": "sglc.artifact",
    "Cassette": "runtime.backends.cassette",
    "Timeline": "runtime.backends.timeline",
    "load_artifact": "sglc.artifact",
    "Engine": "runtime.engine.engine",
    "Runtime": "sglc.backends",
    "RuntimeEndpoint": "sglc.backends",
    "Scripted": "runtime.backends.scripted",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'sglc' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
