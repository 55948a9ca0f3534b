"""OpenTelemetry spans of requests: one for each, below the caller's, with its tokens and its time to the first of them.

Needs the extra `otel`; without --otlp-traces-endpoint nothing of it is loaded. Neither prompts nor answers are in a span.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from aiohttp import web

from runtime.api import Delta
from runtime.errors import InvalidRequest
from runtime.server.operation import route_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


class Tracing:
    """Spans that go to a collector."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("sglc.runtime")

    @classmethod
    def to(cls, endpoint: str, model: str) -> Tracing:
        """Send spans to an OTLP collector over HTTP. Raises InvalidRequest if the extra is not installed."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise InvalidRequest(
                "--otlp-traces-endpoint needs OpenTelemetry; install it with: pip install 'sglc[otel]'"
            ) from None
        resource = Resource.create({"service.name": "sglc-runtime", "gen_ai.request.model": model})
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        return cls(provider)

    def close(self) -> None:
        """Send what is left; blocks until that is done, or given up."""
        self._provider.shutdown()

    def middleware(self) -> Any:
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, Status, StatusCode

        @web.middleware
        async def span(request: web.Request, handler: Any) -> web.StreamResponse:
            route = route_of(request) or "none"
            with self._tracer.start_as_current_span(
                f"{request.method} {route}",
                context=extract(request.headers),
                kind=SpanKind.SERVER,
                attributes={"http.request.method": request.method, "http.route": route},
                record_exception=False,  # its text may quote the request
            ) as span:
                span.set_attribute("gen_ai.request.id", request.get("id", ""))
                response = await handler(request)
                span.set_attribute("http.response.status_code", response.status)
                if response.status >= 500:
                    span.set_status(Status(StatusCode.ERROR))
                return response

        return span

    async def watched(self, deltas: AsyncIterator[Delta]) -> AsyncIterator[Delta]:
        """The same deltas; what they cost is put into the current span when a sample ends."""
        from opentelemetry.trace import get_current_span

        span = get_current_span()
        began = time.perf_counter()
        first = True
        prompt = output = cached = 0
        async for delta in deltas:
            if first:
                first = False
                span.set_attribute("gen_ai.latency.time_to_first_delta", time.perf_counter() - began)
            if delta.usage is not None and delta.finish is not None:
                prompt += delta.usage.prompt_tokens
                output += delta.usage.completion_tokens
                cached += delta.usage.cached_tokens
                span.set_attribute("gen_ai.usage.input_tokens", prompt)
                span.set_attribute("gen_ai.usage.output_tokens", output)
                span.set_attribute("gen_ai.usage.cached_tokens", cached)
                span.set_attribute("gen_ai.response.finish_reasons", [delta.finish.type])
            yield delta
