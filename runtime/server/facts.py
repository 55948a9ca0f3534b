"""What the native API tells of a server and its tokenizer, and the calls that act on the server as a whole."""

from __future__ import annotations

import asyncio

from aiohttp import web

from runtime.api import Embed, Generate, Prompt, SamplingParams, TokenSegment
from runtime.errors import InvalidRequest, NotFound, Overloaded
from runtime.server import answers, bodies, errors
from runtime.server.context import Context
from runtime.server.operation import operation


@operation(kinds=("text/plain",))
async def health(request: web.Request) -> web.Response:
    """200 while the engine loop turns: its process is heard of, and is neither lost nor being started again."""
    engine = Context.of(request).engine
    if (error := engine.failure or engine.down) is not None:
        return errors.of(error)
    return web.Response(text="")


@operation(kinds=("text/plain",))
async def ready(request: web.Request) -> web.Response:
    """200 while new requests are taken: the loop turns and the server is not shutting down."""
    if Context.of(request).closing:
        return errors.of(Overloaded("the server is shutting down"))
    return await health(request)


@operation(kinds=("text/plain",))
async def health_generate(request: web.Request) -> web.Response:
    """200 if one token can be generated, or a vector made, whichever the model does."""
    engine = Context.of(request).engine
    prompt: Prompt = (TokenSegment((0,), ""),)
    call: Generate | Embed = Embed(prompt=prompt)
    if engine.info["task"] == "generate":
        call = Generate(prompt=prompt, sampling=SamplingParams(max_new_tokens=1, temperature=0))
    async for delta in engine.generate([call]):
        if delta.finish is not None and delta.finish.type == "error":
            return errors.response(delta.finish.message or "generation failed", 503, code="engine_dead")
    return web.Response(text="")


@operation(answer=answers.ModelInfo)
async def model_info(request: web.Request) -> web.Response:
    """Which model is served, and its chat template."""
    engine = Context.of(request).engine
    model, task = engine.model, engine.info["task"]
    return web.json_response(
        {"model_path": model.model_path, "is_generation": task == "generate", "chat_template": model.jinja}
    )


@operation(answer=answers.ServerInfo)
async def server_info(request: web.Request) -> web.Response:
    """The options, facts about the model, and what is in use now."""
    context = Context.of(request)
    return web.json_response({**context.server_args(), **context.engine.info, **await context.engine.stats()})


@operation()
async def server_args(request: web.Request) -> web.Response:
    """The options of this server, without secrets."""
    return web.json_response(Context.of(request).server_args())


@operation(answer=answers.Flushed)
async def flush_cache(request: web.Request) -> web.Response:
    """Forget every cached prefix that nobody uses."""
    done = await Context.of(request).engine.flush_cache()
    return web.json_response({"flushed": done}, status=200)


@operation(body=bodies.AbortBody, answer=answers.Aborted)
async def abort(request: web.Request) -> web.Response:
    """End a running request by its id."""
    body = await bodies.read(request, bodies.AbortBody)
    if not Context.of(request).abort(body.rid):
        raise NotFound(f"no request {body.rid!r} is running", param="rid")
    return web.json_response({"aborted": body.rid})


@operation(body=bodies.TokenizeBody, answer=answers.Tokens)
async def tokenize(request: web.Request) -> web.Response:
    """The token ids of a text."""
    body = await bodies.read(request, bodies.TokenizeBody)
    text = body.text if body.text is not None else body.prompt
    if text is None:
        raise InvalidRequest("give the text to tokenize", param="text")
    encode = Context.of(request).engine.tokenizer.encode
    tokens = await asyncio.to_thread(encode, text, first=body.add_special_tokens)
    return web.json_response({"tokens": tokens, "count": len(tokens)})


@operation(body=bodies.DetokenizeBody, answer=answers.Text)
async def detokenize(request: web.Request) -> web.Response:
    """The text of token ids."""
    body = await bodies.read(request, bodies.DetokenizeBody)
    tokenizer = Context.of(request).engine.tokenizer
    wrong = next((t for t in body.tokens if not 0 <= t < tokenizer.size), None)
    if wrong is not None:
        raise InvalidRequest(
            f"token id {wrong} is outside the vocabulary (0 to {tokenizer.size - 1})", param="tokens"
        )
    return web.json_response(
        {"text": tokenizer.decode(body.tokens, skip_special_tokens=body.skip_special_tokens)}
    )


def routes() -> list[web.RouteDef]:
    return [
        web.get("/health", health),
        web.get("/health_generate", health_generate),
        web.get("/ready", ready),
        web.get("/get_model_info", model_info),
        web.get("/get_server_info", server_info),
        web.get("/get_server_args", server_args),
        web.get("/flush_cache", flush_cache),
        web.post("/flush_cache", flush_cache),
        web.post("/abort_request", abort),
        web.post("/tokenize", tokenize),
        web.post("/detokenize", detokenize),
    ]
