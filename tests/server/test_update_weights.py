"""Other weights for a running server: taken whole or not at all, and kept over the death of the engine process."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.config import embedded_model_path
from runtime.engine.engine import Engine
from runtime.server.launch import ServerProcess
from tests.server.calls import call

PROMPT = {"text": "The capital of Spain is", "sampling_params": {"temperature": 0, "max_new_tokens": 6}}


def changed(folder: Path, *, truncated: bool = False, **config: Any) -> str:
    """The embedded model with other weights, more precise than bfloat16."""
    shutil.copytree(embedded_model_path(), folder)
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(3)
    save_file(
        {k: v.float() + 0.3 * torch.randn_like(v.float()) for k, v in weights.items()},
        folder / "model.safetensors",
    )
    if truncated:
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    old = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(old | config))
    return str(folder)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    server = ServerProcess(debug_faults=True, served_model_name="mine")
    yield server
    server.shutdown()


def answer(server: ServerProcess) -> tuple[str, str]:
    status, found, _ = call(f"{server.url}/generate", PROMPT)
    assert status == 200, found
    return found["text"], found["meta_info"]["system_fingerprint"]


def update(server: ServerProcess, path: str, **fields: Any) -> tuple[int, Any]:
    return call(f"{server.url}/update_weights", {"model_path": path, **fields})[:2]


def test_new_weights_are_served_and_old_ones_come_back(server: ServerProcess, tmp_path: Path) -> None:
    other = changed(tmp_path / "other")
    with Engine(other) as engine:
        wanted = engine.generate(PROMPT["text"], PROMPT["sampling_params"])["text"]
    first, fingerprint = answer(server)
    assert first != wanted
    assert update(server, other) == (200, {"success": True, "message": f"the weights of {other} are served"})
    second, another = answer(server)
    assert second == wanted and another != fingerprint
    assert call(f"{server.url}/get_model_info")[1]["model_path"] == other
    assert call(f"{server.url}/v1/models")[1]["data"][0]["id"] == "mine"
    assert call(f"{server.url}/debug/check")[1]["problem"] is None
    # a process that is started again has them too
    call(f"{server.url}/debug/fault", {"kind": "die"})
    call(f"{server.url}/generate", PROMPT)
    end = time.monotonic() + 60
    while call(f"{server.url}/health_generate")[0] != 200:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert answer(server) == (second, another)
    assert update(server, str(embedded_model_path()))[0] == 200
    assert answer(server) == (first, fingerprint)


def test_what_cannot_be_had_changes_nothing(server: ServerProcess, tmp_path: Path) -> None:
    before = answer(server)
    cases = {
        str(tmp_path / "nowhere"): "does not exist",
        "a" * 5000: "too long",
        "a" * 1000: "cannot be looked at",
        "~nobody-of-this-name/x": "cannot be looked at",
        "\0": "zero byte",
        "/etc/passwd": "is a file",
        "/etc/passwd/x": "cannot be looked at",
        changed(tmp_path / "cut", truncated=True): "it may be truncated",
        changed(tmp_path / "wide", max_position_embeddings=8192): "they differ in context",
    }
    for path, part in cases.items():
        status, told = update(server, path)
        assert status == 400 and told["success"] is False and part in told["message"]
        assert told["error"]["message"] == told["message"] and told["error"]["param"] == "model_path"
        assert answer(server) == before
    status, told = update(server, str(embedded_model_path()), load_format="pickle")
    assert status == 400 and "'pickle' is not known" in told["message"]
    assert answer(server) == before
    assert call(f"{server.url}/update_weights", {})[0] == 400


def test_running_requests_end_first_and_new_ones_wait(server: ServerProcess, tmp_path: Path) -> None:
    other = changed(tmp_path / "other")
    long = {"temperature": 0, "max_new_tokens": 150, "ignore_eos": True}
    body = {"text": PROMPT["text"], "sampling_params": long}
    _, whole, _ = call(f"{server.url}/generate", body)
    found: dict[str, Any] = {}

    def ask(name: str, route: str, body: Any) -> threading.Thread:
        thread = threading.Thread(target=lambda: found.update({name: call(server.url + route, body)}))
        thread.start()
        return thread

    call(f"{server.url}/debug/fault", {"kind": "slow", "seconds": 0.02, "steps": 150})
    threads = [ask("running", "/generate", body)]
    end = time.monotonic() + 60
    while call(f"{server.url}/get_server_info")[1]["num_running_reqs"] == 0:
        assert time.monotonic() < end
    updates = ["update", "update too"]  # only one at a time, and neither ends before the running request does
    threads += [ask(name, "/update_weights_from_disk", {"model_path": other}) for name in updates]
    assert call(f"{server.url}/health")[0] == 200
    threads.append(ask("waiting", "/generate", PROMPT))
    threads.append(
        ask(
            "aborted",
            "/generate",
            {**PROMPT, "sampling_params": {**long, "max_new_tokens": 3000}, "rid": "gone"},
        )
    )
    while call(f"{server.url}/abort_request", {"rid": "gone"})[0] != 200:
        assert time.monotonic() < end
    for thread in threads:
        thread.join()
    assert found["running"][1]["text"] == whole["text"]
    done, refused = sorted((found[name] for name in updates), key=lambda answer: answer[0])
    assert (done[0], refused[0]) == (200, 409)
    assert refused[1]["message"] == "Another update is in progress. Please try again later."
    assert found["waiting"][1]["text"] == answer(server)[0]
    assert found["aborted"][1]["meta_info"]["finish_reason"] == {"type": "abort"}
    assert update(server, str(embedded_model_path()))[0] == 200
    assert call(f"{server.url}/generate", body)[1]["text"] == whole["text"]
