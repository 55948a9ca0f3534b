"""Decode steps of many rows: could the attention of one half of the batch run beside the products of the other?

python -m benchmarks.gpu.overlap --out FILE [--rows 832] [--context 850]

Shapes of Llama-3.1-8B. One chain takes all rows, attention then products, layer after layer. The other takes two halves, attention on
one stream and products on another, so that each half waits for itself only; variants differ in which stream goes first and
in how many multiprocessors the library's products leave alone. Milliseconds of a layer, all captured; no norms or rotations.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from triton.testing import do_bench

from runtime.kernels.decode import decode_attention

HEADS, KV_HEADS, DIM, HIDDEN, INNER, LAYERS = 32, 8, 128, 4096, 14336, 8
BF16 = torch.bfloat16


class Half:
    """Rows with their keys and values in two layers' pools, so that no pool is in the cache when it is read again."""

    def __init__(self, rows: int, context: int, device: torch.device) -> None:
        self.table = torch.randperm(rows * context, device=device).int().view(rows, context)
        self.seats = torch.arange(rows, dtype=torch.int32, device=device)
        self.lengths = torch.full((rows,), context, dtype=torch.int32, device=device)
        shape = (rows * context, KV_HEADS, DIM)
        self.pools = [
            tuple(torch.randn(shape, device=device, dtype=BF16) for _ in range(2)) for _ in range(2)
        ]
        self.q = torch.randn(rows, HEADS, DIM, device=device, dtype=BF16)
        self.x = torch.randn(rows, HIDDEN, device=device, dtype=BF16)
        self.wide = torch.randn(rows, INNER, device=device, dtype=BF16)

    def attend(self, layer: int) -> None:
        k, v = self.pools[layer % 2]
        decode_attention(
            self.q, k, v, self.table, self.seats, self.lengths, page_size=1, scale=DIM**-0.5, splits=1
        )

    def multiply(self, weights: list[Tensor]) -> None:
        for w in weights:
            torch.mm(self.wide if w.shape[0] == INNER else self.x, w)


def captured(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    for _ in range(2):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def milliseconds(graph: torch.cuda.CUDAGraph) -> float:
    """Of one layer, the median."""
    found: float = do_bench(graph.replay, warmup=50, rep=250, return_mode="median")
    return found / LAYERS


def in_turn(halves: list[Half], weights: list[Tensor], attends: bool = True, multiplies: bool = True) -> None:
    for layer in range(LAYERS):
        for half in halves:
            if attends:
                half.attend(layer)
            if multiplies:
                half.multiply(weights)


def beside(halves: list[Half], weights: list[Tensor], priorities: tuple[int, int]) -> None:
    main = torch.cuda.current_stream()
    attention, products = (torch.cuda.Stream(priority=p) for p in priorities)
    attention.wait_stream(main)
    products.wait_stream(main)
    multiplied: list[torch.cuda.Event | None] = [None] * len(halves)
    for layer in range(LAYERS):
        for i, half in enumerate(halves):
            with torch.cuda.stream(attention):
                if (before := multiplied[i]) is not None:
                    attention.wait_event(before)
                half.attend(layer)
                attended = torch.cuda.Event()
                attended.record(attention)
            with torch.cuda.stream(products):
                products.wait_event(attended)
                half.multiply(weights)
                event = multiplied[i] = torch.cuda.Event()
                event.record(products)
    main.wait_stream(attention)
    main.wait_stream(products)


def main(
    out: Annotated[Path, typer.Option(help="JSON lines go there.")],
    rows: Annotated[int, typer.Option(help="Of the whole batch.")] = 832,
    context: Annotated[int, typer.Option(help="Keys of each row.")] = 850,
) -> None:
    """Measure and print."""
    device = torch.device("cuda")
    torch.manual_seed(0)
    shapes = ((HIDDEN, (HEADS + 2 * KV_HEADS) * DIM), (HIDDEN, HIDDEN), (HIDDEN, 2 * INNER), (INNER, HIDDEN))
    weights = [torch.randn(k, n, device=device, dtype=BF16) * k**-0.5 for k, n in shapes]
    whole = Half(rows, context, device)
    carve: Any = getattr(torch._C, "_set_sm_carveout_experimental", lambda count: None)

    def log(what: str, work: Callable[[], None]) -> None:
        ms = milliseconds(captured(work))
        line = json.dumps({"rows": rows, "context": context, "what": what, "layer_ms": round(ms, 4)})
        print(line, flush=True)
        with out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    log("attention alone", lambda: in_turn([whole], weights, multiplies=False))
    log("products alone", lambda: in_turn([whole], weights, attends=False))
    log("all rows in turn", lambda: in_turn([whole], weights))
    halves = [Half(rows // 2, context, device) for _ in range(2)]
    log("halves in turn", lambda: in_turn(halves, weights))
    for library in ("cublas", "cublaslt"):
        torch.backends.cuda.preferred_blas_library(library)
        for left in (0, 32, 48, 64, 80):
            carve(left or None)
            log(
                f"{library}, {left} left alone: products alone",
                lambda: in_turn(halves, weights, attends=False),
            )
            for name, order in (("attention first", (-1, 0)), ("products first", (0, -1))):
                log(
                    f"{library}, {left} left alone, beside, {name}",
                    lambda order=order: beside(halves, weights, order),
                )
            carve(None)


if __name__ == "__main__":
    typer.run(main)
