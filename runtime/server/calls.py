"""What our own frontend calls: /v1/calls/*, whose prompts are segments of text and ids, as a program's state holds them."""

from __future__ import annotations

import msgspec
from aiohttp import web

from runtime.api import Generate, Prompt, Score, ScoreResult
from runtime.server import bodies
from runtime.server.context import Context
from runtime.server.operation import operation


class CallsBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/calls/generate: segments of text and ids, as a program's state holds them."""

    calls: list[Generate]


class PrefillBody(msgspec.Struct, forbid_unknown_fields=True):
    prompt: Prompt


@operation(body=CallsBody, kinds=("application/x-ndjson",))
async def calls_generate(request: web.Request) -> web.StreamResponse:
    """Run calls together; each line of the answer is one Delta, as JSON."""
    context = Context.of(request)
    body = await bodies.read(request, CallsBody)
    async with context.run(body.calls) as deltas:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        async for delta in deltas:
            await response.write(msgspec.json.encode(delta) + b"\n")
        await response.write_eof()
        return response


@operation(body=Score, answer=ScoreResult)
async def calls_score(request: web.Request) -> web.Response:
    """Log-probabilities of given continuations."""
    body = await bodies.read(request, Score)
    result = await Context.of(request).engine.score(body)
    return web.Response(body=msgspec.json.encode(result), content_type="application/json")


@operation(body=PrefillBody)
async def calls_prefill(request: web.Request) -> web.Response:
    """Compute a prefix and leave it in the cache."""
    body = await bodies.read(request, PrefillBody)
    await Context.of(request).engine.prefill(body.prompt)
    return web.json_response({})


def routes() -> list[web.RouteDef]:
    return [
        web.post("/v1/calls/generate", calls_generate),
        web.post("/v1/calls/score", calls_score),
        web.post("/v1/calls/prefill", calls_prefill),
    ]
