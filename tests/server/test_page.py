"""The page at `/`: what it may load, what it shows, and a browser that uses it."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.server.launch import ServerProcess

_SECONDS = 90  # for what a browser does in a moment, unless other work has the cores
LONG = {"text": "Tell me a story", "sampling_params": {"max_new_tokens": 3000, "ignore_eos": True}}


def call(url: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read().decode()
            return answer.status, json.loads(text) if text[:1] == "{" else text, answer.headers
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read()), error.headers


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    server = ServerProcess(debug_faults=True)
    yield server
    server.shutdown()


def start_long(server: ServerProcess, found: list[Any]) -> threading.Thread:
    """A request that takes seconds on any machine."""
    assert call(f"{server.url}/debug/fault", {"kind": "slow", "seconds": 0.01, "steps": 2000})[0] == 200
    thread = threading.Thread(target=lambda: found.append(call(f"{server.url}/generate", LONG)))
    thread.start()
    return thread


def test_the_page_reaches_nothing_but_its_server(server: ServerProcess) -> None:
    status, page, headers = call(f"{server.url}/")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["connect-src"] == policy["script-src"] == "'self'"
    for name in ("style.css", "api.js", "charts.js", "live.js", "playground.js", "main.js"):
        status, text, headers = call(f"{server.url}/page/{name}")
        assert status == 200 and headers["X-Content-Type-Options"] == "nosniff"
        assert "https://" not in text and "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "http" not in page.replace("http-equiv", "") and "<style" not in page and 'style="' not in page


def test_state_names_what_runs_and_abort_ends_it(server: ServerProcess) -> None:
    found: list[Any] = []
    thread = start_long(server, found)
    sample: dict[str, Any] = {}
    while not sample:
        _, state, _ = call(f"{server.url}/page/state")
        if state["now"]["num_running_reqs"] and state["now"]["kv_cache"]["used_tokens"]:
            sample = next((r for r in state["running"] if r["limit"] == 3000 and r["tokens"] > 20), {})
    assert sample["tail"].endswith("Tell me a story") and sample["first_token"] > 0
    assert call(f"{server.url}/page/abort", {"id": sample["id"]})[0] == 200
    thread.join()
    status, answer, _ = found[0]
    assert status == 200 and answer["meta_info"]["finish_reason"]["type"] == "abort"
    status, answer, _ = call(f"{server.url}/page/abort", {"id": sample["id"]})
    assert status == 404 and set(answer["error"]) == {"message", "type", "param", "code"}
    _, state, _ = call(f"{server.url}/page/state")
    assert all(r["id"] != sample["id"] for r in state["running"]) and state["totals"]["aborted"] >= 1


def test_prefixes_count_their_uses(server: ServerProcess) -> None:
    body = {
        "text": "Shared by many, and more than once: " + "again " * 30,
        "sampling_params": {"max_new_tokens": 1},
    }
    call(f"{server.url}/flush_cache", {})  # other tests' prefixes may be larger
    for _ in range(4):
        assert call(f"{server.url}/generate", body)[0] == 200
    found: list[Any] = []
    while not found:  # the tree is looked at every few seconds
        _, state, _ = call(f"{server.url}/page/state")
        found = [p for p in state["prefixes"] if p["head"].startswith("Shared by many")]
    assert found[0]["uses"] >= 3 and found[0]["tokens"] > 30 and state["latency"]["first_token"]["p50"] > 0


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture()
def shots(tmp_path: Path) -> Path:
    """Where screenshots go: SGLC_SCREENSHOTS, or a folder of the test."""
    folder = Path(os.environ.get("SGLC_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def watched(context: Any) -> tuple[Any, list[str]]:
    """A tab, and what its console complained about or fetched from elsewhere."""
    page = context.new_page()
    page.set_default_timeout(_SECONDS * 1000)
    wrong: list[str] = []
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.on(
        "request",
        lambda r: None if r.url.startswith(("http://127.0.0.1", "data:")) else wrong.append(r.url),
    )
    return page, wrong


def until(page: Any, condition: str) -> None:
    """Wait for a condition; the page's policy forbids playwright's own way, which evaluates strings inside it."""
    end = time.monotonic() + _SECONDS
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"never came true: {condition}"
        page.wait_for_timeout(50)


def test_a_browser_watches_and_aborts(server: ServerProcess, chromium: Any, shots: Path) -> None:
    page, wrong = watched(chromium.new_context(viewport={"width": 1180, "height": 900}))
    page.goto(server.url)
    page.wait_for_selector("#dot.up")
    found: list[Any] = []
    thread = start_long(server, found)
    page.wait_for_selector("#running button[data-abort]")
    until(page, "document.querySelectorAll('#charts .path[d*=L]').length >= 4")
    page.screenshot(path=shots / "live.png", full_page=True)
    page.click("#running button[data-abort]")  # the list is drawn anew all the time
    thread.join()
    assert found[0][1]["meta_info"]["finish_reason"]["type"] == "abort"
    page.wait_for_selector("#running .empty")
    until(page, "document.querySelector('#latency tr:first-child td:nth-child(2)').textContent != '–'")
    assert not wrong


def test_a_browser_chats(server: ServerProcess, chromium: Any, shots: Path) -> None:
    page, wrong = watched(chromium.new_context(viewport={"width": 1180, "height": 900}))
    page.goto(f"{server.url}/#play")
    page.fill("#temperature", "0")
    page.fill("#max_tokens", "24")
    page.fill("#text", "What is the capital of Peru?")
    page.press("#text", "Enter")
    until(page, "document.querySelector('#usage').textContent.includes('tokens/s')")
    page.wait_for_selector("#stop", state="hidden")
    assert page.inner_text(".message.assistant").strip()
    page.check("#logprobs")
    page.fill(
        "#schema",
        '{"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false}',
    )
    page.fill("#text", "A number")
    page.click("#send")
    page.wait_for_selector(".message.assistant:last-child .token")
    page.wait_for_selector("#stop", state="hidden")
    assert json.loads(page.inner_text(".message.assistant:last-child"))["n"] in (1, 2)
    page.click(".message.assistant:last-child .token >> nth=-1")
    assert "%" in page.inner_text("#token")
    page.screenshot(path=shots / "playground.png", full_page=True)
    page.fill("#schema", "{")
    page.fill("#text", "A number")
    page.click("#send")
    until(page, "document.querySelector('#usage').textContent.includes('cannot be read')")
    page.fill(
        "#schema", '{"type": "string", "minLength": 2000}'
    )  # so that it is still running when it is stopped
    page.uncheck("#logprobs")
    page.fill("#max_tokens", "3000")
    page.click("#send")
    page.wait_for_selector("#stop")
    until(page, "document.querySelector('.message.assistant.open')?.textContent.length > 0")
    page.click("#stop")
    until(page, "document.querySelector('#usage').textContent.includes('ended by you')")
    assert page.is_hidden("#image-label")  # the embedded model takes no images
    assert not wrong


def test_a_phone_in_the_dark(server: ServerProcess, chromium: Any, shots: Path) -> None:
    options = {"width": 390, "height": 844}
    context = chromium.new_context(viewport=options, color_scheme="dark", has_touch=True, is_mobile=True)
    page, wrong = watched(context)
    page.goto(server.url)
    page.wait_for_selector("#dot.up")
    page.wait_for_selector("#charts .path[d*=L]", state="attached")
    page.screenshot(path=shots / "phone-live.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.tap("#tab-play")
    page.screenshot(path=shots / "phone-playground.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390 and page.is_hidden("#live")
    assert not wrong


def test_the_page_asks_for_the_key(chromium: Any, shots: Path) -> None:
    server = ServerProcess(api_key="secret")
    try:
        assert call(f"{server.url}/page/state")[0] == 401
        assert call(f"{server.url}/")[0] == 200
        assert call(f"{server.url}/", Authorization="Bearer wrong")[0] == 401
        page, _ = watched(chromium.new_context())
        page.goto(server.url)
        page.fill("#key", "wrong")
        page.click("#ask-key button")
        page.wait_for_selector("#key-wrong")
        page.screenshot(path=shots / "key.png")
        page.fill("#key", "secret")
        page.click("#ask-key button")
        page.wait_for_selector("#dot.up")
        assert page.is_hidden("#ask-key") and page.inner_text("#model") == "tiny"
        assert "secret" not in page.content()
    finally:
        server.shutdown()
