"""What a server refuses before it looks into it, who may call, and what becomes of slow and absent clients."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.api import Constraint, Generate, LogprobOptions, SamplingParams, TextSegment
from runtime.config import Limits, ServerConfig
from runtime.errors import InvalidRequest
from runtime.server.auth import Keys, Origins
from runtime.server.launch import ServerProcess
from runtime.server.limits import check_calls
from tests.server.calls import wait

KEY, OTHER, ADMIN = "client-key-1", "client-key-2", "operator-key"


@pytest.fixture(scope="module")
def guarded() -> Iterator[ServerProcess]:
    server = ServerProcess(
        api_key=[KEY, OTHER],
        admin_api_key=ADMIN,
        max_request_bytes=100_000,
        header_timeout=1.5,
        body_timeout=1.5,
        max_stream_backlog=50,
        cors_allow_origin="https://page.example",
        log_level="info",
        log_format="json",
        max_queued_requests=0,
        max_running_requests=4,
    )
    yield server
    server.shutdown()


def connect(server: ServerProcess) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def exchange(server: ServerProcess, data: bytes) -> tuple[int, dict[str, str], Any]:
    """Send raw bytes; the answer's status, headers and body. Status 0: the connection was closed without one."""
    with connect(server) as connection:
        try:
            connection.sendall(data)
        except ConnectionError:
            pass
        found = b""
        try:
            while more := connection.recv(1 << 16):
                found += more
                head, gap, body = found.partition(b"\r\n\r\n")
                length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                if gap and length and len(body) >= int(length[0].split(b":")[1]):
                    break
        except ConnectionError:
            pass
    if not found:
        return 0, {}, None
    head, _, body = found.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    return int(first.split()[1]), headers, json.loads(body) if body[:1] == b"{" else body


def post(
    server: ServerProcess, path: str, body: bytes | Any = b"", key: str | None = KEY, **headers: str
) -> tuple[int, dict[str, str], Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Host": "127.0.0.1", "Content-Type": "application/json", "Content-Length": str(len(data))}
    if key is not None:
        fields["Authorization"] = f"Bearer {key}"
    fields |= {k.replace("_", "-"): v for k, v in headers.items()}
    head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items())
    return exchange(server, head.encode("latin-1") + b"\r\n" + data)


def get(
    server: ServerProcess, path: str, key: str | None = KEY, **headers: str
) -> tuple[int, dict[str, str], Any]:
    fields = {"Host": "127.0.0.1"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
    fields |= {k.replace("_", "-"): v for k, v in headers.items()}
    head = f"GET {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items())
    return exchange(server, head.encode("latin-1") + b"\r\n")


def held(server: ServerProcess) -> tuple[int, int]:
    info = get(server, "/get_server_info")[2]
    return info["num_running_reqs"], info["kv_cache"]["used_tokens"]


# -- sizes ------------------------------------------------------------------------------------------------


def test_large_bodies_and_bombs_are_refused(guarded: ServerProcess) -> None:
    bomb = gzip.compress(b" " * (64 << 20))
    cases: list[tuple[bytes, dict[str, str], int]] = [
        (b"x" * 100_001, {}, 413),
        (bomb, {"Content_Encoding": "gzip"}, 413),
        (b"not gzip", {"Content_Encoding": "gzip"}, 400),
        (b"{}", {"Content_Length": "99999999999"}, 413),
    ]
    for body, headers, status in cases:
        code, _, answer = post(guarded, "/generate", body, **headers)
        assert code == status, (headers, answer)
        assert set(answer["error"]) == {"message", "type", "param", "code"}
    good = gzip.compress(json.dumps({"text": "a", "sampling_params": {"max_new_tokens": 1}}).encode())
    assert post(guarded, "/generate", good, Content_Encoding="gzip")[0] == 200


def test_endless_chunks_end(guarded: ServerProcess) -> None:
    head = f"POST /generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    chunks = (b"1000\r\n" + b"x" * 4096 + b"\r\n") * 60
    code, _, answer = exchange(guarded, (head + "Transfer-Encoding: chunked\r\n\r\n").encode() + chunks)
    assert code == 413 and answer["error"]["code"] == "too_large"


@pytest.mark.parametrize(
    ("head", "statuses"),
    [
        (b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 70_000 + b"\r\n\r\n", (431,)),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20_000 + b"\r\n", (431, 0)),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n" + (b"A: " + b"b" * 15_000 + b"\r\n") * 5 + b"\r\n", (431,)),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", (431,)),
        (b"GET /health HTTP/0.9\r\n\r\n", (400,)),
        (b"\x16\x03\x01\x02\x00\x01\x00", (400,)),
        (b"\x80\x04\x95 pickle\r\n\r\n", (400,)),
    ],
    ids=["one field", "20,000 fields", "sum", "line", "HTTP/0.9", "TLS", "pickle"],
)
def test_bad_heads_have_the_one_error_shape(
    guarded: ServerProcess, head: bytes, statuses: tuple[int, ...]
) -> None:
    code, headers, answer = exchange(guarded, head)
    assert code in statuses
    if code:
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        assert headers.get("connection") != "keep-alive" and len(json.dumps(answer)) < 1000
        assert headers["server"] == "runtime"
    assert get(guarded, "/health", key=None)[0] == 200


