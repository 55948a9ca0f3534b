"""What OpenAI's endpoints have in common: sampling fields, usage, reasons, heads of answers; and /v1/models."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from runtime.api import Constraint, Delta, Generate, SamplingParams, Segment, TextSegment, TokenSegment, Usage
from runtime.errors import InvalidRequest, ModelNotFound
from runtime.server import answers, bodies
from runtime.server.context import Context
from runtime.server.errors import naming
from runtime.server.operation import operation


def sampling_of(
    body: bodies.SamplingBody,
    max_tokens: int | None,
    *,
    constraint: Constraint | None = None,
    limit: str = "max_tokens",
) -> SamplingParams:
    """Sampling fields of a body, where `limit` is the one of `max_tokens`. Raises InvalidRequest with the OpenAI name of the field."""
    given = [
        Constraint(k, v).compact  # type: ignore[arg-type]
        for k in ("regex", "json_schema", "ebnf")
        if (v := getattr(body, k)) is not None
    ]
    given += [constraint] if constraint else []
    if len(given) > 1:
        raise InvalidRequest(
            f"{given[0].kind} and {given[1].kind} cannot be given together", param=given[1].kind
        )
    bias = {}
    for key, value in (body.logit_bias or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise InvalidRequest(
                f"logit_bias has the key {key[:40]!r}; keys are token ids", param="logit_bias"
            )
        bias[int(key)] = value
    params = SamplingParams(
        max_new_tokens=max_tokens,
        min_new_tokens=body.min_tokens,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        repetition_penalty=body.repetition_penalty,
        ignore_eos=body.ignore_eos,
        no_stop_trim=body.no_stop_trim is True,
        skip_special_tokens=body.skip_special_tokens,
        logit_bias=bias,
        seed=body.seed,
        n=body.n,
        constraint=given[0] if given else None,
    )
    with naming({"max_new_tokens": limit, "min_new_tokens": "min_tokens"}):
        params.check()
    return params


def prompts_of(given: str | list[str | int | list[int]], param: str) -> list[Segment]:
    """One text, several, the ids of one prompt, or those of several. Raises InvalidRequest that names the field `param`."""
    if isinstance(given, str):
        return [TextSegment(given)]
    kinds = {type(p) for p in given}
    if len(kinds) != 1:
        what = "is empty" if not kinds else "mixes texts and token ids"
        raise InvalidRequest(
            f"the {param} {what}; give a text, texts, token ids, or lists of token ids", param=param
        )
    if kinds == {int}:
        return [TokenSegment(tuple(p for p in given if isinstance(p, int)), "")]
    return [
        TextSegment(p) if isinstance(p, str) else TokenSegment(tuple(p), "")
        for p in given
        if not isinstance(p, int)
    ]


def check_stream(body: bodies.SamplingBody) -> None:
    """Raises InvalidRequest for options of streams where there is none."""
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream to be true", param="stream_options")


def head(context: Context, prefix: str, kind: str, call: Generate) -> dict[str, Any]:
    """What every answer and every chunk of a stream begins with; with the seed and the fingerprint it can be replayed."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": context.model_name,
        "system_fingerprint": context.fingerprint,
        "seed": call.sampling.seed,
    }


def usage_of(deltas: Iterable[Delta], prompt: int, reasoning: int | None = None) -> dict[str, Any]:
    """Usage as far as the newest deltas of the samples know it. `prompt` counts each prompt once, however many samples it
    has, and so are cached tokens counted: those that its first sample found. `reasoning` are tokens of the reasoning."""
    completion, cached = 0, dict[str, int]()
    for delta in deltas:
        u = delta.usage or Usage()
        completion += u.completion_tokens
        cached[delta.id] = min(u.cached_tokens, cached.get(delta.id, u.cached_tokens))
    out: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(cached.values())},
    }
    if reasoning is not None:
        out["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return out


class StreamUsage:
    """What a stream tells of its usage: at its end, in every chunk, or not at all."""

    def __init__(self, options: bodies.StreamOptions | None, prompt: int) -> None:
        self.at_end = options is not None and options.include_usage
        self._always = options is not None and options.continuous_usage_stats
        self._prompt = prompt
        self._newest: dict[tuple[str, int], Delta] = {}

    def add(self, delta: Delta) -> None:
        self._newest[delta.id, delta.index] = delta

    def field(self) -> dict[str, Any]:
        """What a chunk says of it."""
        if self._always:
            return {"usage": self.whole()}
        return {"usage": None} if self.at_end else {}

    def whole(self, reasoning: int | None = None) -> dict[str, Any]:
        return usage_of(self._newest.values(), self._prompt, reasoning)


def reason(delta: Delta) -> str | None:
    """finish_reason; None while the sample runs."""
    if delta.finish is None:
        return None
    return {"stop": "stop", "length": "length", "abort": "abort"}.get(delta.finish.type, "error")


def matched(delta: Delta) -> int | str | None:
    """The stop string or the id of the stop token."""
    return delta.finish.matched if delta.finish is not None and delta.finish.type == "stop" else None


def raise_error(delta: Delta) -> None:
    """Raises the error of a sample that failed."""
    if delta.finish is not None and delta.finish.type == "error":
        raise Context.error(delta)


# -- models -----------------------------------------------------------------------------------------------


def _card(context: Context) -> dict[str, Any]:
    """As OpenAI's clients read it, and as Anthropic's do."""
    return {
        "id": context.model_name,
        "object": "model",
        "type": "model",
        "display_name": context.model_name,
        "created": context.started,
        "created_at": datetime.fromtimestamp(context.started, UTC).isoformat(),
        "lifecycle": "active",
        "owned_by": "sglc",
        "root": context.config.folder,
        "max_model_len": context.engine.info["context_length"],
        "max_input_tokens": context.engine.info["context_length"],
    }


@operation(answer=answers.Models)
async def models(request: web.Request) -> web.Response:
    """The model of this server, as a list."""
    card = _card(Context.of(request))
    ends = {"first_id": card["id"], "last_id": card["id"], "has_more": False}
    return web.json_response({"object": "list", "data": [card], **ends})


@operation(answer=answers.Model)
async def model(request: web.Request) -> web.Response:
    """The model of this server."""
    context = Context.of(request)
    name = request.match_info["name"]
    if name != context.model_name:
        raise ModelNotFound(
            f"the model {name!r} does not exist; this server has {context.model_name!r}", param="model"
        )
    return web.json_response(_card(context))


def routes() -> list[web.RouteDef]:
    return [web.get("/v1/models", models), web.get("/v1/models/{name:.+}", model)]
