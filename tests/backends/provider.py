"""A provider on loopback that answers as OpenAI, Anthropic and Gemini do, and backends that ask it."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import types
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

import sglc as sgl


class Refused(Exception):
    """Carries the answer."""

    def __init__(self, answer: web.Response) -> None:
        self.answer = answer


@web.middleware
async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refused as refused:
        return refused.answer


class Provider:
    """Answers with the last words of what it was asked; keeps what it was sent."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.failures = 0
        self.refusals: list[tuple[int, dict[str, str]]] = []  # of the next calls: status and headers
        self.cut = False  # streams end after their first half, without an end
        app = web.Application(middlewares=[refuse])
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_post("/v1/messages", self.messages)
        app.router.add_post("/{path:.*}:generateContent", self.gemini)
        app.router.add_post("/{path:.*}:streamGenerateContent", self.gemini)
        app.router.add_post("/openai/deployments/{name}/chat/completions", self.chat)
        self.loop = asyncio.new_event_loop()
        self.runner = web.AppRunner(app, shutdown_timeout=0.5)
        started = threading.Event()

        async def start() -> None:
            await self.runner.setup()
            site = web.TCPSite(self.runner, "127.0.0.1", 0)
            await site.start()
            self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
            started.set()

        def serve() -> None:
            self.loop.create_task(start())
            self.loop.run_forever()

        self.thread = threading.Thread(target=serve, daemon=True)
        self.thread.start()
        started.wait(10)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)

    async def body(self, request: web.Request) -> dict[str, Any]:
        found: dict[str, Any] = await request.json()
        self.asked.append(found)
        if self.failures:
            self.failures -= 1
            raise web.HTTPServiceUnavailable(
                text='{"error": {"message": "busy"}}', headers={"retry-after-ms": "1"}
            )
        if self.refusals:
            status, headers = self.refusals.pop(0)
            if status == 0:
                assert request.transport is not None
                request.transport.abort()
            error = web.Response(status=status or 500, text='{"error": {"message": "no"}}', headers=headers)
            raise Refused(error)
        if "refuse me" in json.dumps(found):
            raise Refused(web.Response(status=400, text='{"error": {"message": "never"}}'))
        return found

    async def sse(self, request: web.Request, events: list[tuple[str | None, Any]]) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        for number, (kind, data) in enumerate(events):
            if self.cut and number * 2 >= len(events):
                assert request.transport is not None
                await asyncio.sleep(0.05)  # what was written is read
                request.transport.abort()
                break
            head = f"event: {kind}\n" if kind else ""
            text = data if isinstance(data, str) else json.dumps(data)
            await answer.write(f"{head}data: {text}\n\n".encode())
        return answer

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        content = body["messages"][-1]["content"]
        text = f"<{content if isinstance(content, str) else 'image'}>"
        schema = body.get("response_format", {}).get("json_schema", {}).get("schema", {})
        if "answer" in schema.get("properties", {}):  # a choice: the last one that begins as it was asked
            known = schema["properties"]["answer"]["enum"]
            text = json.dumps({"answer": next((c for c in known[::-1] if c.startswith(content)), content)})
        common = {"id": "c", "object": "chat.completion", "created": 1, "model": body["model"]}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        if body.get("stream"):
            chunk = {**common, "object": "chat.completion.chunk", "usage": None}
            parts = [
                {**chunk, "choices": [{"index": 0, "delta": {"content": c}, "finish_reason": None}]}
                for c in (text[:2], text[2:])
            ]
            end = {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
            last = {**chunk, "choices": [], "usage": usage}
            return await self.sse(request, [(None, p) for p in (*parts, end, last)] + [(None, "[DONE]")])
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": f"{text}{i or ''}"},
                "finish_reason": "stop",
            }
            for i in range(body.get("n", 1))
        ]
        return web.json_response({**common, "choices": choices, "usage": usage})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        choice = {"index": 0, "text": f"[{body['prompt'][-5:]}]", "finish_reason": "length", "logprobs": None}
        usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
        return web.json_response(
            {
                "id": "c",
                "object": "text_completion",
                "created": 1,
                "model": body["model"],
                "choices": [choice],
                "usage": usage,
            }
        )

    async def messages(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        text = f"({body['messages'][-1]['content']})"
        message = {
            "id": "m", "type": "message", "role": "assistant", "model": body["model"], "stop_reason": "end_turn",
            "stop_sequence": None, "content": [{"type": "text", "text": text}],
            "usage": {"input_tokens": 6, "output_tokens": 4},
        }  # fmt: skip
        if not body.get("stream"):
            return web.json_response(message)
        begin = {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}}
        pieces = [
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": t}}
            for t in (text[:2], text[2:])
        ]
        events = [
            begin,
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            *pieces,
            {"type": "content_block_stop", "index": 0},
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                "usage": {"output_tokens": 4},
            },
            {"type": "message_stop"},
        ]
        return await self.sse(request, [(str(e["type"]), e) for e in events])

    async def gemini(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        self.paths.append(request.path)
        last = body["contents"][-1]["parts"][-1]
        text = f"{{{last.get('text', 'image')}}}"
        usage = {"promptTokenCount": 5, "candidatesTokenCount": 2, "cachedContentTokenCount": 1}

        def candidates(said: str, reason: str | None) -> list[dict[str, Any]]:
            count = body.get("generationConfig", {}).get("candidateCount", 1)
            end = {"finishReason": reason} if reason else {}
            return [
                {"index": i, "content": {"role": "model", "parts": [{"text": f"{said}{i or ''}"}]}, **end}
                for i in range(count)
            ]

        if "stream" in request.path:
            first = {"candidates": candidates(text[:2], None)}
            rest = {"candidates": candidates(text[2:], "STOP"), "usageMetadata": usage}
            return await self.sse(request, [(None, first), (None, rest)])
        return web.json_response({"candidates": candidates(text, "MAX_TOKENS"), "usageMetadata": usage})


def openai(provider: Provider, name: str = "gpt-4o", **options: Any) -> sgl.OpenAI:
    return sgl.OpenAI(name, base_url=f"http://127.0.0.1:{provider.port}/v1", api_key="key", **options)


def anthropic(provider: Provider, **options: Any) -> sgl.Anthropic:
    return sgl.Anthropic("claude-x", base_url=f"http://127.0.0.1:{provider.port}", api_key="key", **options)


def vertex(provider: Provider, **options: Any) -> sgl.VertexAI:
    from google.oauth2.credentials import Credentials

    return sgl.VertexAI(
        "gemini-x",
        project="p",
        credentials=Credentials(token="t"),
        http_options={"base_url": f"http://127.0.0.1:{provider.port}"},
        **options,
    )


def litellm(provider: Provider, **options: Any) -> sgl.LiteLLM:
    """The real package where it is installed, else a stand-in that hands the call to OpenAI's client."""
    try:
        import litellm  # noqa: F401
    except ImportError:
        import openai as client

        async def acompletion(
            *, api_key: str, base_url: str, timeout: float, max_retries: int, **fields: Any
        ) -> Any:
            made = client.AsyncOpenAI(
                api_key=api_key, base_url=base_url, timeout=timeout, max_retries=max_retries
            )
            return await made.chat.completions.create(**fields)

        module = types.ModuleType("litellm")
        module.acompletion = acompletion  # type: ignore[attr-defined]
        sys.modules["litellm"] = module
    return sgl.LiteLLM(
        "openai/some", base_url=f"http://127.0.0.1:{provider.port}/v1", api_key="key", **options
    )


@sgl.function
def chat(s, q):  # type: ignore[no-untyped-def]
    s += sgl.system("Be brief.")
    s += sgl.user(q)
    s += sgl.assistant(sgl.gen("a", max_tokens=9, temperature=0.5, stop=["END"]))
    s += sgl.user("And " + s["a"])
    s += sgl.assistant(sgl.gen("b"))