def test_slow_senders_are_cut_off(guarded: ServerProcess) -> None:
    with connect(guarded) as header, connect(guarded) as body:
        header.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nA: ")
        start = f"POST /generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        body.sendall((start + "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{").encode())
        assert b" 408 " in body.recv(1 << 16)
        assert header.recv(1) == b""


def _call(**fields: Any) -> Generate:
    logprobs = LogprobOptions(top=fields.pop("top", 0))
    return Generate(prompt=(TextSegment("a"),), sampling=SamplingParams(**fields), logprobs=logprobs)


@pytest.mark.parametrize(
    ("fields", "count", "param"),
    [
        ({"n": 9}, 1, "n"),
        ({"n": 4}, 9, "n"),
        ({}, 33, "n"),
        ({"stop": ("a",) * 6}, 1, "stop"),
        ({"stop_token_ids": (1,) * 6}, 1, "stop_token_ids"),
        ({"top": 4}, 1, "top_logprobs"),
        ({"constraint": Constraint("regex", "a" * 101)}, 1, "regex"),
        ({"constraint": Constraint("ebnf", "é" * 51)}, 1, "ebnf"),
        ({"constraint": Constraint("json_schema", " " * 201)}, 1, "json_schema"),
        ({"constraint": Constraint("json_schema", "[" * 6 + "]" * 6)}, 1, "json_schema"),
    ],
)
def test_calls_that_ask_for_too_much(fields: dict[str, Any], count: int, param: str) -> None:
    limits = Limits(
        max_samples=8,
        max_sequences=32,
        max_stop_strings=5,
        max_top_logprobs=3,
        max_grammar_bytes=100,
        max_schema_bytes=200,
        max_schema_depth=5,
    )
    with pytest.raises(InvalidRequest) as refused:
        check_calls(limits, [_call(**fields)] * count)
    assert refused.value.param == param and "may be at most" in refused.value.message
    check_calls(Limits(), [_call(**{**fields, "n": 1})])


def test_brackets_in_strings_are_no_depth() -> None:
    flat = Constraint("json_schema", json.dumps({"const": '[[["\\[[['}))
    check_calls(Limits(max_schema_depth=1), [_call(constraint=flat)])


def test_limits_reach_every_endpoint(guarded: ServerProcess) -> None:
    many = {"prompt": ["a"] * 2000, "max_tokens": 1}
    code, _, answer = post(guarded, "/v1/completions", many)
    assert code == 400 and "1024" in answer["error"]["message"]
    code, _, answer = post(guarded, "/generate", {"text": ["a"] * 2000})
    assert code == 400 and "1024" in answer["error"]["message"]
    stops = {"messages": [{"role": "user", "content": "a"}], "stop": ["a"] * 65}
    code, _, answer = post(guarded, "/v1/chat/completions", stops)
    assert code == 400 and answer["error"]["param"] == "stop"


# -- keys -------------------------------------------------------------------------------------------------


@given(
    st.sampled_from([None, "", "x", KEY, OTHER, ADMIN, KEY + "x"]),
    st.sampled_from(["/health", "/generate", None, "/flush_cache"]),
)
def test_keys_open_what_they_should(key: str | None, route: str | None) -> None:
    refusal = Keys([KEY, OTHER], ADMIN).refusal(key, route)
    if route == "/health" or key == ADMIN:
        assert refusal is None
    elif key not in (KEY, OTHER):
        assert refusal == 401
    else:
        assert refusal == (403 if route == "/flush_cache" else None)
    assert Keys([]).refusal(key, route) is None
    only = Keys([], ADMIN).refusal(key, route)
    assert only == (401 if route == "/flush_cache" and key != ADMIN else None)


def test_keys_come_from_options_and_files(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one\ntwo\n")
    keys = Keys.of(ServerConfig(api_key=["zero"], api_key_file=str(file)))
    assert [keys.refusal(k, "/x") for k in ("zero", "one", "two", "three")] == [None, None, None, 401]
    assert "zero" not in repr(vars(keys)) and "two" not in repr(vars(keys))
    file.write_text("\n")
    for bad in (str(file), str(tmp_path / "none")):
        with pytest.raises(InvalidRequest, match="--api-key-file"):
            Keys.of(ServerConfig(api_key_file=bad))
    with pytest.raises(InvalidRequest, match="empty"):
        Keys.of(ServerConfig(api_key=[""]))


TRICKS = [
    "//generate", "/generate/", "/health/../generate", "/health/..%2fgenerate", "/./generate", "/generate?x=/health",
    "/generate;/health", "/%67enerate", "/health%2f..%2fgenerate", "/health/generate", "/healthz", "/HEALTH",
    "/health_generate", "/ready", "/metrics", "http://x/generate", "/v1/models#/health", "/get_server_info",
]  # fmt: skip


@pytest.mark.parametrize("path", TRICKS)
def test_no_path_passes_the_guard(guarded: ServerProcess, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"x_api_key": "wrong"}, {"Host": "x/health?"}):
        code, _, answer = get(guarded, path, None, **headers)
        assert code == 401 and answer["error"]["code"] == "invalid_api_key"
        assert post(guarded, path, b"{}", None, **headers)[0] == 401


def test_keys_are_taken_from_both_headers_and_shown_nowhere(guarded: ServerProcess) -> None:
    assert get(guarded, "/v1/models")[0] == get(guarded, "/v1/models", None, x_api_key=OTHER)[0] == 200
    assert post(guarded, "/flush_cache")[0] == 403 and post(guarded, "/flush_cache", key=ADMIN)[0] == 200
    for path in ("/get_server_info", "/get_server_args"):
        text = json.dumps(get(guarded, path)[2])
        assert not any(k in text for k in (KEY, OTHER, ADMIN))


# -- pages of other origins -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        ("http://127.0.0.1:30000", "127.0.0.1:30000", True),
        ("http://localhost:30000", "localhost:30000", True),
        ("http://[::1]:30000", "[::1]:30000", True),
        ("http://evil.example", "127.0.0.1:30000", False),
        ("http://evil.example:30000", "evil.example:30000", False),  # a name that was made to point here
        ("null", "127.0.0.1:30000", False),
        ("http://localhost:30001", "localhost:30000", False),
        ("https://page.example", "127.0.0.1:30000", True),
    ],
)
def test_origins(origin: str, host: str, allowed: bool) -> None:
    assert Origins("127.0.0.1", ["https://page.example/"]).allows(origin, host) is allowed
    assert Origins("127.0.0.1", ["*"]).allows(origin, host)
    assert not Origins("127.0.0.1", []).allows("https://page.example", host)
    assert Origins("0.0.0.0", []).allows("http://a.example", "a.example")


