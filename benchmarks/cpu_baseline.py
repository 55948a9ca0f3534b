"""The embedded model on a CPU: this engine beside transformers' `generate`, in one run.

    python benchmarks/cpu_baseline.py

One request alone; one long prompt; and 64 requests that share a prefix of 1,000 tokens. Greedy, end-of-text ignored, so
everybody does the same work. transformers runs the 64 as one batch of `generate`, and once more with the prefix computed
once and its cache copied to all rows by hand, which a caller who knows the prefix can write. Each figure is the best of
some turns, which alternate.
"""

from __future__ import annotations

import asyncio
import copy
import json
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table

from runtime.api import Generate, LogprobOptions, SamplingParams, TokenSegment
from runtime.config import embedded_model_path
from runtime.engine.engine import Engine
from runtime.kernels.cpu.build import Variant

Tokens = list[list[int]]
RESULTS = Path(__file__).parent / "results" / "cpu_baseline.json"


@dataclass(frozen=True)
class Row:
    """One measurement, in tokens/s. `same`: share of requests whose tokens are all equal (float32 ties may differ)."""

    name: str
    ours: float
    transformers: float
    same: float
    wanted: float | None

    @property
    def ratio(self) -> float:
        return self.ours / self.transformers


class Ours:
    """The engine, its kernels built and loaded."""

    def __init__(self, threads: int) -> None:
        Variant("uint16", 32).build()
        self.engine = Engine(threads=threads)

    def generate(self, prompts: Tokens, count: int, *, keep: bool = False) -> Tokens:
        """Answers, or nothing if they are not to be kept: their ids come with log-probabilities, which cost time."""
        sampling = SamplingParams(temperature=0, max_new_tokens=count, ignore_eos=True)
        logprobs = LogprobOptions() if keep else None
        calls = [
            Generate(prompt=(TokenSegment(tuple(p), ""),), sampling=sampling, id=str(i), logprobs=logprobs)
            for i, p in enumerate(prompts)
        ]
        return asyncio.run(self._collect(calls))

    async def _collect(self, calls: Sequence[Generate]) -> Tokens:
        out: Tokens = [[] for _ in calls]
        async for delta in self.engine.async_engine.generate(calls):
            out[int(delta.id)] += [t.id for t in delta.output_logprobs]
            assert delta.finish is not None and delta.finish.type == "length", delta.finish
        return out

    def fresh(self) -> None:
        """Forget cached prefixes."""
        while not self.engine.flush_cache():
            time.sleep(0.01)


class Theirs:
    """transformers on the same weights in float32."""

    def __init__(self) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            embedded_model_path(), dtype=torch.float32
        ).eval()

    @torch.inference_mode()
    def generate(self, prompts: Tokens, count: int, shared: int = 0) -> Tokens:
        """With `shared`, the first so many tokens are computed once and their cache is copied to all rows."""
        ids = torch.tensor(prompts)
        options = {}
        if shared:
            once = transformers.DynamicCache(config=self.model.config)
            self.model(ids[:1, :shared], past_key_values=once, logits_to_keep=1)
            cache = copy.copy(once)
            cache.batch_repeat_interleave(len(prompts))
            options = {"past_key_values": cache}
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
            eos_token_id=None,
            pad_token_id=0,
            **options,
        )
        return out[:, ids.shape[1] :].tolist()


def best(turns: int, *works: Callable[[], object]) -> list[float]:
    """The shortest time of each, in seconds; they take turns."""
    times = [float("inf")] * len(works)
    for _ in range(turns):
        for i, work in enumerate(works):
            start = time.perf_counter()
            work()
            times[i] = min(times[i], time.perf_counter() - start)
    return times


def share_equal(a: Tokens, b: Tokens) -> float:
    return sum(x == y for x, y in zip(a, b, strict=True)) / len(a)


def measure_one(ours: Ours, theirs: Theirs, text: list[int], turns: int) -> list[Row]:
    prompt, count = [text[:32]], 256
    same = share_equal(ours.generate(prompt, count, keep=True), theirs.generate(prompt, count))
    mine, other = best(turns, lambda: ours.generate(prompt, count), lambda: theirs.generate(prompt, count))
    return [Row("1 request, 256 outputs", count / mine, count / other, same, 5.0)]


def measure_prompt(ours: Ours, theirs: Theirs, text: list[int], turns: int) -> list[Row]:
    prompt = [text[:1032]]
    same = share_equal(ours.generate(prompt, 1, keep=True), theirs.generate(prompt, 1))

    def mine() -> None:
        ours.fresh()
        ours.generate(prompt, 1)

    seconds = best(turns, mine, lambda: theirs.generate(prompt, 1))
    return [Row("1 prompt of 1,032 tokens", 1032 / seconds[0], 1032 / seconds[1], same, None)]


def measure_shared(ours: Ours, theirs: Theirs, text: list[int], turns: int) -> list[Row]:
    prompts = [text[:1000] + text[1000 + 32 * i : 1032 + 32 * i] for i in range(64)]
    count = 64
    ours.fresh()
    same = share_equal(ours.generate(prompts, count, keep=True), theirs.generate(prompts, count, 1000))

    def mine() -> None:
        ours.fresh()
        ours.generate(prompts, count)

    seconds = best(
        turns,
        mine,
        lambda: theirs.generate(prompts, count),
        lambda: theirs.generate(prompts, count, 1000),
    )
    total = len(prompts) * count
    mine_, plain, shared = (total / t for t in seconds)
    name = "64 requests, 1,000 shared tokens, 32 own, 64 outputs each"
    return [
        Row(f"{name}: generate() of one batch", mine_, plain, same, 8.0),
        Row(f"{name}: the prefix's cache copied by hand", mine_, shared, same, None),
    ]


def prose(tokenizer: transformers.PreTrainedTokenizerBase, length: int) -> list[int]:
    """So many tokens of questions and answers, in an order that a seed fixes."""
    rng = random.Random(0)
    places = ["France", "Japan", "Kenya", "Peru", "Norway", "Egypt", "Canada", "India", "Spain", "Chile"]
    asked = ["capital", "currency", "language", "largest city", "most famous sight"]
    parts: list[int] = []
    while len(parts) < length:
        line = f"Q: What is the {rng.choice(asked)} of {rng.choice(places)}, and why do {rng.randrange(9, 99)} people ask?\nA:"
        parts += tokenizer.encode(line, add_special_tokens=False)
    return parts[:length]


def main(threads: int = 2, turns: int = 3, results: Path = RESULTS) -> None:
    """Measure, print a table, and write JSON."""
    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(embedded_model_path())
    text = prose(tokenizer, 1000 + 64 * 32)
    ours, theirs = Ours(threads), Theirs()
    measures = (measure_one, measure_prompt, measure_shared)
    rows = [row for measure in measures for row in measure(ours, theirs, text, turns)]
    table = Table("", "engine, tokens/s", "transformers, tokens/s", "ratio", "wanted", "same tokens")
    for r in rows:
        table.add_row(
            r.name,
            f"{r.ours:,.0f}",
            f"{r.transformers:,.0f}",
            f"{r.ratio:.1f}x",
            f"{r.wanted:.0f}x" if r.wanted else "",
            f"{r.same:.0%}",
        )
    Console().print(table)
    results.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "machine": platform.processor() or platform.machine(),
        "threads": threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rows": [{**asdict(r), "ratio": round(r.ratio, 2)} for r in rows],
    }
    results.write_text(json.dumps(facts, indent=2) + "\n")
    ours.engine.shutdown()


if __name__ == "__main__":
    typer.run(main)
