"""Metrics and traces of a running server."""

from __future__ import annotations

import http.server
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from runtime.server.launch import ServerProcess


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    server = ServerProcess(profile_dir=str(tmp_path_factory.mktemp("traces") / "new"))
    yield server
    server.shutdown()


def send(url: str, body: Any = None, method: str | None = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metrics(server: ServerProcess) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(send(f"{server.url}/metrics")[1]):
        for s in family.samples:
            labels = "".join(f",{k}={v}" for k, v in sorted(s.labels.items()) if k != "le")
            found[s.name.removeprefix("sglc:") + labels] = s.value
    return found


def test_requests_are_counted(operated: ServerProcess) -> None:
    before = metrics(operated)
    params = {"max_new_tokens": 5, "ignore_eos": True}
    url = f"{operated.url}/generate"
    assert send(url, {"text": "Tell me", "sampling_params": {**params, "n": 2}})[0] == 200
    assert send(url, {"text": "Tell me", "sampling_params": {**params, "regex": "[a-z]{3}"}})[0] == 200
    assert send(url, {"text": "Tell me", "sampling_params": {"n": 0}})[0] == 400
    deadline = time.monotonic() + 10
    while True:  # the engine's own figures come with its heartbeat
        now = metrics(operated)
        if now.get("prefix_cache_queries_total", 0) >= 3 and not now["num_requests_running"]:
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    added = {k: v - before.get(k, 0) for k, v in now.items()}
    assert added["time_to_first_token_seconds_count"] == added["e2e_request_latency_seconds_count"] == 3
    assert added["inter_token_latency_seconds_count"] >= 8
    assert 13 <= added["generation_tokens_total"] <= 15  # the constrained one may end early
    assert added["grammar_compilation_time_seconds_count"] >= 1
    assert added["http_requests_total,method=POST,route=/generate,status=200"] == 2
    assert added["http_errors_total,route=/generate,status=400"] == 1
    assert now["engine_up"] == 1 and now["num_requests_running"] == 0 and now["kv_cache_usage_perc"] == 0


def test_a_trace_is_written(operated: ServerProcess) -> None:
    code, text = send(f"{operated.url}/stop_profile")
    assert code == 400 and "no profile is running" in text
    assert send(f"{operated.url}/start_profile")[0] == 200
    code, text = send(f"{operated.url}/start_profile", {})
    assert code == 400 and "running already" in text
    params = {"max_new_tokens": 3, "ignore_eos": True}
    assert send(f"{operated.url}/generate", {"text": "Tell me", "sampling_params": params})[0] == 200
    code, text = send(f"{operated.url}/stop_profile", {})
    assert code == 200
    folder = Path(json.loads(send(f"{operated.url}/get_server_args")[1])["profile_dir"])
    trace = json.loads((folder / json.loads(text)["file"]).read_text())
    assert any(str(e.get("name", "")).startswith("aten::") for e in trace["traceEvents"])


def test_without_a_folder_there_are_no_traces(server: ServerProcess) -> None:
    code, text = send(f"{server.url}/start_profile", {})
    assert code == 400 and "--profile-dir" in text


class Collector:
    """An OpenTelemetry collector on loopback that keeps what it is sent."""

    def __init__(self) -> None:
        bodies = self.bodies = []  # type: list[bytes]

        class Take(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Take)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1/traces"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def spans(self) -> list[Any]:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        requests = [ExportTraceServiceRequest.FromString(b) for b in self.bodies]
        return [s for r in requests for rs in r.resource_spans for ss in rs.scope_spans for s in ss.spans]


def test_a_span_for_each_request() -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is not installed")
    collector = Collector()
    server = ServerProcess(otlp_traces_endpoint=collector.url)
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    body = {"text": "a secret prompt", "sampling_params": {"max_new_tokens": 4, "ignore_eos": True, "n": 2}}
    headers = {
        "Content-Type": "application/json",
        "traceparent": f"00-{trace}-{parent}-01",
        "X-Request-Id": "mine",
    }
    request = urllib.request.Request(f"{server.url}/generate", json.dumps(body).encode(), headers)
    assert urllib.request.urlopen(request).status == 200
    assert send(f"{server.url}/generate", {})[0] == 400
    server.shutdown()  # sends what is left
    good, bad = sorted(collector.spans(), key=lambda s: s.start_time_unix_nano)
    assert good.name == bad.name == "POST /generate"
    assert (good.trace_id.hex(), good.parent_span_id.hex()) == (trace, parent)
    values = {a.key: a.value for a in good.attributes}
    assert values["http.response.status_code"].int_value == 200
    assert values["gen_ai.request.id"].string_value == "mine"
    assert values["gen_ai.usage.output_tokens"].int_value == 8
    assert values["gen_ai.latency.time_to_first_delta"].double_value > 0
    assert {a.key: a.value for a in bad.attributes}["http.response.status_code"].int_value == 400
    assert b"secret" not in b"".join(collector.bodies)


def test_what_requests_say_is_logged_if_asked() -> None:
    server = ServerProcess(
        log_requests=True, log_level="warning", log_level_http="info", api_key="sk-never-logged"
    )
    try:
        request = urllib.request.Request(
            f"{server.url}/generate",
            json.dumps(
                {"text": "12 + 35 =", "sampling_params": {"temperature": 0, "max_new_tokens": 3}}
            ).encode(),
            {"Content-Type": "application/json", "Authorization": "Bearer sk-never-logged"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.loads(answer.read())["text"] == " 47"
        end = time.monotonic() + 10
        while not any("POST /generate 200" in line for line in server.last_lines):
            assert time.monotonic() < end
            time.sleep(0.05)
        logged = "\n".join(server.last_lines)
        assert "12 + 35 =" in logged and '" 47"' in logged and "sk-never-logged" not in logged
    finally:
        server.shutdown()
