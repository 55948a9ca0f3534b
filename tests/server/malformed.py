"""Malformed requests, one row each: what a server has to refuse with a 4xx, and what it may also take.

A row is the raw request, so that a body can hold what no JSON library would write.
"""

from __future__ import annotations

import base64
import gzip
import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field

JSON = "application/json"
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
NATIVE = "/generate"


@dataclass(frozen=True)
class Row:
    """`debatable`: a server may also answer it; it must never be a 5xx."""

    name: str
    path: str
    body: bytes = b""
    method: str = "POST"
    kind: str | None = JSON
    headers: dict[str, str] = field(default_factory=dict)
    status: tuple[int, ...] = ()
    debatable: bool = False


class Bomb:
    """Unpickled, it would leave a file behind."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.place, "w")


def bomb(place: str) -> bytes:
    """A pickle that makes the file `place` when it is loaded."""
    return pickle.dumps(Bomb(place))


# -- bodies around one field ------------------------------------------------------------------------------


def around(path: str, name: str, value: str) -> bytes:
    """A request to `path` that is right but for the field `name`, whose JSON text is `value`."""
    fields: dict[str, str]
    if path == NATIVE:
        inner = {"max_new_tokens": "1", name: value}
        params = ", ".join(f"{json.dumps(k)}: {v}" for k, v in inner.items())
        return f'{{"text": "a", "sampling_params": {{{params}}}}}'.encode()
    if path == CHAT:
        fields = {"messages": '[{"role": "user", "content": "a"}]', "max_tokens": "1", name: value}
    else:
        fields = {"prompt": '"a"', "max_tokens": "1", name: value}
    return ("{" + ", ".join(f"{json.dumps(k)}: {v}" for k, v in fields.items()) + "}").encode()


DIGITS = "9" * 5000
HUGE = (str(2**63), str(2**64), DIGITS)
NOT_INTEGERS = ("1.5", '"1"', "[1]", "{}", "true", "1e999", "NaN")
NOT_NUMBERS = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", '"x"', "[]", "{}", "true")

INTEGERS: dict[str, tuple[str, ...]] = {
    "max_tokens": ("-1", *HUGE, *NOT_INTEGERS),
    "n": ("0", "-1", "1000000", str(2**31), *HUGE, *NOT_INTEGERS),
    "top_k": ("-2", "0", str(2**63), str(2**64), DIGITS, *NOT_INTEGERS),
    "min_tokens": ("-1", str(2**31), *HUGE, *NOT_INTEGERS),
    "seed": (DIGITS, *NOT_INTEGERS),
}
FLOATS: dict[str, tuple[str, ...]] = {
    "temperature": ("-1", "-0.1", *NOT_NUMBERS),
    "top_p": ("-0.1", "1.1", "0", *NOT_NUMBERS),
    "min_p": ("-0.1", "1.1", *NOT_NUMBERS),
    "frequency_penalty": ("-2.1", "2.1", *NOT_NUMBERS),
    "presence_penalty": ("-2.1", "2.1", *NOT_NUMBERS),
    "repetition_penalty": ("0", "-1", *NOT_NUMBERS),
}
NATIVE_NAMES = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"}


def numbers() -> Iterator[Row]:
    """Every number of the sampling parameters, with what it cannot be, on each of the three endpoints."""
    for path in (TEXT, CHAT, NATIVE):
        for name, values in (INTEGERS | FLOATS).items():
            ours = NATIVE_NAMES.get(name, name) if path == NATIVE else name
            for value in values:
                yield Row(f"{path} {ours}={value[:12]}", path, around(path, ours, value), status=(400,))
    for value in ("-1", "21", str(2**31), *HUGE, "1.5", "[]", "{}"):
        yield Row(f"logprobs={value[:12]}", TEXT, around(TEXT, "logprobs", value), status=(400,))
        body = around(CHAT, "logprobs", f'true, "top_logprobs": {value}')
        yield Row(f"top_logprobs={value[:12]}", CHAT, body, status=(400,))
        body = b'{"text": "a", "return_logprob": true, "top_logprobs_num": %s}' % value.encode()
        yield Row(f"top_logprobs_num={value[:12]}", NATIVE, body, status=(400,))
    for value in ("0", "-1", str(2**31), *HUGE, "1.5"):
        yield Row(f"best_of={value[:12]}", TEXT, around(TEXT, "best_of", value), status=(400,))


# -- token ids --------------------------------------------------------------------------------------------


def token_ids() -> Iterator[Row]:
    """Ids outside of the vocabulary, wherever ids can be given."""
    for value in ("-1", "1000000000", str(2**31), *HUGE, "1.5", '"1"', "null", "true"):
        short = value[:12]
        rows = {
            "prompt": (TEXT, f'{{"prompt": [{value}], "max_tokens": 1}}'),
            "prompts": (TEXT, f'{{"prompt": [[1], [{value}]], "max_tokens": 1}}'),
            "input_ids": (NATIVE, f'{{"input_ids": [{value}], "sampling_params": {{"max_new_tokens": 1}}}}'),
            "detokenize": ("/detokenize", f'{{"tokens": [{value}]}}'),
        }
        if value != '"1"':  # alone in the list it is a text
            yield Row(f"prompt=[{short}]", rows["prompt"][0], rows["prompt"][1].encode(), status=(400,))
        for name in ("prompts", "input_ids", "detokenize"):
            path, body = rows[name]
            yield Row(f"{name}=[{short}]", path, body.encode(), status=(400,))
        for path in (TEXT, CHAT, NATIVE):
            body = around(path, "stop_token_ids", f"[{value}]")
            yield Row(f"{path} stop_token_ids=[{short}]", path, body, status=(400,))
    for key in ("-1", "1000000000", str(2**63), "a", "", "1.5", "９９", DIGITS):
        for path in (TEXT, CHAT, NATIVE):
            body = around(path, "logit_bias", json.dumps({key: 1.0}))
            yield Row(f"{path} logit_bias[{key[:12]}]", path, body, status=(400,))
    for value in ("NaN", "1e999", '"x"', "null", "[]"):
        yield Row(
            f"logit_bias value {value}", CHAT, around(CHAT, "logit_bias", f'{{"5": {value}}}'), status=(400,)
        )


# -- prompts and messages ---------------------------------------------------------------------------------


def prompts() -> Iterator[Row]:
    cases = {
        "empty text": '""',
        "empty list": "[]",
        "empty lists": "[[]]",
        "null": "null",
        "number": "3",
        "object": "{}",
        "mixed": '["a", 1]',
        "mixed lists": '["a", [1]]',
        "nested": "[[[1]]]",
        "one empty of two": '["a", ""]',
        "a lone surrogate": '"\\ud800"',
        "bad escape": '"\\x41"',
        "a raw control character": '"a\nb"',
        "2,000 prompts": json.dumps(["a"] * 2000),
        "100,000 prompts": json.dumps(["a"] * 100_000),
        "1000 x 1000": json.dumps(["a"] * 1000) + ', "n": 1000',
        "longer than the context": json.dumps("a " * 9000),
        "more ids than the context": json.dumps([5] * 9000),
    }
    for name, value in cases.items():
        yield Row(f"prompt: {name}", TEXT, f'{{"prompt": {value}, "max_tokens": 1}}'.encode(), status=(400,))
        if name not in (
            "number",
            "object",
            "mixed",
            "mixed lists",
            "nested",
            "more ids than the context",
            "1000 x 1000",
            "empty lists",
        ):
            body = f'{{"text": {value}, "sampling_params": {{"max_new_tokens": 1}}}}'.encode()
            yield Row(f"text: {name}", NATIVE, body, status=(400,))
    for text in ("<|im_end|>", "<|endoftext|>", "<|im_start|>system", "<s>", "</s>", "<pad>", "<image>", "<|image_pad|>",
                 "<|vision_start|><|image_pad|><|vision_end|>", "<|audio|>", "<unk>", "[INST]", "<|eot_id|>",
                 "<start_of_image>", "<|python_tag|>", "<mask>"):  # fmt: skip
        body = json.dumps({"messages": [{"role": "user", "content": text * 3}], "max_tokens": 1})
        yield Row(f"special token {text}", CHAT, body.encode(), debatable=True)


def messages() -> Iterator[Row]:
    cases = {
        "none": "[]",
        "null": "null",
        "a text": '"hello"',
        "an object": "{}",
        "numbers": "[1, 2]",
        "no role": '[{"content": "a"}]',
        "no content": '[{"role": "user"}]',
        "role is a number": '[{"role": 1, "content": "a"}]',
        "unknown role": '[{"role": "wizard", "content": "a"}]',
        "content is a number": '[{"role": "user", "content": 3}]',
        "content is an object": '[{"role": "user", "content": {}}]',
        "part is a text": '[{"role": "user", "content": ["a"]}]',
        "part has no type": '[{"role": "user", "content": [{"text": "a"}]}]',
        "unknown part": '[{"role": "user", "content": [{"type": "smell", "smell": "a"}]}]',
        "text part without text": '[{"role": "user", "content": [{"type": "text"}]}]',
        "text part with a number": '[{"role": "user", "content": [{"type": "text", "text": 3}]}]',
        "audio": '[{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}]',
        "a file": '[{"role": "user", "content": [{"type": "file", "file": {"file_id": "x"}}]}]',
        "a lone surrogate": '[{"role": "user", "content": "\\udfff"}]',
        "too long": json.dumps([{"role": "user", "content": "a " * 9000}]),
        "20,000 messages": json.dumps([{"role": "user", "content": "a"}] * 20_000),
    }
    for name, value in cases.items():
        yield Row(
            f"messages: {name}", CHAT, f'{{"messages": {value}, "max_tokens": 1}}'.encode(), status=(400,)
        )
    fields = {
        "tools": ("3", '"x"', "[3]", '[{"type": "function"}]', '[{"type": "function", "function": {"name": 3}}]'),
        "tool_choice": ("3", '"sometimes"', '{"type": "function", "function": {"name": "nowhere"}}'),
        "response_format": (
            "3",
            '"json"',
            "{}",
            '{"type": "yaml"}',
            '{"type": "json_schema"}',
            '{"type": "json_schema", "json_schema": 3}',
            '{"type": "json_schema", "json_schema": {"name": "a"}}',
            '{"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "thing"}}}',
        ),
        "stop": ("3", "{}", "[1]", "[[]]", json.dumps(["x"] * 65)),
        "stream": ("3", '"yes"', "[]"),
        "stream_options": ("3", "[]"),
        "logit_bias": ("3", "[]", '"x"'),
        "seed": ('"x"',),
        "user": ("3", "[]"),
        "model": ("3", "[]"),
        "unheard_of": ("1",),
        "prompt_embeds": (json.dumps(base64.b64encode(bomb("/tmp/never")).decode()),),
        "image_embeds": (json.dumps(base64.b64encode(bomb("/tmp/never")).decode()),),
        "chat_template": ('"{{ cycler.__init__.__globals__.os.system(1) }}"', '"{% for i in range(10**8) %}x{% endfor %}"'),
        "chat_template_kwargs": ("3", "[]"),
        "custom_logit_processor": (json.dumps(base64.b64encode(bomb("/tmp/never")).decode()),),
    }  # fmt: skip
    for name, values in fields.items():
        for value in values:
            yield Row(f"{name}={value[:50]}", CHAT, around(CHAT, name, value), status=(400,))
    for path, body in (
        (CHAT, {"messages": [{"role": "user", "content": "a"}], "model": "gpt-9"}),
        (TEXT, {"prompt": "a", "model": "../../etc/passwd"}),
    ):
        yield Row(f"{path} unknown model", path, json.dumps(body).encode(), status=(404,))
    yield Row("an id of no request", "/abort_request", b'{"rid": "nobody"}', status=(404,))
    yield Row(
        "a model that is not there",
        "/v1/models/..%2f..%2fetc%2fpasswd",
        method="GET",
        kind=None,
        status=(404,),
    )


# -- grammars ---------------------------------------------------------------------------------------------


def grammars() -> Iterator[Row]:
    regexes = ("(", ")", "[", "a{2,1}", "*", "+a", "(?P<a", "(?<=a)b", "(?=a)b", r"(a)\1", "[z-a]", "a**", "(?P<1>a)",
               "\\", "x{99999999999}", "(?Z)", "a" * 70_000)  # fmt: skip
    schemas = (
        {"type": "thing"},
        {"type": 3},
        {"enum": []},
        {"enum": 3},
        {"properties": 3},
        {"required": "a"},
        {"$ref": "#/nowhere"},
        {"$ref": "http://127.0.0.1:1/schema"},
        {"$ref": "file:///etc/passwd"},
        {"type": "string", "pattern": "("},
        {"type": "string", "minLength": -1},
        {"type": "integer", "minimum": 5, "maximum": 1},
        {"anyOf": []},
    )
    ebnfs = ("", "root", 'root ::= "a', "root ::= nothing", 'other ::= "a"', "root ::= root", "root ::= (",
             "root ::= [z-a]", 'root ::= "a"{5,2}')  # fmt: skip
    for path in (TEXT, CHAT, NATIVE):
        for regex in regexes:
            yield Row(
                f"{path} regex {regex[:20]}", path, around(path, "regex", json.dumps(regex)), status=(400,)
            )
        for ebnf in ebnfs:
            yield Row(f"{path} ebnf {ebnf[:20]}", path, around(path, "ebnf", json.dumps(ebnf)), status=(400,))
    for schema in schemas:
        text = json.dumps(json.dumps(schema))
        yield Row(f"json_schema {text[:50]}", NATIVE, around(NATIVE, "json_schema", text), status=(400,))
    for text in ("", "{", "3", "[]", "nothing"):
        body = around(NATIVE, "json_schema", json.dumps(text))
        yield Row(f"json_schema {text!r}", NATIVE, body, status=(400,))
    deep = '{"items": ' * 20_000 + "{}" + "}" * 20_000
    yield Row("a schema 20,000 deep", NATIVE, around(NATIVE, "json_schema", json.dumps(deep)), status=(400,))
    both = b'{"text": "a", "sampling_params": {"regex": "a", "json_schema": "{}"}}'
    yield Row("two constraints", NATIVE, both, status=(400,))


# -- bodies, types, methods, paths ------------------------------------------------------------------------


def bodies() -> Iterator[Row]:
    good = b'{"text": "a", "sampling_params": {"max_new_tokens": 1}}'
    cases = {
        "nothing": b"",
        "spaces": b"   ",
        "null": b"null",
        "true": b"true",
        "a list": b"[]",
        "a text": b'"text"',
        "a number": b"3",
        "cut off": good[:-3],
        "two of them": good + good,
        "a tail": good + b"x",
        "a trailing comma": good[:-1] + b",}",
        "single quotes": good.replace(b'"', b"'"),
        "a comment": b"// a\n" + good,
        "a byte order mark": b"\xef\xbb\xbf" + good,
        "UTF-16": good.decode().encode("utf-16"),
        "not UTF-8": good.replace(b'"a"', b'"\xff\xfe"'),
        "an overlong slash": good.replace(b'"a"', b'"\xc0\xaf"'),
        "NaN": b"NaN",
        "100,000 brackets": b"[" * 100_000,
        "100,000 closed brackets": b"[" * 100_000 + b"]" * 100_000,
        "100,000 objects": b'{"a":' * 100_000,
        "deep parameters": b'{"text": "a", "sampling_params": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001,
        "zeros": b"\0" * 100,
        "a pickle": bomb("/tmp/never"),
        "gzip without saying so": gzip.compress(good),
        "5000 digits": DIGITS.encode(),
        "an integer with 5000 digits": b'{"text": "a", "priority": %s}' % DIGITS.encode(),
    }
    for name, body in cases.items():
        for path in (NATIVE, TEXT, CHAT, "/tokenize"):
            yield Row(f"{path} body: {name}", path, body, status=(400,))
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/xml",
                 "image/png", "application/octet-stream", "application/jsonx", "text/json", "json", "", "a/b/c",
                 "application/x-python-pickle"):  # fmt: skip
        for path in (NATIVE, CHAT):
            yield Row(f"{path} as {kind!r}", path, good, kind=kind, status=(415,))
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        JSON,
    ):  # what a page can make a browser send
        for origin in ("http://evil.example", "null", "http://127.0.0.1.evil.example"):
            headers = {"Origin": origin}
            yield Row(f"{kind} from {origin}", NATIVE, good, kind=kind, headers=headers, status=(403, 415))
    yield Row("no content type", NATIVE, good, kind=None, status=(415,))
    for coding in ("gzip", "deflate", "br", "zstd", "compress", "gzip, gzip"):
        yield Row(f"coded as {coding}", NATIVE, good, headers={"Content-Encoding": coding}, status=(400, 415))


def forms() -> Iterator[Row]:
    """Multipart bodies that are none, or whose parts claim what they are not."""
    field = b'Content-Disposition: form-data; name="file"'
    heads = {
        "a control character": b'Content-Disposition: form-data; name="a\x19"',
        "a long header": b"X" * 20_000,
        "3,000 headers": b"A: b\r\n" * 3000,
        "bad base64": field + b"\r\nContent-Transfer-Encoding: base64",
        "an unknown transfer encoding": field + b"\r\nContent-Transfer-Encoding: rot13",
        "brotli": field + b"\r\nContent-Encoding: br",
        "no gzip": field + b"\r\nContent-Encoding: gzip",
        "length -5": field + b"\r\nContent-Length: -5",
        "length x": field + b"\r\nContent-Length: x",
        "too long a length": field + b"\r\nContent-Length: 99999",
        "a form in the form": field + b"\r\nContent-Type: multipart/mixed; boundary=YY",
        "no name": b"Content-Disposition: form-data",
        "no end": field,
    }
    kind = "multipart/form-data; boundary=XX"
    for name, head in heads.items():
        body = b"--XX\r\n" + head + b"\r\n\r\n!!!\r\n"
        yield Row(f"form: {name}", "/v1/files", body, kind=kind, status=(400,))
    for body in (b"", b"--XX", b"--XX--", b"--XX\r\n", b"garbage", b"--YY\r\n\r\n\r\n--YY--\r\n"):
        yield Row(f"form {body!r}", "/v1/files", body, kind=kind, status=(400,))
    for boundary in ("", "; boundary=", "; boundary=" + "x" * 100):
        yield Row(
            f"form{boundary[:20]}",
            "/v1/files",
            b"--XX--",
            kind=f"multipart/form-data{boundary}",
            status=(400,),
        )


def methods_and_paths() -> Iterator[Row]:
    for path in (NATIVE, TEXT, CHAT, "/tokenize", "/detokenize", "/abort_request"):
        for method in ("GET", "DELETE", "PATCH", "TRACE", "PROPFIND"):
            yield Row(f"{method} {path}", path, method=method, kind=None, status=(405,))
    for path in ("/v1/models", "/get_server_info", "/get_model_info", "/page/state", "/openapi.json"):
        for method in ("POST", "DELETE"):
            yield Row(f"{method} {path}", path, b"{}", method=method, status=(405,))
    for path in ("/nowhere", "/v1", "/v1/", "/v1/chat", "/generate/", "//generate", "/v1//completions", "/GENERATE",
                 "/../etc/passwd", "/page/../../../etc/passwd", "/page/..%2f..%2f..%2fetc%2fpasswd", "/page/state.py",
                 "/page/%2e%2e/app.py", "/static/app.js", "/.git/config", "/.env", "/debug/pprof", "/admin", "/rerank",
                 "/v1/load_lora_adapter", "/load_lora_adapter_from_tensors", "/invocations",
                 "/generate%00", "/%ff%fe", "/generate;x=1", "/health/../generate"):  # fmt: skip
        yield Row(f"path {path}", path, b"{}", status=(400, 401, 404, 405))


# -- places that are not to be read or reached ------------------------------------------------------------

HOSTS = (
    "127.0.0.1:{port}", "localhost:{port}", "127.1:{port}", "2130706433:{port}", "0x7f000001:{port}", "0x7f.0.0.1:{port}",
    "0177.0.0.1:{port}", "017700000001:{port}", "127.0.1:{port}", "0:{port}", "0.0.0.0:{port}", "[::1]:{port}", "[::]:{port}",
    "[::ffff:127.0.0.1]:{port}", "[::ffff:7f00:1]:{port}", "[0:0:0:0:0:0:0:1]:{port}", "localhost.:{port}", "LOCALHOST:{port}",
    "127.0.0.1.:{port}", "a@127.0.0.1:{port}", "example.com@127.0.0.1:{port}", "127.0.0.1:{port}#@example.com/",
    "127.0.0.1:{port}\\@example.com/", "example.com\\@127.0.0.1:{port}", "①②⑦.⓪.⓪.①:{port}", "%31%32%37.0.0.1:{port}",
    "127。0。0。1:{port}", "localhost%00.example.com:{port}", "127.0.0.1:{port}%0d%0aX: y", "127.127.127.127:{port}",
    "169.254.169.254", "[fd00:ec2::254]", "metadata.google.internal", "127.0.0.1:{port}/redirect",
)  # fmt: skip
FILES = (
    "/etc/passwd", "/nonexistent/file", "file:///etc/passwd", "file:///nonexistent", "file://localhost/etc/passwd",
    "FILE:///etc/passwd", "../../../../etc/passwd", "./pyproject.toml", "~/.bashrc", "/proc/self/environ", "/dev/zero",
    "\\\\host\\share\\x", "/etc//passwd", "%2fetc%2fpasswd",
)  # fmt: skip
WEIGHTS = (
    "/update_weights", "/update_weights_from_disk", "/update_weights_from_tensor", "/update_weights_from_distributed",
    "/init_weights_update_group", "/load_lora_adapter", "/v1/load_lora_adapter", "/v1/rerank",
)  # fmt: skip


def places(port: int) -> Iterator[Row]:
    """Addresses of this machine, at whose `port` somebody counts the visits, and files of this machine."""
    urls = [f"http://{h.format(port=port)}" for h in HOSTS] + [
        *FILES,
        f"gopher://127.0.0.1:{port}/",
        f"ftp://127.0.0.1:{port}/",
    ]
    for url in urls:
        part = {"type": "image_url", "image_url": {"url": url}}
        body = {"messages": [{"role": "user", "content": [part]}], "max_tokens": 1}
        yield Row(f"image_url {url}", CHAT, json.dumps(body).encode(), status=(400,))
        body = {"text": "a", "image_data": url, "sampling_params": {"max_new_tokens": 1}}
        yield Row(f"image_data {url}", NATIVE, json.dumps(body).encode(), status=(400,))
        part = {"type": "image", "source": {"type": "url", "url": url}}
        body = {"model": "tiny", "messages": [{"role": "user", "content": [part]}], "max_tokens": 1}
        yield Row(f"image source {url}", "/v1/messages", json.dumps(body).encode(), status=(400,))
        body = {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]}
        yield Row(f"input_image {url}", "/v1/responses", json.dumps(body).encode(), status=(400,))
    for url in urls[:4] + list(FILES):
        body = {"text": "a", "lora_path": url, "sampling_params": {"max_new_tokens": 1}}
        yield Row(f"lora_path {url}", NATIVE, json.dumps(body).encode(), status=(400, 404))
        body = {"prompt": "a", "model": url, "max_tokens": 1}
        yield Row(f"model {url}", TEXT, json.dumps(body).encode(), status=(404,))
    for url in urls[:4]:
        body = around(TEXT, "json_schema", json.dumps(json.dumps({"$ref": url})))
        yield Row(f"$ref {url}", TEXT, body, status=(400,))
    for route in WEIGHTS:
        for path in (*FILES[:4], "owned/repo", "/tmp/owned"):
            body = {"model_path": path}
            if route not in WEIGHTS[:2]:  # which exist
                body |= {"path": path, "serialized_named_tensors": bomb("/tmp/never").hex()}
            status = (400, 403) if route in WEIGHTS[:2] else (404,)
            yield Row(f"{route} {path}", route, json.dumps(body).encode(), status=status)
    for id in (
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e",
        "..%5c..%5cetc",
        "%00",
        "file-%2e%2e%2fstate.sqlite",
        "a" * 3000,
    ):
        for end in ("", "/content"):
            yield Row(
                f"GET file {id[:30]}{end}", f"/v1/files/{id}{end}", method="GET", kind=None, status=(404,)
            )
        yield Row(f"DELETE file {id[:30]}", f"/v1/files/{id}", method="DELETE", kind=None, status=(404,))
        yield Row(f"GET batch {id[:30]}", f"/v1/batches/{id}", method="GET", kind=None, status=(404,))


def debatable() -> Iterator[Row]:
    """What one server refuses and another takes."""
    values = {
        "max_tokens": ("0", str(2**31), "null"),
        "top_k": ("-1", "1", str(2**31)),
        "seed": ("-1", "0", str(2**31), str(2**63), str(2**64), "null"),
        "temperature": ("0", "2.5", "1e308", "1e-300", "5e-324", "-0.0"),
        "top_p": ("1e-300", "1"),
        "min_p": ("0", "1"),
        "frequency_penalty": ("-2", "2"),
        "presence_penalty": ("-2", "2"),
        "repetition_penalty": ("0.01", "100", "1e308"),
        "stop": ('""', '[""]', "[]", "null", '["\\u0000"]', json.dumps("x" * 100_000)),
        "logit_bias": ("{}", '{"5": 1e30}', '{"5": -1e30}', '{"5": 1e308}', json.dumps({str(i): -100 for i in range(400)})),
        "regex": ('""', '".*"', '"(a*)*b"', '"(a|a)*c"', '"[\\\\s\\\\S]*"', '"x{1000}"'),
        "ebnf": ('"root ::="', json.dumps('root ::= "a" |||')),
        "priority": ("-1", str(2**31), str(2**63 - 1), str(-(2**63))),
        "cache_salt": ('""', '"x"', json.dumps("x" * 10_000)),
    }  # fmt: skip
    for path in (TEXT, CHAT, NATIVE):
        for name, given in values.items():
            ours = NATIVE_NAMES.get(name, name) if path == NATIVE else name
            for value in given:
                yield Row(f"{path} {ours}={value[:16]}", path, around(path, ours, value), debatable=True)


def refused(port: int) -> list[Row]:
    """Every row that has to be a 4xx."""
    makers = (
        numbers(),
        token_ids(),
        prompts(),
        messages(),
        grammars(),
        bodies(),
        forms(),
        methods_and_paths(),
        places(port),
    )
    return [row for rows in makers for row in rows if not row.debatable]


def taken_or_refused() -> list[Row]:
    """Every row that must not be a 5xx."""
    kwargs = Row(
        "chat_template_kwargs",
        CHAT,
        around(CHAT, "chat_template_kwargs", '{"tokenize": true}'),
        debatable=True,
    )
    return [*(r for r in prompts() if r.debatable), *debatable(), kwargs]
