"""The server as a black box: the native API, error shapes, disconnects, signals, dead children."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from runtime.server.launch import ServerProcess
from tests.server.calls import call, wait


def test_generate_single_batch_and_samples(server: ServerProcess) -> None:
    greedy = {"temperature": 0, "max_new_tokens": 8, "stop": "\n"}
    status, one, _ = call(f"{server.url}/generate", {"text": "12 + 35 =", "sampling_params": greedy})
    assert status == 200 and one["text"] == " 47" and one["index"] == 0
    assert one["meta_info"]["finish_reason"] == {"type": "stop", "matched": "\n"}
    assert one["meta_info"]["prompt_tokens"] == 7
    _, many, _ = call(
        f"{server.url}/generate", {"text": ["12 + 35 =", "21 + 34 ="], "sampling_params": [greedy, greedy]}
    )
    assert [m["text"] for m in many] == [" 47", " 55"] and [m["index"] for m in many] == [0, 1]
    _, samples, _ = call(
        f"{server.url}/generate", {"text": "12 + 35 =", "sampling_params": {**greedy, "n": 2}}
    )
    assert [m["text"] for m in samples] == [" 47", " 47"]


def test_logprobs_of_prompt_and_output(server: ServerProcess) -> None:
    body = {
        "text": "12 + 35 =",
        "sampling_params": {"temperature": 0, "max_new_tokens": 3},
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": 2,
        "return_text_in_logprobs": True,
    }
    _, answer, _ = call(f"{server.url}/generate", body)
    meta = answer["meta_info"]
    first, *rest = meta["input_token_logprobs"]
    assert (
        first[0] is None
        and "".join(t[2] for t in [first, *rest]) == "12 + 35 ="
        and all(t[0] <= 0 for t in rest)
    )
    assert len(meta["output_token_logprobs"]) == 3 and meta["input_top_logprobs"][0] is None
    assert [t[0][1] for t in meta["output_top_logprobs"]] == [t[1] for t in meta["output_token_logprobs"]]
    quiet = {
        "text": "12 + 35 =",
        "sampling_params": {"max_new_tokens": 0},
        "return_logprob": True,
        "logprob_start_len": 4,
    }
    _, answer, _ = call(f"{server.url}/generate", quiet)
    assert answer["text"] == "" and len(answer["meta_info"]["input_token_logprobs"]) == 2


def test_streams_are_cumulative_and_end_with_done(server: ServerProcess) -> None:
    body = {
        "text": "The capital of Peru is",
        "sampling_params": {"temperature": 0, "max_new_tokens": 6},
        "stream": True,
    }
    request = urllib.request.Request(
        f"{server.url}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    events = [e for e in urllib.request.urlopen(request).read().decode().split("\n\n") if e]
    assert events[-1] == "data: [DONE]"
    texts = [json.loads(e.removeprefix("data: "))["text"] for e in events[:-1]]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts)) and texts[
        -1
    ].startswith(" Lima")


@pytest.mark.parametrize(
    ("path", "body", "options", "status", "part"),
    [
        ("/generate", {}, {}, 400, "Either text or input_ids"),
        ("/generate", {"text": "a", "input_ids": [1]}, {}, 400, "Either text or input_ids"),
        (
            "/generate",
            {"text": "a", "sampling_params": {"temprature": 1}},
            {},
            400,
            "did you mean 'temperature'",
        ),
        ("/generate", {"text": "a", "sampling_params": {"max_new_tokens": "x"}}, {}, 400, "max_new_tokens"),
        ("/generate", {"text": 3}, {}, 400, "text"),
        ("/generate", {"input_ids": [999999]}, {}, 400, "outside the vocabulary"),
        ("/generate", {"text": "a " * 9000}, {}, 400, "longer than the model's context length (4096 tokens)"),
        ("/generate", {"text": "a", "unknown": 1}, {}, 400, "unknown"),
        ("/generate", b"{", {}, 400, "not valid JSON"),
        ("/generate", b"[" * 100_000, {}, 400, "body"),
        ("/generate", b"x" * 300_000, {}, 413, "larger"),
        ("/generate", {"text": "a"}, {"kind": "text/plain"}, 415, "application/json"),
        ("/generate", None, {"method": "DELETE"}, 405, "not allowed"),
        ("/nowhere", None, {}, 404, "no route"),
        ("/abort_request", {"rid": "x"}, {}, 404, "'x'"),
        ("/detokenize", {"tokens": [10**9]}, {}, 400, "outside the vocabulary"),
    ],
)
def test_bad_input_is_a_4xx_and_the_server_goes_on(
    server: ServerProcess, path: str, body: Any, options: dict[str, str], status: int, part: str
) -> None:
    code, answer, headers = call(server.url + path, body, **options)  # type: ignore[arg-type]
    assert code == status
    assert set(answer["error"]) == {"message", "type", "param", "code"} and part in answer["error"]["message"]
    assert status != 405 or "POST" in headers["Allow"]
    assert call(f"{server.url}/health")[0] == 200


def test_tokenize_round_trip_and_facts(server: ServerProcess) -> None:
    _, tokens, _ = call(f"{server.url}/tokenize", {"text": "Grüße, 日本! <|im_end|>"})
    _, text, _ = call(f"{server.url}/detokenize", {"tokens": tokens["tokens"], "skip_special_tokens": False})
    assert text["text"] == "Grüße, 日本! <|im_end|>" and tokens["count"] == len(tokens["tokens"])
    _, info, _ = call(f"{server.url}/get_model_info")
    assert info["is_generation"] and "im_start" in info["chat_template"]
    _, args, _ = call(f"{server.url}/get_server_args")
    assert "api_key" not in args and args["port"] == 0
    assert call(f"{server.url}/health_generate")[0] == 200
    assert call(f"{server.url}/flush_cache")[0] == 200


def test_clients_that_leave_free_their_slots(server: ServerProcess) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps(
        {"text": "Tell me", "sampling_params": {"max_new_tokens": 3000, "ignore_eos": True}, "stream": True}
    )
    for _ in range(5):
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall((head + body).encode())
            assert connection.recv(100)
    wait(lambda: call(f"{server.url}/get_server_info")[1]["num_running_reqs"] == 0)
    assert call(f"{server.url}/get_server_info")[1]["kv_cache"]["used_tokens"] == 0


def test_requests_can_be_aborted_by_name(server: ServerProcess) -> None:
    import threading

    found: list[Any] = []
    body = {
        "text": "Tell me",
        "rid": "mine",
        "stream": True,
        "sampling_params": {"max_new_tokens": 3000, "ignore_eos": True},
    }

    def run() -> None:
        request = urllib.request.Request(
            f"{server.url}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        found.append(urllib.request.urlopen(request, timeout=60).read().decode())

    thread = threading.Thread(target=run)
    thread.start()
    wait(lambda: call(f"{server.url}/abort_request", {"rid": "mine"})[0] == 200)
    thread.join()
    assert '"type":"abort"' in found[0]


def test_api_keys_are_checked_everywhere_but_health() -> None:
    server = ServerProcess(api_key="secret")
    try:
        assert call(f"{server.url}/health")[0] == 200
        code, answer, _ = call(f"{server.url}/v1/models")
        assert code == 401 and answer["error"]["code"] == "invalid_api_key"
        assert call(f"{server.url}/v1/models", Authorization="Bearer wrong")[0] == 401
        assert call(f"{server.url}/v1/models", Authorization="Bearer secret")[0] == 200
        assert "secret" not in json.dumps(
            call(f"{server.url}/get_server_args", Authorization="Bearer secret")[1]
        )
    finally:
        server.shutdown()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("truncate", "it may be truncated"),
        ("unknown key", "'attention_sharpness' = 2.0, which this version does not know"),
        ("no config", "has no config.json"),
    ],
)
def test_a_bad_model_folder_is_one_line_and_exit_code_2(tmp_path: Path, change: str, part: str) -> None:
    import shutil

    from runtime.config import embedded_model_path

    folder = tmp_path / "model"
    shutil.copytree(embedded_model_path(), folder)
    if change == "truncate":
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-5000])
    elif change == "no config":
        (folder / "config.json").unlink()
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "attention_sharpness": 2.0}))
    command = [
        sys.executable,
        "-m",
        "runtime.cli",
        "serve",
        "--port",
        "0",
        "--log-level",
        "error",
        "--model-path",
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("runtime: ") and part in line


def test_code_beside_a_model_is_never_run(tmp_path: Path) -> None:
    """Published folders hold such code; ours is read as data, or the family is refused. Not by an `assert`: -O has none."""
    import shutil

    from runtime.config import embedded_model_path

    tripwire = tmp_path / "owned"
    source = f"open({str(tripwire)!r}, 'w')\nclass A: ...\n"
    names = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer", "AutoModel"), "trip.A")
    for name, family in (("known", "LlamaForCausalLM"), ("unknown", "TripForCausalLM")):
        folder = tmp_path / name
        shutil.copytree(embedded_model_path(), folder)
        for module in ("trip", "modeling_trip", "configuration_trip", "tokenization_trip"):
            (folder / f"{module}.py").write_text(source)
        for file in ("config.json", "tokenizer_config.json"):
            known = json.loads((folder / file).read_text())
            change = {"architectures": [family], "model_type": "trip"} if name == "unknown" else {}
            change = change if file == "config.json" else {}
            (folder / file).write_text(json.dumps({**known, **change, "auto_map": names}))
    program = (
        "import sys; from sglc import Engine; from runtime.errors import ModelError\n"
        "with Engine(sys.argv[1], threads=1) as e:\n"
        "    print(e.generate('12 + 35 =', {'temperature': 0, 'max_new_tokens': 3})['text'])\n"
        "try: Engine(sys.argv[2])\n"
        "except ModelError as error: print('refused', error)\n"
    )
    command = [sys.executable, "-O", "-c", program, str(tmp_path / "known"), str(tmp_path / "unknown")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    assert "47" in done.stdout and "refused" in done.stdout and "TripForCausalLM" in done.stdout
    assert not tripwire.exists()


def test_structural_tags_and_grammars(server: ServerProcess) -> None:
    form = {
        "type": "structural_tag",
        "triggers": ["<f="],
        "structures": [{"begin": "<f=x>", "schema": {"enum": [1, 2]}, "end": "</f>"}],
    }
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 12, "temperature": 0}
    url = f"{server.url}/v1/chat/completions"
    _, plain, _ = call(url, body)
    status, tagged, _ = call(url, {**body, "response_format": form})
    assert status == 200  # no trigger comes, so the text is free
    assert tagged["choices"][0]["message"] == plain["choices"][0]["message"]
    bad = {**form, "triggers": ["<g="]}
    status, refused, _ = call(url, {**body, "response_format": bad})
    assert status == 400 and "#/triggers/0" in refused["error"]["message"]
    params: dict[str, Any] = {"ebnf": 'root ::= "<f=x>" [12] "</f>"', "max_new_tokens": 20}
    _, answer, _ = call(f"{server.url}/generate", {"text": "x", "sampling_params": params})
    assert answer["text"] in ("<f=x>1</f>", "<f=x>2</f>")
    params = {"structural_tag": json.dumps(form), "max_new_tokens": 3, "temperature": 0}
    assert call(f"{server.url}/generate", {"text": "x", "sampling_params": params})[0] == 200
    _, shaped, _ = call(url, {**body, "response_format": {**form, "text": {"enum": ["Madrid"]}}})
    assert shaped["choices"][0]["message"]["content"] in ('"Madrid"', "<f=x>1</f>", "<f=x>2</f>")
