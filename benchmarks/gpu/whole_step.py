"""All layers of a decode step in one launch, beside a launch for each part: is it right, how long does a step take.

python benchmarks/gpu/whole_step.py --out FILE [--models 8b,0.5b] [--context 1024]

Weights are random, of the real shapes; one row. Steps are those of the engine (runtime/engine/graphs.py), captured. Every
variant must be as near to float64 as the launches are, and give the same bits a hundred times, before it is timed.
`--smoke` runs the same code on a CPU with few elements.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

if "--smoke" in sys.argv:
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ["TQDM_DISABLE"] = "1"

import torch
import triton
import typer
from torch import Tensor

from runtime.attention.base import PagedInputs
from runtime.attention.triton import TritonAttention
from runtime.engine.graphs import DecodeGraphs
from runtime.kernels.tuning import StepTiles
from runtime.kernels.whole_step import WholeStep, whole_step_reference
from runtime.kv.store import KVStore
from runtime.models.decoder import Decoder
from runtime.models.fused import FusedDecoder
from runtime.models.spec import ArchSpec, AttnSpec, LayerSpec, MlpSpec, NormSpec, RopeSpec

PHASES = ("qkv", "attention", "out", "gate-up", "down")
BEST = {  # of the variants on an H200, contexts of 1,024 and 8,192
    "8b": StepTiles(warps=8, block=32768, splits=16, lines=0),
    "0.5b": StepTiles(warps=16, block=16384, splits=8, lines=0),
}


def variants(model: str) -> dict[str, StepTiles | None]:
    best = BEST[model]
    return {
        "launches": None,
        "best": best,
        "512 lines ahead": replace(best, lines=512),
        "other warps": replace(best, warps=24 - best.warps),
        "half a block": replace(best, block=best.block // 2),
        "half the splits": replace(best, splits=best.splits // 2),
    }


def architecture(model: str, context: int, smoke: bool) -> ArchSpec:
    if model == "8b":
        heads, kv_heads, dim, hidden, inner, vocabulary, layers = 32, 8, 128, 4096, 14336, 128256, 32
    else:
        heads, kv_heads, dim, hidden, inner, vocabulary, layers = 14, 2, 64, 896, 4864, 151936, 24
    if smoke:
        heads, kv_heads, dim, hidden, inner, vocabulary, layers = 4, 2, 16, 64, 96, 97, 2
    rope = RopeSpec(dim, tuple(10000.0 ** (-2 * i / dim) for i in range(dim // 2)))
    attention = AttnSpec(heads, kv_heads, dim, dim**-0.5, rope, qkv_bias=model == "0.5b")
    layer = LayerSpec(attention, MlpSpec(inner), NormSpec(1e-6))
    return ArchSpec(
        model, vocabulary, hidden, context, (layer,) * layers, NormSpec(1e-6), tied=model == "0.5b"
    )


class Bench:
    """One model, its cache, and what its steps must give."""

    def __init__(self, model: str, context: int, smoke: bool) -> None:
        self.smoke = smoke
        self.device = torch.device("cpu" if smoke else "cuda")
        self.dtype = torch.float16 if smoke else torch.bfloat16
        self.context = 40 if smoke else context
        self.spec = architecture(model, self.context + 128, smoke)
        torch.manual_seed(0)
        with torch.device(self.device):
            self.model = Decoder(self.spec, self.dtype)
        for p in self.model.parameters():
            p.requires_grad_(False)
            if p.dim() > 1:
                p.normal_(std=p.shape[-1] ** -0.5)
            else:
                p.uniform_(0.5, 1.5)
        width = self.context + 128
        self.store = KVStore(self.spec, width + 8, 1, self.dtype, str(self.device))
        self.store.k.normal_()
        self.store.v.normal_()
        self._before = self.store.k.clone(), self.store.v.clone()
        self.table = torch.randperm(width + 8, device=self.device)[:width].int()[None].repeat(2, 1)
        self.newest = torch.zeros(2, dtype=torch.int64, device=self.device)
        self.x = [
            torch.randn(1, self.spec.hidden, device=self.device).to(self.dtype) * (seed + 1)
            for seed in range(3)
        ]

    def inputs(self, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Table, seat, length and slot of one row."""
        length = self.context - 7 * seed
        at = [0], [length]
        seats, lengths = (torch.tensor(v, dtype=torch.int32, device=self.device) for v in at)
        return self.table, seats, lengths, self.table[0, length - 1].long()[None]

    def restore(self) -> None:
        """The cache as it was before any step stored its token."""
        self.store.k.copy_(self._before[0])
        self.store.v.copy_(self._before[1])

    def decoder(self, tiles: StepTiles | None) -> FusedDecoder:
        return FusedDecoder(self.model, self.store, tiles)

    def references(self, step: WholeStep) -> list[Tensor]:
        found = []
        for seed, x in enumerate(self.x):
            layers = [
                replace(layer, pool_k=layer.pool_k.clone(), pool_v=layer.pool_v.clone())
                for layer in step.layers
            ]
            found.append(whole_step_reference(x, layers, step.last_norm, step.spec, *self.inputs(seed)))
        return found

    def launches(self, seed: int) -> Tensor:
        """The hidden state that a launch for each part gives, of the same input."""
        self.restore()
        table, seats, lengths, slots = self.inputs(seed)
        attention = TritonAttention(self.store)
        starts = torch.arange(2, dtype=torch.int32, device=self.device)
        attention.plan(PagedInputs(table, seats, lengths, starts, slots, 1, self.context, 1))
        fused = self.decoder(None)
        fused.model = _Embedded(self.x[seed].clone())  # type: ignore[assignment]
        return fused(torch.zeros(1, dtype=torch.long, device=self.device), (lengths - 1).long(), attention)

    def step_ms(self, fused: FusedDecoder) -> float:
        """Milliseconds of a step of the engine: embedding, layers, head, the likeliest token."""
        attention = TritonAttention(self.store)
        graphs = DecodeGraphs(fused, attention, self.table, self.newest, 1, (1,))
        graphs.capture(1)
        graph = graphs.graph(1)
        start = torch.tensor([0, self.context - 20, 1 << 20, -1], dtype=torch.int64, device=self.device)
        graph.start(start)
        for _ in range(1 if self.smoke else 5):
            graph.replay()
        if self.smoke:
            return 0.0
        spans = []
        for _ in range(5):
            graph.start(start)
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


