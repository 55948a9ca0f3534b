"""Vectors of texts: POST /v1/embeddings, /encode and /judge.

A server has one of them: embeddings (--is-embedding, or a model published as one), or the scores of a reward model.
"""

from __future__ import annotations

import base64
import math
import sys
from array import array
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from runtime.api import Embed, Embedded, Prompt, TextSegment
from runtime.engine.async_engine import embedded
from runtime.engine.native import encoded
from runtime.errors import InvalidRequest, Unsupported
from runtime.server import answers, bodies
from runtime.server.context import Context
from runtime.server.conversation import read_messages
from runtime.server.limits import check_prompts
from runtime.server.native import names_of, prompts_of
from runtime.server.openai import prompts_of as openai_prompts
from runtime.server.operation import operation


async def _vectors(
    context: Context, body: Any, prompts: Sequence[Prompt], names: Sequence[str] = ()
) -> list[Embedded]:
    """The vector of each prompt, in order. By its name a prompt can be aborted, which ends the request."""
    calls = [
        Embed(prompt=p, id=str(i), priority=body.priority, salt=body.cache_salt or "")
        for i, p in enumerate(prompts)
    ]
    found: dict[int, Embedded] = {}
    async with context.run(calls, {n: [c] for n, c in zip(names, calls, strict=False)}) as deltas:
        async for delta in deltas:
            found[int(delta.id)] = embedded(delta)
    return [found[i] for i in range(len(calls))]


@operation(body=bodies.EncodeBody, answer=answers.Encoded | list[answers.Encoded], errors=(499,))
async def encode(request: web.Request) -> web.Response:
    """The vectors of texts or token ids: embeddings, or the scores of a reward model."""
    context = Context.of(request)
    body = await bodies.read(request, bodies.EncodeBody)
    segments, many = prompts_of(body, context.server)
    context.engine.check_task(vectors=True)
    return await _encoded(context, body, [(s,) for s in segments], many)


@operation(body=bodies.JudgeBody, answer=answers.Encoded | list[answers.Encoded], errors=(499,))
async def judge(request: web.Request) -> web.Response:
    """What a reward model thinks of conversations, each written by the chat template."""
    context = Context.of(request)
    body = await bodies.read(request, bodies.JudgeBody)
    kinds = {isinstance(c, list) for c in body.conv}
    if len(kinds) != 1:
        what = "mixes messages and conversations" if kinds else "is empty"
        raise InvalidRequest(
            f"conv {what}; give the messages of one conversation, or a list of those", param="conv"
        )
    if (task := context.engine.info["task"]) != "reward":
        kind = {"generate": "generates text", "embed": "gives embeddings"}[task]
        raise Unsupported(
            f"/judge needs a reward model, and {context.model_name!r} {kind}; serve one whose architecture ends in "
            "ForSequenceClassification",
            param="conv",
        )
    template = context.chat_template
    if template is None:
        raise Unsupported("this model has no chat template; send the text to /encode", param="conv")
    many = kinds == {True}
    conversations: Any = body.conv if many else [body.conv]
    check_prompts(context.server, len(conversations), "conv")
    prompts: list[Prompt] = []
    for messages in conversations:
        if not messages:
            raise InvalidRequest("a conversation is empty; give at least one message", param="conv")
        prompts.append((TextSegment(template.render(read_messages(messages), ended=True)),))
    return await _encoded(context, body, prompts, many)


async def _encoded(context: Context, body: Any, prompts: Sequence[Prompt], many: bool) -> web.Response:
    names = names_of(body.rid, len(prompts))
    found = await _vectors(context, body, prompts, names)
    rows = [encoded(e, name, i) for i, (e, name) in enumerate(zip(found, names, strict=True))]
    return answers.as_json(rows if many else rows[0])


@operation(body=bodies.EmbeddingBody, answer=answers.Embeddings)
async def embeddings(request: web.Request) -> web.Response:
    """OpenAI's embeddings: of one text or several, or of token ids."""
    context = Context.of(request)
    body = await bodies.read(request, bodies.EmbeddingBody)
    context.check_model(body.model)
    segments = openai_prompts(body.input, "input")
    check_prompts(context.server, len(segments), "input")
    context.engine.check_task(vectors=True)
    if context.engine.info["task"] == "reward":
        raise Unsupported(
            f"{context.model_name!r} is a reward model, whose scores are no embeddings; send the text to /encode",
            param="model",
        )
    size = _size(context, body.dimensions)
    try:
        found = await _vectors(context, body, [(s,) for s in segments])
    except InvalidRequest as error:
        raise type(error)(error.message, param="input" if error.param is None else error.param) from None
    tokens = sum(e.usage.prompt_tokens for e in found if e.usage)
    cached = sum(e.usage.cached_tokens for e in found if e.usage)
    data = [
        {"object": "embedding", "embedding": _written(_cut(e.vector, size), body.encoding_format), "index": i}
        for i, e in enumerate(found)
    ]
    usage = {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return answers.as_json({"object": "list", "data": data, "model": context.model_name, "usage": usage})


def _size(context: Context, wanted: int | None) -> int:
    """How long embeddings are to be. Raises InvalidRequest for a size that the model was not trained for."""
    whole, sizes = context.engine.info["embedding_size"], context.engine.info["embedding_sizes"]
    if wanted is None or wanted == whole:
        return int(whole)
    if not 1 <= wanted < whole:
        raise InvalidRequest(
            f"dimensions is {wanted}, but embeddings of {context.model_name!r} have {whole}; give 1 to {whole}",
            param="dimensions",
        )
    if sizes is not True and wanted not in sizes:
        known = f"for {', '.join(map(str, sizes))} alone" if sizes else "for its whole size alone"
        raise Unsupported(
            f"dimensions is {wanted}, but {context.model_name!r} was trained {known}, and a part of an embedding that was "
            "not trained for it means little; leave dimensions out (or, if it was, start the server with "
            "--json-model-override-args '{\"is_matryoshka\": true}')",
            param="dimensions",
        )
    return wanted


def _cut(vector: tuple[float, ...], size: int) -> Sequence[float]:
    """The first numbers, at length 1 again."""
    if size == len(vector):
        return vector
    norm = math.hypot(*vector[:size]) or 1.0
    return [v / norm for v in vector[:size]]


def _written(vector: Sequence[float], form: str) -> Sequence[float] | str:
    if form == "float":
        return vector
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()


def routes() -> list[web.RouteDef]:
    return [
        web.post("/v1/embeddings", embeddings),
        web.post("/encode", encode),
        web.put("/encode", encode),
        web.post("/judge", judge),
        web.put("/judge", judge),
    ]
