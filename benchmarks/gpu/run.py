"""The engine on the serving workloads, one JSON line per result.

python -m benchmarks.gpu.run llama8b --tests b,c,d,a --out FOLDER     (random weights of the real shape)
python -m benchmarks.gpu.run tiny --tests b --device cpu              (a smoke test on the embedded model)

a  1,000 requests of mixed lengths          b  decode at context 1,024, by batch
c  16 prompts of 8,192 tokens               d  256 requests on 16 shared prefixes
f  decode of a small model, by batch      p  kernels of a decode step by share

The engine's loop is driven in this process, with token ids in and out: no text, no HTTP. Times of b and f are of 128 (256)
steps: a run with that many new tokens less a run with one.
"""

from __future__ import annotations

import gc
import json
import random
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.gpu.workload import SHAPES, Shape, mixed, prompt, shared_prefixes

BEGAN = time.perf_counter()


class Driver:
    """A loaded engine; `run` gives prompts to it and waits for all answers."""

    def __init__(self, folder: str | None, options: dict[str, Any]) -> None:
        from runtime.config import EngineConfig
        from runtime.engine.loop import EngineLoop

        self.loop = EngineLoop(EngineConfig.of({"model_path": folder, **options}))
        gc.collect()
        gc.freeze()  # as an engine's process does
        self.vocabulary = self.loop.model.spec.vocabulary
        self._number = 0
        self.steps: list[tuple[Any, float]] = []  # of the newest run: each batch, and the time of its turn

    def run(
        self, prompts: Sequence[list[int]], new: int | Sequence[int], temperature: float = 0.0
    ) -> tuple[float, int]:
        """Seconds, and tokens that were written."""
        from runtime.api import SamplingParams
        from runtime.engine.messages import Add, Output, Refused

        counts = [new] * len(prompts) if isinstance(new, int) else list(new)
        began = time.perf_counter()
        for tokens, count in zip(prompts, counts, strict=True):
            self._number += 1
            sampling = SamplingParams(max_new_tokens=count, temperature=temperature, ignore_eos=True)
            for refused in self.loop.handle(Add(str(self._number), tokens, sampling, seed=self._number)):
                raise RuntimeError(f"a request was refused: {refused}")
        left, written = len(prompts), 0
        self.steps = []
        last = began
        while left:
            messages = self.loop.step()
            flight, now = self.loop._flight, time.perf_counter()
            if flight:
                self.steps.append((flight[-1].batch, now - last))
            last = now
            for message in messages:
                assert not isinstance(message, Refused), message
                if isinstance(message, Output):
                    written += len(message.tokens)
                    if message.finish is not None:
                        if message.finish.type == "error":
                            raise RuntimeError(message.finish.message)
                        left -= 1
        took = time.perf_counter() - began
        assert written == sum(counts), (written, sum(counts))
        return took, written

    def shares(self) -> list[dict[str, Any]]:
        """Where the newest run's time went: turns by what was in their batch."""
        found: dict[str, list[float]] = {}
        for batch, took in self.steps:
            prompts = sum(len(s.tokens) for s in batch.slices)
            rows = sum(not s.tokens for s in batch.slices)
            most = next(m for m in (16, 64, 128, 256, 512, 1 << 30) if rows <= m)
            kind = "with prompts" if prompts else "more rows" if most > 512 else f"to {most} rows"
            sums = found.setdefault(kind, [0, 0, 0, 0, 0.0])
            for i, value in enumerate((1, batch.steps, rows, prompts, took)):
                sums[i] += value
        return [
            {"kind": k, "turns": n, "steps": steps, "rows": rows / n, "prompt_tokens": p, "s": round(s, 2)}
            for k, (n, steps, rows, p, s) in sorted(found.items())
        ]

    def flush(self) -> None:
        from runtime.engine.messages import Ask

        self.loop.handle(Ask(0, "flush"))

    def cached(self) -> tuple[int, int]:
        return self.loop.scheduler.cached_tokens, self.loop.scheduler.prompt_tokens


