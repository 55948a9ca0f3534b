"""The engine on the serving workloads, one JSON line per result.

python -m benchmarks.gpu.run llama8b --tests b,c,d,a --out FOLDER     (random weights of the real shape)
python -m benchmarks.gpu.run tiny --tests b --device cpu              (a smoke test on the embedded model)

a  1,000 requests of mixed lengths          b  decode at context 1,024, by batch
c  16 prompts of 8,192 tokens               d  256 requests on 16 shared prefixes
f  decode of a small model, by batch        p  kernels of a decode step by share
g  decode by batch and context (benchmarks/gpu/growth.py draws it)
h  decode of branches of one prompt, by batch and length: what they share is read once, or for each

The engine's loop is driven in this process, with token ids in and out: no text, no HTTP. Times of b and f are of 128 (256)
steps: a run with that many new tokens less a run with one.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.gpu.workload import SHAPES, Shape, mixed, prompt, shared_prefixes

if TYPE_CHECKING:
    from runtime.bench.driver import Driver

BEGAN = time.perf_counter()


class Bench:
    def __init__(
        self, name: str, driver: Driver, log: Callable[..., None], tb_s: float, tflops: float
    ) -> None:
        self.shape: Shape | None = SHAPES.get(name)
        self.driver, self.log = driver, log
        self.tb_s, self.tflops = tb_s, tflops
        self.rng = random.Random(1)
        self.batches: list[int] | None = None
        self.temperatures = [0.0, 0.6]

    def run(
        self, prompts: Sequence[list[int]], new: int | Sequence[int], temperature: float = 0.0
    ) -> tuple[float, int]:
        """Seconds, and tokens that were written."""
        from runtime.bench.workload import Asked

        counts = [new] * len(prompts) if isinstance(new, int) else new
        asked = [Asked(p, n) for p, n in zip(prompts, counts, strict=True)]
        outcome = self.driver.run(asked, temperature)
        return outcome.seconds, outcome.written

    def prompts(self, count: int, length: int) -> list[list[int]]:
        return [prompt(self.rng, length, self.driver.vocabulary) for _ in range(count)]

    def decode(self, batches: Sequence[int], steps: int, context: int = 1024) -> None:
        for batch in batches:
            given = self.prompts(batch, context - steps // 2)
            self.run(given, 1)
            found = []
            for _ in range(3):
                one = self.run(given, 1)[0]
                many = self.run(given, 1 + steps)[0]
                found.append((many - one) / steps * 1e3)
            ms = statistics.median(found)
            floor = self.shape.decode_floor_ms(batch, context, self.tb_s) if self.shape else 0.0
            self.log(
                "decode",
                batch=batch,
                context=context,
                ms=ms,
                repeats=found,
                floor_ms=floor,
                of_floor=floor / ms,
                **self.watched(given, steps),
            )

    def watched(self, given: list[list[int]], steps: int) -> dict[str, Any]:
        """Of one more run: steps of a turn, the device's time for a step, and how often queueing waited for it."""
        from runtime.bench.steps import StepTrace

        with StepTrace(self.driver.loop) as trace:
            self.run(given, 1 + steps)
        turns = [t for t in trace.turns if not t.prompts]
        ms = [(t.ended - t.began) / t.steps * 1e3 for t in turns]
        return {
            "turn": statistics.mean(t.steps for t in turns),
            "device_ms": statistics.median(ms),
            "host_waits": trace.waits,
        }

    def b(self) -> None:
        batches = self.batches or ((1, 8, 32, 64, 128, 256) if self.shape else (1, 8))
        self.decode(batches, 128 if self.shape else 16)

    def f(self) -> None:
        self.decode(self.batches or (1, 64, 256), 256)

    def g(self) -> None:
        """As many requests as the KV memory holds at each context."""
        from runtime.errors import InvalidRequest

        batches = (1, 4, 16, 64, 256) if self.shape else (1, 4)
        steps = 32 if self.shape else 8
        for context in (256, 1024, 2048, 4096, 8192) if self.shape else (64, 256):
            for batch in batches:
                try:
                    self.driver.check(batch, context + steps)
                except InvalidRequest as reason:
                    self.log("skipped", batch=batch, context=context, reason=str(reason))
                else:
                    self.decode((batch,), steps, context)

    def h(self) -> None:
        from runtime.engine import bundles

        worth, steps = bundles.WORTH, 64
        for batch in self.batches or (2, 8, 16, 32, 64, 256, 512):
            for length in (1024, 4096, 8192) if self.shape else (300,):
                head = self.prompts(1, length)[0]
                given = [head + tail for tail in self.prompts(batch, 16)]
                self.run(given, 1)
                ms: dict[str, float] = {}
                for name, least in (("by choice", worth), ("once", -(1 << 60)), ("for each", 1 << 60)):
                    bundles.WORTH = least
                    one, many = (min(self.run(given, n)[0] for _ in range(2)) for n in (1, 1 + steps))
                    ms[name] = (many - one) / steps * 1e3
                self.log(
                    "branches", batch=batch, shared=length, ms=ms, once_of_each=ms["once"] / ms["for each"]
                )
        bundles.WORTH = worth

    def c(self) -> None:
        found = [self.run(self.prompts(16, 8192), 1)[0] for _ in range(3)]
        s = statistics.median(found)
        floor = self.shape.prefill_floor_s(16, 8192, self.tflops) if self.shape else 0.0
        self.log("prefill", s=s, repeats=found, floor_s=floor, of_floor=floor / s)

    def d(self) -> None:
        found, hits = [], []
        for seed in range(3):
            self.driver.flush()
            before = self.driver.reused()
            found.append(self.run(shared_prefixes(self.driver.vocabulary, seed), 128)[0])
            cached, asked = (a - b for a, b in zip(self.driver.reused(), before, strict=True))
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
            self.run(given, 1)
            with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
                s, _ = self.run(given, 33)
            table = found.key_averages().table(
                sort_by="self_cuda_time_total", row_limit=13, max_name_column_width=60
            )
            lines = [_short(x) for x in table.splitlines() if "us" in x or "ms" in x]
            print(f"profile of batch {batch}, {s:.3f} s", *lines, sep="\n", flush=True)

    def a(self) -> None:
        from runtime.bench.compiled import Compiled
        from runtime.bench.steps import StepTrace

        work = mixed(self.driver.vocabulary)
        for temperature in self.temperatures:
            self.driver.flush()
            with StepTrace(self.driver.loop) as trace, Compiled() as made:
                s, written = self.run([p for p, _ in work], [n for _, n in work], temperature)
            self.log("mixed", temperature=temperature, s=s, written=written, tokens_per_s=written / s)
            self.log("compiled", temperature=temperature, **made.summary())
            for share in trace.shares():
                self.log("mixed_share", temperature=temperature, **share)
            for gap in trace.gaps():
                self.log("mixed_gap", temperature=temperature, **gap)


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
    wgmma_rows: Annotated[
        int | None, typer.Option(help="Fewest rows whose gate and up go to the own kernel, to compare.")
    ] = None,
    packed_rows: Annotated[
        int | None, typer.Option(help="Most rows that attend by the kernel in CUDA C++, to compare.")
    ] = None,
    least_shared: Annotated[
        int | None, typer.Option(help="Fewest positions that rows read together, to compare.")
    ] = None,
    ahead: Annotated[
        bool, typer.Option(help="Files of the start are read, and compiled, before they are needed.")
    ] = True,
    batches: Annotated[str | None, typer.Option(help="Batches of b and f.")] = None,
    temperatures: Annotated[str, typer.Option(help="Temperatures of a.")] = "0,0.6",
) -> None:
    """Measure and print."""
    from runtime.engine.bytecode import kept_bytecode
    from runtime.engine.read_ahead import bytecode_folder, read_ahead

    starting = ExitStack()
    if ahead:
        read_ahead(device)
        starting.enter_context(kept_bytecode(bytecode_folder(device)))
    import torch

    from runtime.bench.compiled import Compiled
    from runtime.bench.driver import Driver
    from runtime.config import EngineConfig

    common: dict[str, Any] = {"model": model, "torch": torch.__version__}
    from runtime.attention import triton as attention_paths
    from runtime.engine import bundles
    from runtime.kernels import tuning

    compared = {"early_rows": early_rows, "wgmma_rows": wgmma_rows}
    for name, value in compared.items():
        if value is not None:
            setattr(tuning, name.upper(), value)
            common[name] = value
    if packed_rows is not None:
        attention_paths.packed_rows = lambda _: (range(1, packed_rows + 1),)
        common["packed_rows"] = packed_rows
    if least_shared is not None:
        bundles.LEAST = least_shared
        common["least_shared"] = least_shared
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
    with starting, Compiled() as made:
        driver = Driver(EngineConfig.of({"model_path": folder, **chosen, **json.loads(options)}))
        built = time.perf_counter()
        bench = Bench(model, driver, log, tb_s, tflops)
        bench.batches = None if batches is None else [int(x) for x in batches.split(",")]
        bench.temperatures = [float(x) for x in temperatures.split(",")]
        bench.run(bench.prompts(1, 16), 1)
    log(
        "startup",
        imports_s=imported - BEGAN,
        build_s=built - imported,
        first_token_s=time.perf_counter() - BEGAN,
        kv_pages=driver.loop.scheduler.cache.pool.total,
        compiled=made.summary(),
    )
    bench.run(bench.prompts(64 if model in SHAPES else 4, 500 if model in SHAPES else 50), 16)
    for name in tests.split(","):
        try:
            getattr(bench, name)()
        except Exception as error:
            traceback.print_exc()
            log("failed", which=name, error=repr(error)[:300])
    driver.loop.close()  # other ranks would keep this process


if __name__ == "__main__":
    typer.run(main)
