"""The cells of the second table in runtime/server/README.md: embeddings, files, batches and models, by OpenAI's client."""

from __future__ import annotations

import base64
import json
import time
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from runtime.server.batches import BatchBody
from runtime.server.bodies import EmbeddingBody
from runtime.server.launch import ServerProcess
from tests.server.calls import call
from tests.server.test_conformance import OBJECTS, cells

METHODS = ("create", "list", "retrieve", "content", "delete", "cancel")
LINE = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/completions",
    "body": {"prompt": "1 + 1 =", "max_tokens": 2},
}
DATA = json.dumps(LINE).encode()


class Objects:
    """Each endpoint of the client, on a server that has it."""

    def __init__(self, url: str, embedder: str) -> None:
        self.urls = {api: embedder if api == "/v1/embeddings" else url for api in OBJECTS}
        self.clients: dict[str, Any] = {}
        for api, url in self.urls.items():
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
            self.clients[api] = getattr(client, api.removeprefix("/v1/"))

    def create(self, api: str, **fields: Any) -> Any:
        """With what is needed, and `fields` in addition or in its place."""
        create = self.clients[api].create
        if api == "/v1/embeddings":
            return create(**{"model": "tiny", "input": "A text"} | fields)
        if api == "/v1/files":
            given: dict[str, Any] = {"file": ("in.jsonl", DATA), "purpose": "batch"} | fields
            known = {k: given.pop(k) for k in ("file", "purpose")}
            return create(**known, extra_body=given)
        needed = {"endpoint": "/v1/completions", "completion_window": "24h"}
        if "input_file_id" not in fields:
            needed["input_file_id"] = self.create("/v1/files").id
        given = needed | fields
        known = {k: given.pop(k) for k in ("input_file_id", "endpoint", "completion_window")}
        return create(**known, extra_body=given)

    def vector(self, **fields: Any) -> Any:
        return self.create("/v1/embeddings", **fields).data[0].embedding

    def finished(self, id: str) -> Any:
        batches = self.clients["/v1/batches"]
        for _ in range(600):
            batch = batches.retrieve(id)
            if batch.status in ("completed", "failed", "cancelled", "expired"):
                return batch
            time.sleep(0.05)
        raise AssertionError(f"the batch is still {batch.status}")


@pytest.fixture(scope="module")
def objects(server: ServerProcess) -> Iterator[Objects]:
    sizes = '{"matryoshka_dimensions": [64]}'
    embedder = ServerProcess(is_embedding=True, json_model_override_args=sizes)
    yield Objects(server.url, embedder.url)
    embedder.shutdown()


Check = Callable[[Objects, str, str], None]


def make(o: Objects, api: str, field: str) -> None:
    made = o.create(api)
    assert made.object == {"/v1/embeddings": "list", "/v1/files": "file", "/v1/batches": "batch"}[api]


def listed(o: Objects, api: str, field: str) -> None:
    known = "tiny" if api == "/v1/models" else o.create(api).id
    assert known in [x.id for x in o.clients[api].list().data]


def look_up(o: Objects, api: str, field: str) -> None:
    known = "tiny" if api == "/v1/models" else o.create(api).id
    assert o.clients[api].retrieve(known).id == known
    with pytest.raises(openai.NotFoundError):
        o.clients[api].retrieve("none-of-these")


def read(o: Objects, api: str, field: str) -> None:
    assert o.clients[api].content(o.create(api).id).read() == DATA


def remove(o: Objects, api: str, field: str) -> None:
    made = o.create(api)
    assert o.clients[api].delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        o.clients[api].retrieve(made.id)


def end_early(o: Objects, api: str, field: str) -> None:
    body = {**LINE["body"], "prompt": "Tell me", "max_tokens": 3000, "ignore_eos": True}  # type: ignore[dict-item]
    data = "\n".join(json.dumps({**LINE, "custom_id": str(i), "body": body}) for i in range(40))
    file = o.create("/v1/files", file=("long.jsonl", data.encode()))
    made = o.create(api, input_file_id=file.id)
    assert o.clients[api].cancel(made.id).status == "cancelling"
    assert o.finished(made.id).status == "cancelled"


def model(o: Objects, api: str, field: str) -> None:
    with pytest.raises(openai.NotFoundError):
        o.create(api, model="none-of-these")


def input_(o: Objects, api: str, field: str) -> None:
    if api == "/v1/embeddings":
        _, told, _ = call(f"{o.urls[api]}/tokenize", {"text": "A text"})
        one, ids = o.vector(), told["tokens"]
        for value in (["A text"], ids, [ids]):
            assert o.vector(**{field: value}) == pytest.approx(one, abs=1e-6)
        two = o.create(api, **{field: ["A text", "Another"]}).data
        assert [d.index for d in two] == [0, 1] and two[1].embedding != two[0].embedding
    elif api == "/v1/files":
        assert o.create(api, **{field: ("other.jsonl", b"{}")}).bytes == 2
    else:
        assert o.finished(o.create(api).id).request_counts.completed == 1
        with pytest.raises(openai.NotFoundError):
            o.create(api, **{field: "none-of-these"})


def numbers(o: Objects, api: str, field: str) -> None:
    plain, packed = o.vector(**{field: "float"}), o.vector(**{field: "base64"})
    assert list(array("f", base64.b64decode(packed))) == pytest.approx(plain, abs=1e-6)
    with pytest.raises(openai.BadRequestError, match=field):
        o.vector(**{field: "int8"})


def shorter(o: Objects, api: str, field: str) -> None:
    short = o.vector(**{field: 64})
    assert len(short) == 64 and sum(v * v for v in short) == pytest.approx(1, abs=1e-5)
    with pytest.raises(openai.BadRequestError, match="was trained for 64 alone"):
        o.vector(**{field: 32})


