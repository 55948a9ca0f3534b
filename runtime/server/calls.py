"""What our own frontend calls: /v1/calls/*, whose prompts are segments of text and ids, as a program's state holds them."""

from __future__ import annotations

import logging

import msgspec
from aiohttp import web

from runtime.api import Delta, Finish, Generate, Prompt, Score, ScoreResult, Usage
from runtime.errors import EngineError
from runtime.server import bodies, errors
from runtime.server.answers import as_json
from runtime.server.context import Context
from runtime.server.operation import operation

log = logging.getLogger("runtime.server")


class CallsBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/calls/generate: segments of text and ids, as a program's state holds them."""

    calls: list[Generate]


class PrefillBody(msgspec.Struct, forbid_unknown_fields=True):
    prompt: Prompt


@operation(body=CallsBody, kinds=("application/x-ndjson",))
async def calls_generate(request: web.Request) -> web.StreamResponse:
    """Run calls together; each line of the answer is one Delta, as JSON. What fails on the way ends every sample that is left."""
    context = Context.of(request)
    body = await bodies.read(request, CallsBody)
    left = {(c.id, i) for c in body.calls for i in range(c.sampling.n)}
    async with context.run(body.calls) as deltas:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        try:
            async for delta in deltas:
                await response.write(msgspec.json.encode(delta) + b"\n")
                if delta.finish is not None:
                    left.discard((delta.id, delta.index))
        except ConnectionError:
            raise
        except Exception as error:
            if not isinstance(error, EngineError):
                log.error("POST /v1/calls/generate failed", exc_info=error)
            told = error if isinstance(error, EngineError) else EngineError(errors.UNEXPECTED)
            end = Finish(type="error", matched=told.code, message=told.message)
            for id, index in sorted(left):
                lost = Delta(id=id, index=index, finish=end, usage=Usage())
                await response.write(msgspec.json.encode(lost) + b"\n")
        await response.write_eof()
        return response


@operation(body=Score, answer=ScoreResult)
async def calls_score(request: web.Request) -> web.Response:
    """Log-probabilities of given continuations."""
    body = await bodies.read(request, Score)
    result = await Context.of(request).engine.score(body)
    return as_json(result)


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