class Bench:
    def __init__(
        self, name: str, driver: Driver, log: Callable[..., None], tb_s: float, tflops: float
    ) -> None:
        self.shape: Shape | None = SHAPES.get(name)
        self.driver, self.log = driver, log
        self.tb_s, self.tflops = tb_s, tflops
        self.rng = random.Random(1)

    def prompts(self, count: int, length: int) -> list[list[int]]:
        return [prompt(self.rng, length, self.driver.vocabulary) for _ in range(count)]

    def decode(self, batches: Sequence[int], steps: int, context: int = 1024) -> None:
        for batch in batches:
            given = self.prompts(batch, context - steps // 2)
            self.driver.run(given, 1)
            found = []
            for _ in range(3):
                one = self.driver.run(given, 1)[0]
                many = self.driver.run(given, 1 + steps)[0]
                found.append((many - one) / steps * 1e3)
            ms = statistics.median(found)
            floor = self.shape.decode_floor_ms(batch, context, self.tb_s) if self.shape else 0.0
            turn = statistics.mean([b.steps for b, _ in self.driver.steps] or [1])
            self.log(
                "decode", batch=batch, ms=ms, repeats=found, floor_ms=floor, of_floor=floor / ms, turn=turn
            )

    def b(self) -> None:
        self.decode((1, 8, 32, 64, 128, 256) if self.shape else (1, 8), 128 if self.shape else 16)

    def f(self) -> None:
        self.decode((1, 64, 256), 256)

    def c(self) -> None:
        found = [self.driver.run(self.prompts(16, 8192), 1)[0] for _ in range(3)]
        s = statistics.median(found)
        floor = self.shape.prefill_floor_s(16, 8192, self.tflops) if self.shape else 0.0
        self.log("prefill", s=s, repeats=found, floor_s=floor, of_floor=floor / s)

    def d(self) -> None:
        found, hits = [], []
        for seed in range(3):
            self.driver.flush()
            before = self.driver.cached()
            found.append(self.driver.run(shared_prefixes(self.driver.vocabulary, seed), 128)[0])
            cached, asked = (a - b for a, b in zip(self.driver.cached(), before, strict=True))
            hits.append(cached / asked)
        self.log("shared_prefix", s=statistics.median(found), repeats=found, hit_rate=hits)

    def q(self) -> None:
        """The same for more rows than graphs are captured for."""
        self.p((832,))

    def p(self, batches: Sequence[int] = (1, 64, 256)) -> None:
        """Where the time of a decode step goes: kernels by share, by batch."""
        from torch.profiler import ProfilerActivity, profile

        for batch in batches:
            given = self.prompts(batch, 1000)
            self.driver.run(given, 1)
            with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
                s, _ = self.driver.run(given, 33)
            table = found.key_averages().table(
                sort_by="self_cuda_time_total", row_limit=13, max_name_column_width=60
            )
            lines = [_short(x) for x in table.splitlines() if "us" in x or "ms" in x]
            print(f"profile of batch {batch}, {s:.3f} s", *lines, sep="\n", flush=True)

    def a(self) -> None:
        work = mixed(self.driver.vocabulary)
        for temperature in (0.0, 0.6):
            self.driver.flush()
            s, written = self.driver.run([p for p, _ in work], [n for _, n in work], temperature)
            self.log("mixed", temperature=temperature, s=s, written=written, tokens_per_s=written / s)
            for share in self.driver.shares():
                self.log("mixed_share", temperature=temperature, **share)


def _short(line: str) -> str:
    """A line of a profile: kernel, time in all, time each, calls."""
    words = line.split()
    return " ".join((*words[:1], *words[-4:])) if len(words) > 6 else " ".join(words)


def main(
    model: Annotated[str, typer.Argument(help=f"{', '.join(SHAPES)}, or tiny.")],
    tests: Annotated[str, typer.Option(help="Which, in this order.")] = "b,c,d,a",
    out: Annotated[Path | None, typer.Option(help="Folder of the results.")] = None,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    options: Annotated[str, typer.Option(help="More engine options, as JSON.")] = "{}",
    tb_s: Annotated[float, typer.Option(help="Copy rate of the card, TB/s, for floors.")] = 4.26,
    tflops: Annotated[float, typer.Option(help="Its bf16 products, TFLOP/s.")] = 773.0,
    early_rows: Annotated[
        int | None, typer.Option(help="Most rows whose kernels start early, to compare.")
    ] = None,
) -> None:
    """Measure and print."""
    import torch

    common: dict[str, Any] = {"model": model, "torch": torch.__version__}
    if early_rows is not None:
        from runtime.kernels import tuning

        tuning.EARLY_ROWS = early_rows
        common["early_rows"] = early_rows
    if device == "cuda":
        common["card"] = torch.cuda.get_device_name()

    def log(test: str, **fields: Any) -> None:
        line = json.dumps({**common, "test": test, **fields})
        print(line, flush=True)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            with (out / f"{model}.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    chosen: dict[str, Any] = {"device": device}
    folder: str | None = None
    if model in SHAPES:
        folder = str(SHAPES[model].folder(Path(tempfile.mkdtemp()), model))
        chosen |= {
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "dtype": "bfloat16",
            "context_length": 10240,
        }
    imported = time.perf_counter()
    driver = Driver(folder, chosen | json.loads(options))
    built = time.perf_counter()
    bench = Bench(model, driver, log, tb_s, tflops)
    driver.run(bench.prompts(1, 16), 1)
    log(
        "startup",
        imports_s=imported - BEGAN,
        build_s=built - imported,
        first_token_s=time.perf_counter() - BEGAN,
    )
    driver.run(bench.prompts(64 if model in SHAPES else 4, 500 if model in SHAPES else 50), 16)
    for name in tests.split(","):
        try:
            getattr(bench, name)()
        except Exception as error:
            traceback.print_exc()
            log("failed", which=name, error=repr(error)[:300])


if __name__ == "__main__":
    typer.run(main)