def test_pages_are_answered_or_refused(guarded: ServerProcess) -> None:
    code, headers, answer = post(guarded, "/flush_cache", key=ADMIN, Origin="http://evil.example")
    assert code == 403 and answer["error"]["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in headers
    ask = (
        b"OPTIONS /generate HTTP/1.1\r\nHost: x\r\nOrigin: https://page.example\r\n"
        b"Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization\r\n\r\n"
    )
    code, headers, _ = exchange(guarded, ask.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert code == 204 and headers["access-control-allow-origin"] == "https://page.example"
    assert headers["access-control-allow-headers"] == "authorization"
    code, headers, _ = get(guarded, "/v1/models", Origin="https://page.example")
    assert code == 200 and headers["access-control-allow-origin"] == "https://page.example"
    assert exchange(guarded, b"OPTIONS /generate HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 401


# -- clients that leave, or read slowly -------------------------------------------------------------------


def _begin(connection: socket.socket, body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    head = f"POST /generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)


def _endless(**options: Any) -> dict[str, Any]:
    params = {"max_new_tokens": 4000, "ignore_eos": True, **options.pop("params", {})}
    return {"text": "Tell me", "sampling_params": params, **options}


@pytest.mark.parametrize(
    "body",
    [
        _endless(stream=True),
        _endless(),
        _endless(params={"n": 4}),
        _endless(stream=True, params={"n": 3}),
        _endless(params={"regex": "[a-z ]{3000,}"}),
    ],
    ids=["streamed", "whole", "n=4", "n=3 streamed", "regex"],
)
def test_what_clients_that_left_had_is_freed(guarded: ServerProcess, body: dict[str, Any]) -> None:
    with connect(guarded) as connection:
        _begin(connection, body)
        count = body["sampling_params"].get("n", 1)
        wait(lambda: held(guarded)[0] == count)
    wait(lambda: held(guarded) == (0, 0), 2)  # seconds, as promised


def test_a_full_server_says_when_to_come_back(guarded: ServerProcess) -> None:
    with connect(guarded) as connection:
        _begin(connection, _endless(params={"n": 4}))
        wait(lambda: held(guarded)[0] == 4)
        code, headers, answer = post(guarded, "/generate", {"text": "a"})
        assert code == 429 and headers["retry-after"] and answer["error"]["type"] == "rate_limit_error"
        assert get(guarded, "/health", None)[0] == 200
    wait(lambda: held(guarded) == (0, 0))
    assert post(guarded, "/generate", {"text": "a", "sampling_params": {"max_new_tokens": 1}})[0] == 200


def test_who_does_not_read_is_disconnected(guarded: ServerProcess) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        host, port = guarded.url.removeprefix("http://").split(":")
        connection.connect((host, int(port)))
        _begin(connection, _endless(stream=True, return_logprob=True, top_logprobs_num=20))
        wait(lambda: held(guarded)[0] == 1)
        wait(lambda: held(guarded) == (0, 0))  # while the connection is open on this side
    wait(lambda: any("deltas unread" in line for line in guarded.last_lines), 5)


# -- what is logged ---------------------------------------------------------------------------------------


def test_requests_have_ids_and_logs_no_prompts(guarded: ServerProcess) -> None:
    secret = "the-prompt-nobody-may-log"
    code, headers, _ = post(
        guarded,
        "/generate",
        {"text": secret, "sampling_params": {"max_new_tokens": 1}},
        X_Request_Id="my-id.1",
    )
    assert code == 200 and headers["x-request-id"] == "my-id.1"
    post(guarded, "/generate", {"text": secret, "sampling_params": {"max_new_tokens": "x"}})
    post(guarded, f"/nowhere/{secret}", {"text": secret})
    _, headers, _ = get(guarded, "/v1/models", X_Request_Id='bad id\tof"mine')
    made = headers["x-request-id"]
    assert headers["server"] == "runtime"  # and no versions
    assert len(made) == 32 and made != get(guarded, "/v1/models")[1]["x-request-id"]
    wait(lambda: any("my-id.1" in line for line in guarded.last_lines))
    lines = [json.loads(line) for line in guarded.last_lines if line.startswith("{")]
    (line,) = [line for line in lines if line.get("request_id") == "my-id.1"]
    assert line["route"] == "/generate" and line["status"] == 200 and line["seconds"] > 0
    logged = "\n".join(guarded.last_lines)
    assert not any(word in logged for word in (secret, KEY, OTHER, ADMIN))
