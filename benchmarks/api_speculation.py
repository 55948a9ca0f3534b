"""What `num_api_spec_tokens` saves on a provider that is paid by the token: money, calls and time of filling forms.

The provider is a stand-in in this process: 50 ms a call, a price for each token sent and written, nine tenths off for a prompt's first
tokens if another call began with the same 1,024 or more. A page has 3,000 tokens; after a field the model goes on with the
form's next label with some probability, else with other text. Without speculation each field is a call, as with a client
library. Answers must be equal. Usage: python benchmarks/api_speculation.py [--out FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import sglc as sgl
from runtime.api import Delta, Finish, Generate, Usage, render
from runtime.backends.base import Capabilities, ModelInfo

SENT, WRITTEN, DISCOUNT, LATENCY = 0.15e-6, 0.60e-6, 0.9, 0.05  # dollars a token, share, seconds
PAGES, PAGE = 8, 3000


class Provider:
    """`follows`: how likely the model writes the next label of the form after a field."""

    capabilities = Capabilities(
        name="provider", sampling=frozenset({"max_tokens", "stop", "temperature"}), samples=True
    )
    model = ModelInfo(model_path="provider", chat_template="default")

    def __init__(self, fields: int, follows: float) -> None:
        self.fields, self.follows = fields, follows
        self.money, self.calls = 0.0, 0
        self._seen: list[list[str]] = []

    async def generate(self, requests: Sequence[Generate]) -> AsyncIterator[Delta]:
        await asyncio.sleep(LATENCY)
        for request in requests:
            prompt = render(request.prompt)
            text, finish = self._cut(self._answer(prompt), request)
            sent, written = prompt.split(), max(1, len(text.split()))
            cached = max((_same(sent, other) for other in self._seen), default=0)
            cached = cached if cached >= 1024 else 0
            self._seen.append(sent)
            self.money += SENT * (len(sent) - DISCOUNT * cached) + WRITTEN * written
            self.calls += 1
            usage = Usage(len(sent), written, cached)
            yield Delta(id=request.id, text=text, finish=finish, usage=usage)

    def _answer(self, prompt: str) -> str:
        page, _, form = prompt.rpartition("\n\n")
        at = form.count("Field")
        found = []
        while at <= self.fields:
            found.append(f" value {at} of {page[:12]}\n")
            at += 1
            if random.Random(f"{page[:40]}{at}").random() >= self.follows:
                found.append("Something else\nand more of it\n")
                break
            found.append(f"Field {at}:")
        return "".join(found)

    @staticmethod
    def _cut(text: str, request: Generate) -> tuple[str, Finish]:
        ends = [(at, s) for s in request.sampling.stop if (at := text.find(s)) >= 0]
        if ends:
            return text[: min(ends)[0]], Finish("stop", matched=min(ends)[1])
        return text, Finish("stop")

    async def score(self, request: Any) -> Any:
        raise ValueError("this provider gives no scores")

    async def prefill(self, prompt: Any) -> None:
        return None

    async def flush_cache(self) -> bool:
        return True

    async def close(self) -> None:
        return None


def _same(a: list[str], b: list[str]) -> int:
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def body(s: Any, page: str, fields: int) -> None:
    s += page + "\n\n"
    for k in range(1, fields + 1):
        s += f"Field {k}:" + sgl.gen(f"f{k}", stop="\n", temperature=0) + "\n"


def measure(
    program: Any, fields: int, follows: float, pages: list[str]
) -> tuple[dict[str, float], list[Any]]:
    provider = Provider(fields, follows)
    began = time.perf_counter()
    states = [program.run(page, fields, backend=provider) for page in pages]
    values = [[s[f"f{k}"] for k in range(1, fields + 1)] for s in states]
    seconds = time.perf_counter() - began
    return {"dollars": provider.money, "calls": provider.calls, "seconds": seconds}, values


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "api_speculation.json"
    )
    out = parser.parse_args().out
    rng = random.Random(5)
    words = [f"w{k}" for k in range(500)]
    pages = [f"Page {n} " + " ".join(rng.choices(words, k=PAGE)) for n in range(PAGES)]
    rows = []
    for fields in (3, 5, 8):
        for follows in (0.6, 0.9, 1.0):
            plain, expected = measure(sgl.function(body), fields, follows, pages)
            ahead, values = measure(sgl.function(body, num_api_spec_tokens=128), fields, follows, pages)
            assert values == expected, "speculation changed an answer"
            row = {"fields": fields, "follows": follows} | {
                f"{name}_saved": round(1 - ahead[name] / plain[name], 3) for name in plain
            }
            row |= {"calls": ahead["calls"], "calls_without": plain["calls"]}
            print(row)
            rows.append(row)
    out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
