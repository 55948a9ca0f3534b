"""Log-probabilities of tokens that are not whole characters, of echoed prompts, and of tokens that were not the likeliest."""

from __future__ import annotations

from typing import Any

from runtime.server.launch import ServerProcess
from tests.server.calls import call, events

TEXT = "😀é中 ok"  # 9 bytes, of which the tokenizer makes a token each, and some letters


def ask(server: ServerProcess, **fields: Any) -> dict[str, Any]:
    body = {"prompt": "The capital of Spain", "temperature": 0, "logprobs": 1, **fields}
    status, answer, _ = call(f"{server.url}/v1/completions", body)
    assert status == 200, answer
    choice: dict[str, Any] = answer["choices"][0]
    return choice


def test_the_bytes_of_chat_tokens_are_the_text(server: ServerProcess) -> None:
    user = {
        "messages": [{"role": "user", "content": "Hello"}],
        "regex": TEXT,
        "logprobs": True,
        "temperature": 0,
    }
    _, answer, _ = call(f"{server.url}/v1/chat/completions", user)
    choice = answer["choices"][0]
    *tokens, end = choice["logprobs"]["content"]
    assert choice["message"]["content"] == TEXT and end["token"].startswith("<|")
    assert bytes(b for t in tokens for b in t["bytes"]).decode() == TEXT
    chunks = events(f"{server.url}/v1/chat/completions", {**user, "stream": True})
    told = [d["choices"][0]["logprobs"] for _, d in chunks if d != "[DONE]"]
    streamed = [t["bytes"] for table in told if table for t in table["content"]]
    assert bytes(b for t in streamed[: len(tokens)] for b in t).decode() == TEXT


def test_offsets_count_characters_of_the_text(server: ServerProcess) -> None:
    choice = ask(server, prompt=f"<|im_start|>é {TEXT}", regex=TEXT, echo=True)
    text, table = choice["text"], choice["logprobs"]
    assert text == f"<|im_start|>é {TEXT}{TEXT}"
    whole = 0
    for token, offset in zip(table["tokens"], table["text_offset"], strict=True):
        if token.startswith("bytes:"):
            assert ord(text[offset]) > 127
        elif offset < len(text):
            assert text.startswith(token, offset)
            whole += 1
    assert whole > 3 and "bytes:\\xf0" in table["tokens"]
    plain = ask(server, regex=TEXT)["logprobs"]["text_offset"]
    assert plain[0] == len("The capital of Spain") and plain[-1] == plain[0] + len(TEXT)


def test_an_echoed_prompt_alone(server: ServerProcess) -> None:
    choice = ask(server, echo=True, max_tokens=0)
    assert choice["text"] == "The capital of Spain" == "".join(choice["logprobs"]["tokens"])
    assert all(len(v) == 4 for v in choice["logprobs"].values())


def test_the_sampled_token_is_among_the_likeliest(server: ServerProcess) -> None:
    for top in (0, 1):
        table = ask(server, logprobs=top, temperature=5, seed=1, max_tokens=6)["logprobs"]
        for token, value, others in zip(
            table["tokens"], table["token_logprobs"], table["top_logprobs"], strict=True
        ):
            assert others[token] == value and top <= len(others) <= top + 1
        assert top == 0 or any(len(others) == 2 for others in table["top_logprobs"])
