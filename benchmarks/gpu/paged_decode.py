"""Attention of single tokens by the kernel in CUDA C++ beside Triton's: is it right, how long does a layer and a step take.

python -m benchmarks.gpu.paged_decode --out FILE [--models 8b,0.5b] [--rows 1,32,64] [--context 1024]

A layer is what lies between its packed projection and its attention's output. Times are of replayed graphs over the pools of so
many layers that they exceed the cache. Steps are those of the engine, by a launch for each part.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.gpu.kernels import replayed_us
from benchmarks.gpu.whole_step import Bench, error
from runtime.attention import triton as attention_paths
from runtime.attention.triton import TritonAttention
from runtime.kernels.decode import decode_attention, decode_reference, packed_decode_attention
from runtime.kernels.merge import split_scratch
from runtime.kernels.paged_decode import DecodeShape, PagedDecode
from runtime.kernels.rope_store import Turning, rope_store
from runtime.kernels.tuning import decode_tiles


def layer(b: Bench, rows: int) -> dict[str, Any]:
    """Microseconds of a layer's attention, and errors against float64."""
    spec = b.spec.layers[0].attention
    table, seats, lengths, slots = b.inputs(rows)
    heads, kv_heads, dim = spec.heads, spec.kv_heads, spec.head_dim
    rope: Any = b.model.layers[0].attention.rope  # type: ignore[union-attr]
    turning = Turning(rope.cos, rope.sin)
    qkv = torch.randn(rows, (heads + 2 * kv_heads) * dim, device=b.device).bfloat16()
    q, k, v = qkv.unflatten(1, (-1, dim)).split((heads, kv_heads, kv_heads), 1)
    positions = (lengths - 1).long()
    at = (table, seats, lengths)
    tiles = decode_tiles(b.device, rows, kv_heads, dim, torch.bfloat16)
    scratch = split_scratch(rows, kv_heads, tiles.splits, heads // kv_heads, dim, b.device)
    how: dict[str, Any] = {
        "page_size": b.page,
        "scale": spec.scale,
        "tiles": tiles,
        "scratch": scratch if tiles.splits > 1 else None,
    }
    paged = PagedDecode(DecodeShape(heads, kv_heads, dim, b.page, turning.width(dim)), b.device)
    paged.cut(lengths)
    out = torch.empty(rows, heads, dim, dtype=torch.bfloat16, device=b.device)
    turned = torch.empty_like(out)

    def turn(i: int) -> Tensor:
        return rope_store(
            q, k, v, rope.cos, rope.sin, positions, slots, b.store.k[i], b.store.v[i], out=turned
        )

    def triton(i: int) -> None:
        decode_attention(turn(i), b.store.k[i], b.store.v[i], *at, out=out, **how)

    def triton_packed(i: int) -> None:
        packed_decode_attention(qkv, heads, turning, slots, b.store.k[i], b.store.v[i], *at, **how)

    def cuda(i: int, early: bool = True) -> Tensor:
        return paged(qkv, turning, slots, b.store.k[i], b.store.v[i], *at, scale=spec.scale, early=early)

    layers = range(len(b.spec.layers))
    found: dict[str, Any] = {}
    wanted = decode_reference(turn(0), b.store.k[0], b.store.v[0], *at, page_size=b.page, scale=spec.scale)
    kept = b.store.k[0].clone(), b.store.v[0].clone()
    for name, call in {"triton": triton, "cuda": lambda i: out.copy_(cuda(i))}.items():
        out.fill_(float("nan"))
        b.store.k[0][slots] = float("nan")
        call(0)
        found[f"{name} error"] = error(out, wanted)
        first = out.clone()
        same = True
        for _ in range(30):
            call(0)
            same = same and torch.equal(out, first)
        found[f"{name} same"] = same and all(
            error(a[slots], c[slots]) < 1e-2 and torch.equal(a, a.where(a == a, c))
            for a, c in zip((b.store.k[0], b.store.v[0]), kept, strict=True)
        )
    found["ok"] = found["cuda error"] < 1.3 * found["triton error"] + 1e-3 and found["cuda same"]
    for name, calls in {
        "triton": [lambda i=i: triton(i) for i in layers],
        "triton packed": [lambda i=i: triton_packed(i) for i in layers],
        "cuda": [lambda i=i: cuda(i) for i in layers],
        "cuda, late": [lambda i=i: cuda(i, False) for i in layers],
    }.items():
        found[f"{name} us"] = replayed_us(calls, 7)
    found["floor us"] = int(lengths.sum()) * kv_heads * dim * 4 / 4.26e6
    return found


def main(
    out: Annotated[Path | None, typer.Option(help="File of results, a line of JSON each.")] = None,
    models: Annotated[str, typer.Option(help="Which, in this order.")] = "8b,0.5b",
    rows: Annotated[str, typer.Option(help="Rows of a step.")] = "1,8,17,32,64,128,256",
    context: Annotated[int, typer.Option(help="Tokens before the step.")] = 1024,
    page: Annotated[int, typer.Option(help="Places of a page.")] = 1,
    steps: Annotated[bool, typer.Option(help="Time whole steps, too.")] = True,
    scattered: Annotated[bool, typer.Option(help="Pages of a context lie anywhere, not in a row.")] = True,
    packed_rows: Annotated[
        int | None,
        typer.Option(help="Steps of up to so many rows take the kernel, whatever a position's bytes."),
    ] = None,
) -> None:
    """Measure and print; exits 1 if something is wrong."""
    wrong = False
    if packed_rows is not None:
        attention_paths.packed_rows = lambda _: (range(1, packed_rows + 1),)
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    wanted = [int(n) for n in rows.split(",")]
    for model in models.split(","):
        b = Bench(model, context, max(wanted), page, scattered)
        attention = [x.attention for x in b.spec.layers]
        for count in wanted:
            row: dict[str, Any] = {"model": model, "rows": count, "context": context, "page": page}
            row |= layer(b, count)
            if steps:
                row["triton ms"] = b.step_ms(None, count, TritonAttention(b.store))
                row["ms"] = b.step_ms(None, count, TritonAttention(b.store, attention))
            wrong = wrong or not row["ok"]
            told = " ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
            print(told, flush=True)
            if out is not None:
                with out.open("a") as log:
                    log.write(json.dumps(row) + "\n")
        del b
        torch.cuda.empty_cache()
    raise typer.Exit(int(wrong))


if __name__ == "__main__":
    typer.run(main)
