"""All layers of a decode step in one launch, beside a launch for each part: is it right, how long does a step take.

python -m benchmarks.gpu.whole_step --out FILE [--models 8b,0.5b] [--rows 1,8,32] [--context 1024]

Weights are random, of the real shapes. Steps are those of the engine (runtime/engine/graphs.py), captured. One launch must be as
near to float64 as many are, and give the same bits again and again, before it is timed.
"""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

os.environ["TQDM_DISABLE"] = "1"

import torch
import triton
import typer
from torch import Tensor

from runtime.attention.base import PagedInputs
from runtime.attention.triton import TritonAttention
from runtime.engine.graphs import DecodeGraphs
from runtime.kernels import whole_step as kernels
from runtime.kernels.whole_step import WholeStep, whole_step_reference
from runtime.kv.store import KVStore
from runtime.models.decoder import Decoder
from runtime.models.fused import FusedDecoder, whole_step
from runtime.models.spec import ArchSpec, AttnSpec, LayerSpec, MlpSpec, NormSpec, RopeSpec

PHASES = ("qkv", "attention", "out", "gate-up", "down")


def architecture(model: str, context: int) -> ArchSpec:
    if model == "8b":
        heads, kv_heads, dim, hidden, inner, vocabulary, layers = 32, 8, 128, 4096, 14336, 128256, 32
    elif model == "8b/2":  # a rank's half, without sums
        heads, kv_heads, dim, hidden, inner, vocabulary, layers = 16, 4, 128, 4096, 7168, 64128, 32
    else:
        heads, kv_heads, dim, hidden, inner, vocabulary, layers = 14, 2, 64, 896, 4864, 151936, 24
    rope = RopeSpec(dim, tuple(10000.0 ** (-2 * i / dim) for i in range(dim // 2)))
    attention = AttnSpec(heads, kv_heads, dim, dim**-0.5, rope, qkv_bias=model == "0.5b")
    layer = LayerSpec(attention, MlpSpec(inner), NormSpec(1e-6))
    return ArchSpec(
        model, vocabulary, hidden, context, (layer,) * layers, NormSpec(1e-6), tied=model == "0.5b"
    )


class Bench:
    """One model, its cache, and what its steps must give."""

    def __init__(self, model: str, context: int, most: int, page: int, scattered: bool = True) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.context = context
        self.spec = architecture(model, context + 128)
        torch.manual_seed(0)
        with torch.device(self.device):
            self.model = Decoder(self.spec, torch.bfloat16)
        for p in self.model.parameters():
            p.requires_grad_(False)
            if p.dim() > 1:
                p.normal_(std=p.shape[-1] ** -0.5)
            else:
                p.uniform_(0.5, 1.5)
        width = -(-(context + 128) // page)
        pages = width * most + 8
        self.page = page
        self.store = KVStore(self.spec, pages, page, torch.bfloat16, str(self.device))
        self.store.k.normal_()
        self.store.v.normal_()
        order = (
            torch.randperm(pages, device=self.device)
            if scattered
            else torch.arange(pages, device=self.device)
        )
        order = order[: width * most].int().view(most, width)
        self.table = torch.cat([order, order[:1]])
        self.newest = torch.zeros(most + 1, dtype=torch.int64, device=self.device)

    def x(self, rows: int) -> Tensor:
        torch.manual_seed(rows)
        return torch.randn(rows, self.spec.hidden, device=self.device).bfloat16() * 2

    def inputs(self, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Table, seats, lengths and slots; lengths differ."""
        lengths = torch.tensor(
            [self.context - 37 * i % self.context for i in range(rows)], device=self.device
        )
        seats = torch.arange(rows, device=self.device)
        pages = self.table[seats, (lengths - 1) // self.page].long()
        return self.table, seats.int(), lengths.int(), pages * self.page + (lengths - 1) % self.page

    def reference(self, step: WholeStep, rows: int) -> Tensor:
        layers = [replace(x, pool_k=x.pool_k.clone(), pool_v=x.pool_v.clone()) for x in step.layers]
        return whole_step_reference(self.x(rows), layers, step.last_norm, step.spec, *self.inputs(rows))

    def launches(self, rows: int) -> Tensor:
        """The hidden states that a launch for each part gives, of the same input."""
        table, seats, lengths, slots = self.inputs(rows)
        attention = TritonAttention(self.store)
        starts = torch.arange(rows + 1, dtype=torch.int32, device=self.device)
        attention.plan(PagedInputs(table, seats, lengths, starts, slots, 1, self.context, rows))
        fused = FusedDecoder(self.model, self.store, None)
        fused.model = _Embedded(self.x(rows))  # type: ignore[assignment]
        ids = torch.zeros(rows, dtype=torch.long, device=self.device)
        return fused(ids, (lengths - 1).long(), attention)

    def step_ms(self, step: WholeStep | None, rows: int, attention: TritonAttention | None = None) -> float:
        """Milliseconds of a step of the engine: embedding, layers, head, the likeliest token."""
        fused = FusedDecoder(self.model, self.store, step)
        attention = attention or TritonAttention(self.store, [x.attention for x in self.spec.layers])
        graphs = DecodeGraphs(fused, attention, self.table, self.newest, self.page, (rows,))
        graphs.capture(len(self.table) - 1)
        graph = graphs.graph(rows)
        control = torch.zeros_like(graph.control)  # rows share nothing
        control[0] = torch.arange(rows)
        control[1], control[2], control[3] = self.context - 20, 1 << 20, -1
        graph.start(control.view(-1))
        for _ in range(5):
            graph.replay()
        spans = []
        for _ in range(5):
            graph.start(control.view(-1))
            begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            begun.record()
            for _ in range(40):
                graph.replay()
            ended.record()
            ended.synchronize()
            spans.append(begun.elapsed_time(ended) / 40)
        return statistics.median(spans)


class _Embedded:
    """Stands for a model whose embedding gives `x`."""

    group = None

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def embedding(self, ids: Tensor) -> Tensor:
        return self.x


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


def check(b: Bench, step: WholeStep, rows: int) -> dict[str, Any]:
    """Its error against float64 beside that of many launches, and whether launches give the same bits."""
    wanted = b.reference(step, rows)
    usual = error(b.launches(rows), wanted)
    out = step(b.x(rows), *b.inputs(rows))
    same = all(torch.equal(out, step(b.x(rows), *b.inputs(rows))) for _ in range(30))
    found = error(out, wanted)
    return {"error": found, "usual": usual, "same": same, "ok": same and found < 1.3 * usual + 1e-3}


def phases_us(b: Bench, step: WholeStep, rows: int) -> tuple[dict[str, float], dict[str, float]]:
    """Microseconds from the last program's end of a phase to that of the next, and when programs met and were done within
    it; and how far programs that attend came in attention."""
    stamps = torch.zeros(len(step.layers), kernels.MARKS, step.programs, dtype=torch.int64, device=b.device)
    for _ in range(3):
        step(b.x(rows), *b.inputs(rows), stamps=stamps)
    at = stamps.cpu()
    at = torch.where(at > 0, at - at[at > 0].min(), -1).double() / 1e3
    last = at[:, :5].amax(-1).flatten()
    begun = torch.cat((torch.zeros(1).double(), last[:-1])).view(-1, 5)
    found = {}
    for i, name in enumerate(PHASES):
        found[name] = float((last.view(-1, 5) - begun)[1:, i].median())
        done = at[1:, i].median(-1).values
        found[f"{name} done"] = float((done - begun[1:, i]).median())
        if name != "attention":
            met = at[1:, 5 + (i if i == 0 else i - 1)].median(-1).values
            found[f"{name} met"] = float((met - begun[1:, i]).median())
    within = {}
    for k, name in zip(range(9, kernels.MARKS), ("turned", "read", "added", "told", "joined"), strict=True):
        marks = at[1:, k]
        came = torch.where(marks > 0, marks, float("nan"))
        since = came - begun[1:, 1:2]
        since = torch.where(since > 0, since, float("nan"))
        within[name] = float(since.nanmedian())
        within[f"{name} last"] = float(since.nan_to_num(-1).amax(-1).median())
    return found, within


def shown(row: dict[str, Any]) -> str:
    line = f"{row['model']:5} {row['rows']:3} rows, context {row['context']}, pace {row['pace']}: {row['step_ms']:7.3f} ms"
    line += f" ({row['launches_ms']:.3f} by launches)  {'ok' if row['ok'] else 'WRONG'}"
    line += (
        f" {row['error']:.1e} ({row['usual']:.1e}){'' if row['same'] else ' CHANGES FROM LAUNCH TO LAUNCH'}  "
    )
    line += "\n    " + " ".join(f"{name} {us:.2f}" for name, us in row["phases_us"].items())
    return line + "\n    " + " ".join(f"{name} {us:.2f}" for name, us in row["attention_us"].items())


def main(
    out: Annotated[Path | None, typer.Option(help="File of results, a line of JSON each.")] = None,
    models: Annotated[str, typer.Option(help="Which, in this order.")] = "8b,0.5b",
    rows: Annotated[str, typer.Option(help="Rows of a step.")] = "1,8,16,32",
    context: Annotated[int, typer.Option(help="Tokens before the step.")] = 1024,
    page: Annotated[int, typer.Option(help="Places of a page.")] = 1,
    pace: Annotated[str, typer.Option(help="Stages on their way at a time, to compare.")] = "",
    scattered: Annotated[bool, typer.Option(help="Pages of a context lie anywhere, not in a row.")] = True,
    timed: Annotated[bool, typer.Option(help="Time it, not only check it.")] = True,
) -> None:
    """Measure and print; exits 1 if a step is wrong."""
    wrong = False
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}")
    wanted = [int(n) for n in rows.split(",")]
    for model in models.split(","):
        b = Bench(model, context, max(wanted), page, scattered)
        usual = {count: b.step_ms(None, count) if timed else 0.0 for count in wanted}
        paces = [int(n) for n in pace.split(",") if n] or [kernels.PACE]
        for stages in paces:
            kernels.PACE = stages
            step = whole_step(b.model, b.store, max(wanted))
            for count in wanted:
                row = {"model": model, "rows": count, "context": context, "page": page, "pace": stages}
                row |= check(b, step, count)
                wrong = wrong or not row["ok"]
                row["phases_us"], row["attention_us"] = phases_us(b, step, count)
                row["step_ms"] = b.step_ms(step, count) if timed else 0.0
                row["launches_ms"] = usual[count]
                print(shown(row), flush=True)
                if out is not None:
                    with out.open("a") as log:
                        log.write(json.dumps(row) + "\n")
        del b, step
        torch.cuda.empty_cache()
    raise typer.Exit(int(wrong))


if __name__ == "__main__":
    typer.run(main)
