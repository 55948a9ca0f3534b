"""Constraints that are made to take for ever, and very many of them: who else waits, and what stays in memory.

    python -m benchmarks.hostile_grammars --grammars 2000

Every bomb goes to a server with its usual limits, four at a time, while plain requests and /health are timed beside them.
Exit code 1 if a bomb takes 30 s, a plain request 5 s or /health 2 s, if anything is a 5xx that is no refusal, or if
constraints that are seen once leave more than 0.25 MiB each.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer

from benchmarks.traffic import memory
from runtime.server.launch import ServerProcess

RESULTS = Path(__file__).parent / "results" / "hostile_grammars.json"

REGEXES = (
    "(a{1000}){1000}",
    "(a*)*b",
    "(a|a)*c",
    "(a|aa)+b",
    "((a{1,100}){1,100}){1,100}",
    "(.{0,200}){50}|(b{0,90}){90}",
    "(x+x+)+y",
    r"[\s\S]{60000}",
    "(" * 20_000 + "a" + ")" * 20_000,
    "(a|b)*a(a|b){24}",
    ".*a.{30}b.*c.{30}d",
    "(a?){500}a{500}",
    r"(\w|\d|\s){1000}",
    "|".join(f"w{i}" for i in range(9000)),
    "((((((a{10}){10}){10}){10}){10}){10}){10}",
    "(a{0,65535}){0,65535}",
    "(" * 300 + "ab" + ")*" * 300,
    r"(\w+\s?){1,400}é{1,400}(.|\n){1,400}",
)


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema, "b": schema}, "required": ["a", "b"]}
    return schema


def _doubling(levels: int, word: str) -> dict[str, Any]:
    """Each definition names the one before it twice."""
    defs: dict[str, Any] = {"d0": {"type": "string", "maxLength": 3}}
    for i in range(levels):
        part = {"$ref": f"#/$defs/d{i}"}
        if word == "properties":
            defs[f"d{i + 1}"] = {
                "type": "object",
                "properties": {"a": part, "b": part},
                "required": ["a", "b"],
            }
        else:
            defs[f"d{i + 1}"] = {word: [part, part]}
    return {"$defs": defs, "$ref": f"#/$defs/d{levels}"}


def _chain(length: int) -> dict[str, Any]:
    defs: dict[str, Any] = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(length)}
    return {"$defs": {**defs, f"d{length}": {"type": "boolean"}}, "$ref": "#/$defs/d0"}


SCHEMAS: tuple[dict[str, Any], ...] = (
    _nested(14),
    _doubling(40, "properties"),
    _doubling(40, "anyOf"),
    _doubling(40, "allOf"),
    _chain(3000),
    {"$ref": "#"},
    {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]},
    {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(5000)}},
    {"enum": [f"value {i}" for i in range(20_000)]},
    {"type": "string", "minLength": 10**9},
    {"type": "string", "minLength": 1000, "maxLength": 10**9},
    {"type": "string", "pattern": "(a{1000}){1000}"},
    {"type": "array", "items": {"type": "string", "pattern": "(a|b)*a(a|b){24}"}, "minItems": 3},
    {"type": "array", "items": {"type": "integer"}, "minItems": 10**6},
    {"type": "array", "items": {"enum": [1, 2, 3]}, "uniqueItems": True, "minItems": 3},
    {"type": "array", "prefixItems": [{"type": "integer"}] * 5000, "items": False, "minItems": 5000},
    {"anyOf": [{"type": "string", "pattern": f".*{i}.*"} for i in range(300)]},
    {"allOf": [{"type": "string", "pattern": f".*{i}.*"} for i in range(40)]},
    {"oneOf": [{"type": "object", "properties": {f"k{i}": {"type": "integer"}}} for i in range(200)]},
    {"type": "integer", "minimum": -(10**400), "maximum": 10**400},
    {"const": "x" * 400_000},
    {"type": "object", "patternProperties": {f"^a{{{i}}}.*": {"type": "integer"} for i in range(100)}},
)
EBNFS = (
    'root ::= root root | "a"',
    'root ::= root "a" | "b"',
    'root ::= (("a"*)*)*',
    'root ::= ("a" | "a" "a")*',
    'root ::= "a"{9999999}',
    'root ::= (("a"{1000}){1000}){1000}',
    'root ::= ("a"?){50000}',
    "root ::= [a-z]{1,50000}",
    "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000,
    'root ::= "' + "a" * 60_000 + '"',
    "root ::= " + " | ".join(f'"w{i}"' for i in range(6000)),
    "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1} r{i + 1}\n" for i in range(40)) + 'r40 ::= "a"',
    "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(3000)) + 'r3000 ::= "a"',
    "root ::= r0\n" + "".join(f"r{i} ::= r{(i + 1) % 500} | r{(i + 7) % 500}\n" for i in range(500)),
    "root ::= r0\n" + "".join(f'r{i} ::= r{(i + 1) % 300} "a" | r{(i * 7) % 300} | ""\n' for i in range(300)),
    "root ::= [" + "".join(chr(0x4E00 + i) for i in range(15_000)) + "]*",
    'root ::= a b c\na ::= "x"* b*\nb ::= "x"* c*\nc ::= "x"* a*',
)  # fmt: skip


def bombs() -> list[tuple[str, str]]:
    """(kind, source) of each."""
    schemas = (json.dumps(s) for s in SCHEMAS)
    return [
        *(("regex", r) for r in REGEXES),
        *(("json_schema", s) for s in schemas),
        *(("ebnf", e) for e in EBNFS),
    ]


@dataclass
class Findings:
    """What came of bombs, and how long others waited meanwhile; seconds."""

    statuses: Counter[int] = field(default_factory=Counter)
    slowest: tuple[float, str] = (0.0, "")
    wrong: list[str] = field(default_factory=list)
    plain: float = 0.0
    health: float = 0.0
    beside: int = 0


async def _timed(call: Any) -> tuple[int, Any, float]:
    began = time.monotonic()
    async with call as answer:
        data = await answer.read()
        return answer.status, data, time.monotonic() - began


async def bombard(url: str, which: Iterable[tuple[str, str]], at_once: int = 4) -> Findings:
    """Send each constraint once, while others ask for something plain."""
    found, left = Findings(), iter(which)

    async def attacker(session: aiohttp.ClientSession) -> None:
        for kind, source in left:
            params = {"max_new_tokens": 12, kind: source}
            body = {"text": "x", "sampling_params": params}
            status, data, seconds = await _timed(session.post(f"{url}/generate", json=body))
            found.statuses[status] += 1
            found.slowest = max(found.slowest, (seconds, f"{kind} {source[:60]}"))
            if status >= 500 and status != 503:
                found.wrong.append(f"{kind} {source[:60]}: {status} {data[:200]!r}")

    async def bystander(session: aiohttp.ClientSession) -> None:
        params = {"max_new_tokens": 4, "ignore_eos": True}
        while True:
            body = {"text": "Tell me", "sampling_params": params}
            status, _, seconds = await _timed(session.post(f"{url}/generate", json=body))
            assert status == 200
            found.plain, found.beside = max(found.plain, seconds), found.beside + 1
            _, _, seconds = await _timed(session.get(f"{url}/health"))
            found.health = max(found.health, seconds)
            await asyncio.sleep(0.02)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        beside = asyncio.create_task(bystander(session))
        await asyncio.gather(*(attacker(session) for _ in range(at_once)))
        beside.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await beside
    return found


def small(first: int, count: int) -> Iterator[tuple[str, str]]:
    """Harmless constraints, each another one."""
    for i in range(first, first + count):
        match i % 3:
            case 0:
                yield "regex", f"(r|g){i} [a-z]{{1,{i % 30 + 1}}}"
            case 1:
                fields = {f"k{i}": {"type": "string", "maxLength": 10}, "n": {"type": "integer"}}
                yield (
                    "json_schema",
                    json.dumps({"type": "object", "properties": fields, "required": [f"k{i}"]}),
                )
            case _:
                yield "ebnf", f'root ::= "v{i}" item*\nitem ::= " " [a-z]+ | "(" item ")"'


def main(
    grammars: Annotated[int, typer.Option(help="Harmless constraints, each used once.")] = 2000,
    at_once: Annotated[int, typer.Option(help="Callers that send them.")] = 4,
    out: Path = RESULTS,
) -> None:
    server = ServerProcess()
    try:
        asyncio.run(bombard(server.url, small(10**6, 30), at_once))  # what is made once is made now
        found = asyncio.run(bombard(server.url, bombs(), at_once))
        typer.echo(f"bombs: {found}")
        asyncio.run(bombard(server.url, small(2 * 10**6, 150), at_once))  # the caches are as full as they get
        before = memory(server.pid)
        many = asyncio.run(bombard(server.url, small(0, grammars), at_once))
        grown = memory(server.pid) - before
    finally:
        server.shutdown()
    result = {
        "bombs": len(bombs()),
        "statuses": {str(k): v for k, v in sorted(found.statuses.items())},
        "wrong": found.wrong,
        "slowest_bomb_s": [round(found.slowest[0], 2), found.slowest[1]],
        "slowest_plain_s": round(found.plain, 2),
        "slowest_health_s": round(found.health, 2),
        "grammars": grammars,
        "grammar_statuses": {str(k): v for k, v in sorted(many.statuses.items())},
        "grown_mib": round(grown / 2**20, 1),
        "kib_each": round(grown / 1024 / max(grammars, 1), 1),
    }
    typer.echo(json.dumps(result, indent=1))
    out.write_text(json.dumps(result, indent=1) + "\n")
    slow = found.slowest[0] > 30 or found.plain > 5 or found.health > 2
    raise typer.Exit(bool(found.wrong or many.wrong or slow or grown > grammars * 2**18))


if __name__ == "__main__":
    typer.run(main)
