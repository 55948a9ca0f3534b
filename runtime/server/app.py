"""The HTTP process: routes, keys, start and end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket

from aiohttp import web

from runtime.config import EngineConfig, ServerConfig
from runtime.engine.async_engine import AsyncEngine
from runtime.engine.process import ProcessTransport
from runtime.errors import EngineDead, ModelError
from runtime.server import (
    auth,
    batches,
    calls,
    chat,
    completions,
    embeddings,
    errors,
    facts,
    faults,
    integrity,
    limits,
    messages,
    native,
    observe,
    openai,
    openapi,
    operate,
    replay,
    responses,
)
from runtime.server.auth import Origins
from runtime.server.connection import listen
from runtime.server.context import KEY, Context
from runtime.server.page import routes as page

log = logging.getLogger("runtime.server")
_GC_THRESHOLDS = (
    5000,
    20,
    20,
)  # a step of the engine makes thousands of objects that are gone before the next


def build(context: Context) -> web.Application:
    """The application, without a socket."""
    server = context.server
    origins = Origins(server.host, server.cors_allow_origin or ())
    middlewares = [
        observe.middleware,
        messages.error_shape,
        errors.middleware,
        auth.same_origin(origins),
        auth.guard(auth.Keys.of(server)),
        observe.until_closing,
        limits.guard(server),
    ]
    if context.tracing is not None:
        middlewares.insert(1, context.tracing.middleware())
    app = web.Application(middlewares=middlewares, client_max_size=server.max_request_bytes)
    app[KEY] = context
    app.on_response_prepare.append(observe.answer_headers(origins))
    for api in (
        native,
        calls,
        facts,
        openai,
        completions,
        chat,
        messages,
        embeddings,
        operate,
        integrity,
    ):
        app.add_routes(api.routes())
    page.attach(app, context)
    if context.config.debug_faults:
        app.add_routes(faults.routes())
    batches.install(app, context)
    responses.install(app, context)
    replay.install(app, server.replay_requests)
    openapi.attach(app)
    return app


def _listen(server: ServerConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((server.host, server.port))
    except OSError as error:
        raise ModelError(
            f"cannot listen on {server.host}:{server.port}: {error.strerror}; choose another --port"
        ) from None
    return sock


async def serve(config: EngineConfig, server: ServerConfig) -> int:
    """Run until a signal or the death of the engine; the exit code."""
    auth.Keys.of(server)  # a bad key file is known before the model is loaded
    sock = _listen(server)
    transport = ProcessTransport(
        config,
        restart=not server.no_restart,
        hang_seconds=server.hang_timeout or None,
        logs=(server.log_level, server.log_format),
    )
    engine = AsyncEngine(config, transport, strangers=True)
    try:
        context = Context(engine, server)
        await engine.open()
    except BaseException:
        engine.shutdown()
        sock.close()
        raise
    runner = web.AppRunner(build(context), access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    listener = await listen(runner, sock, server)
    gc.collect()
    gc.freeze()  # what is here now stays: nobody needs to look through it for each step
    gc.set_threshold(*_GC_THRESHOLDS)
    signals = _Signals()
    host, port = sock.getsockname()[:2]
    print(f"The server is ready at http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    while not signals.count and engine.failure is None:
        await signals.wait(0.2)
    if engine.failure is not None:
        log.error("%s; the server stops", engine.failure)
    whole = engine.failure is None and await _drain(context, signals)
    if not whole:
        engine.end_calls(EngineDead("the server has shut down; send the request again"))
        await asyncio.sleep(0.1)  # so that they are told
    listener.close()
    await runner.cleanup()
    await engine.close()
    if context.tracing is not None:
        await asyncio.to_thread(context.tracing.close)
    return 0 if whole else 1


class _Signals:
    """How often the server was asked to stop."""

    def __init__(self) -> None:
        self.count = 0
        self._came = asyncio.Event()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, self._note)

    def _note(self) -> None:
        self.count += 1
        self._came.set()

    async def wait(self, seconds: float) -> None:
        """Until the next signal, or for so long."""
        self._came.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._came.wait(), seconds)


async def _drain(context: Context, signals: _Signals) -> bool:
    """Refuse new requests until those that run are done; False if they did not have the time."""
    context.closing = True
    loop = asyncio.get_running_loop()
    limit = context.server.shutdown_timeout
    deadline = None if limit is None else loop.time() + limit
    while context.serving:
        if signals.count > 1 or context.engine.failure is not None:
            return False
        if deadline is not None and loop.time() > deadline:
            return False
        await signals.wait(0.05)
    return True


def run(config: EngineConfig, server: ServerConfig) -> int:
    """`serve` on the fastest event loop that is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(serve(config, server))
    return uvloop.run(serve(config, server))