def use(o: Objects, api: str, field: str) -> None:
    assert o.create(api).purpose == "batch"
    with pytest.raises(openai.BadRequestError, match=field):
        o.create(api, **{field: "fine-tune"})
    o.finished(o.create("/v1/batches").id)
    assert {f.purpose for f in o.clients[api].list(**{field: "batch_output"}).data} == {"batch_output"}
    assert {f.purpose for f in o.clients[api].list(**{field: "batch"}).data} == {"batch"}


def route(o: Objects, api: str, field: str) -> None:
    with pytest.raises(openai.BadRequestError, match=field):
        o.create(api, **{field: "/v1/none-of-these"})


def window(o: Objects, api: str, field: str) -> None:
    made = o.create(api, **{field: "90m"})
    assert made.expires_at - made.created_at == 5400
    with pytest.raises(openai.BadRequestError, match=field):
        o.create(api, **{field: "soon"})


def metadata(o: Objects, api: str, field: str) -> None:
    assert o.create(api, **{field: {"a": "b"}}).metadata == {"a": "b"}


def earlier(o: Objects, api: str, field: str) -> None:
    first = o.finished(o.create(api).id)
    assert o.finished(o.create(api, **{field: first.id}).id).request_counts.completed == 1
    with pytest.raises(openai.NotFoundError):
        o.create(api, **{field: "none-of-these"})


def length(o: Objects, api: str, field: str) -> None:
    o.create(api), o.create(api)
    page = o.clients[api].list(**{field: 1})
    assert len(page.data) == 1 and page.has_more
    with pytest.raises(openai.BadRequestError, match=field):
        o.clients[api].list(**{field: 0})


def start(o: Objects, api: str, field: str) -> None:
    older, newer = o.create(api), o.create(api)
    found = [x.id for x in o.clients[api].list(**{field: newer.id}).data]
    assert older.id in found and newer.id not in found


def order(o: Objects, api: str, field: str) -> None:
    first, second = o.create(api), o.create(api)
    for value, wanted in (("asc", [first.id, second.id]), ("desc", [second.id, first.id])):
        found = [x.id for x in o.clients[api].list(**{field: value}, limit=1000).data]
        assert [x for x in found if x in wanted] == wanted


def salted(o: Objects, api: str, field: str) -> None:
    def cached(salt: str) -> int:
        answer = o.create(api, input="Cached by user alone", extra_body={field: salt})
        return int(answer.usage.prompt_tokens_details["cached_tokens"])

    assert [cached(s) > 0 for s in ("a", "a", "b")] == [False, True, False]


CHECKS: dict[str, Check] = {
    "make": make,
    "list": listed,
    "look up": look_up,
    "read": read,
    "remove": remove,
    "end early": end_early,
    "model": model,
    "input": input_,
    "form of numbers": numbers,
    "shorter vectors": shorter,
    "use": use,
    "route of the lines": route,
    "time limit": window,
    "metadata": metadata,
    "earlier batch": earlier,
    "length of a page": length,
    "start of a page": start,
    "order of a page": order,
    "cache by user": salted,
}
VALUES: dict[str, Any] = {
    "expires_after": {"anchor": "created_at", "seconds": 3600},
    "output_expires_after": {"anchor": "created_at", "seconds": 3600},
    "priority": 3,
    "user": "somebody",
}


def _lacks(o: Objects, api: str, option: str) -> None:
    """The endpoint has no such method, or takes no such field."""
    method = {"make": "POST", "remove": "DELETE", "list": "GET"}.get(option)
    if method is not None:
        path = f"{api}/x" if method == "DELETE" else api
        assert call(o.urls[api] + path, None, method=method)[0] in (404, 405)
    elif option in ("look up", "read", "end early"):
        ending = {"look up": "x", "read": "x/content", "end early": "x/cancel"}[option]
        body = {} if option == "end early" else None
        assert call(f"{o.urls[api]}{api}/{ending}", body)[0] in (404, 405)
    elif api == "/v1/models":  # it is read only
        plain = o.clients[api].list().data
        assert o.clients[api].list(extra_query={option.replace(" ", "_"): "1"}).data == plain
    else:
        extra = {f"no_{option.replace(' ', '_')}": "1"}
        with pytest.raises(openai.BadRequestError, match=r"unknown field|is not known"):
            o.create(api, **({"extra_body": extra} if api == "/v1/embeddings" else extra))


@pytest.mark.parametrize(("option", "api", "field", "note"), cells(OBJECTS))
def test_cell(objects: Objects, option: str, api: str, field: str, note: str) -> None:
    if not field:
        _lacks(objects, api, option)
    elif note == "refused" and field in METHODS:
        with pytest.raises(openai.APIStatusError) as caught:
            getattr(objects.clients[api], field)("tiny")
        assert caught.value.status_code == 405
    elif note == "refused":
        with pytest.raises(openai.BadRequestError, match=field):
            objects.create(api, **{field: VALUES[field]})
    elif note == "no effect":
        extra = {"extra_body": {field: VALUES[field]}}
        assert objects.vector(**extra) == pytest.approx(objects.vector(), abs=1e-6)
    else:
        CHECKS[option](objects, api, field)


def test_every_field_is_in_the_table() -> None:
    def told(api: str) -> set[str]:
        return {
            f for _, a, f, note in cells(OBJECTS) if a == api and f not in METHODS and note != "refused"
        } - {""}

    assert told("/v1/embeddings") == set(EmbeddingBody.__struct_fields__)
    assert told("/v1/batches") - {"limit", "after"} == set(BatchBody.__struct_fields__)
    assert told("/v1/files") == {"file", "purpose", "limit", "after", "order"} and not told("/v1/models")