def check(b: Bench, step: WholeStep, wanted: list[Tensor], usual: list[float]) -> dict[str, Any]:
    """Errors against float64 beside those of the usual path, and whether a hundred launches give the same bits."""
    errors, same = [], True
    for seed, x in enumerate(b.x):
        b.restore()
        poison = torch.full_like(x, float("nan"))
        del poison  # so that what is not written is not a number
        out = step(x.clone(), *b.inputs(seed))
        errors.append(error(out, wanted[seed]))
        for _ in range(1 if b.smoke else 33):
            same = same and torch.equal(out, step(x.clone(), *b.inputs(seed)))
    good = same and all(e < 1.3 * u + 1e-3 for e, u in zip(errors, usual, strict=True))
    return {"errors": errors, "usual": usual, "same": same, "ok": good}


def phases_us(b: Bench, step: WholeStep) -> dict[str, float]:
    """Microseconds from the last program's end of a phase to that of the next, and the spread of programs within."""
    stamps = torch.zeros(len(step.layers), 5, step.programs, dtype=torch.int64, device=b.device)
    for _ in range(3):
        step(b.x[0].clone(), *b.inputs(0), stamps=stamps)
    ends = stamps.cpu().double() / 1e3
    last = ends.amax(-1).flatten()
    spans = torch.cat((torch.zeros(1).double(), last.diff())).view(-1, 5)[1:].median(0).values
    early = (ends.amax(-1, keepdim=True) - ends).median(-1).values.median(0).values
    found = dict(zip(PHASES, spans.tolist(), strict=True))
    return found | {f"{name} spread": v for name, v in zip(PHASES, early.tolist(), strict=True)}


def measured(b: Bench, tiles: StepTiles | None, wanted: list[Tensor], usual: list[float]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    fused = b.decoder(tiles)
    if fused._step is not None:
        row = check(b, fused._step, wanted, usual)
    b.restore()
    row["step_ms"] = b.step_ms(fused)
    if fused._step is not None and not b.smoke:
        row["phases_us"] = phases_us(b, fused._step)
    return row


def shown(row: dict[str, Any]) -> str:
    line = f"{row['model']:5} {row['variant']:16} {row['step_ms']:7.3f} ms"
    if "errors" in row:
        errors = " ".join(f"{e:.1e}" for e in row["errors"])
        line += f"  {'ok' if row['ok'] else 'WRONG'} {errors}{'' if row['same'] else ' CHANGES FROM LAUNCH TO LAUNCH'}"
    if "phases_us" in row:
        p = row["phases_us"]
        line += "  " + " ".join(f"{name} {p[name]:.1f}(-{p[name + ' spread']:.1f})" for name in PHASES)
    return line


def main(
    out: Annotated[Path | None, typer.Option(help="File of results, a line of JSON each.")] = None,
    models: Annotated[str, typer.Option(help="Which, in this order.")] = "8b,0.5b",
    context: Annotated[int, typer.Option(help="Tokens before the step.")] = 1024,
    smoke: Annotated[bool, typer.Option(help="Few elements on a CPU.")] = False,
) -> None:
    """Measure and print; exits 1 if a variant is wrong."""
    wrong = False
    if not smoke:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}")
    for model in models.split(","):
        b = Bench(model, context, smoke)
        tried = variants(model)
        if smoke:  # of so few elements they are all alike
            tried = dict(list(tried.items())[:2])
            tried = {n: t and replace(t, warps=4, block=4096, block_n=16) for n, t in tried.items()}
        step = b.decoder(tried["best"])._step
        assert step is not None
        wanted = b.references(step)
        usual = [error(b.launches(seed), wanted[seed]) for seed in range(3)]
        for name, tiles in tried.items():
            row = {"model": model, "context": b.context, "variant": name, "tiles": tiles and asdict(tiles)}
            row |= measured(b, tiles, wanted, usual)
            wrong = wrong or not row.get("ok", True)
            print(shown(row), flush=True)
            if out is not None:
                with out.open("a") as log:
                    log.write(json.dumps(row) + "\n")
    raise typer.Exit(int(wrong))


if __name__ == "__main__":
    typer.run(main)
