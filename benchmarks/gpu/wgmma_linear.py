"""Products of many rows by the own kernel beside torch's library: is it right, how near the tensor units' rate is it.

python -m benchmarks.gpu.wgmma_linear --out FILE [--shapes gate_up,down] [--rows 832,8192] [--seconds 0.3]

Each is repeated for so long that the card comes to its power limit, if it does. "layer" is the four products of a layer with its
gate, one after another: by the library; with the gate's product by the own kernel; with all of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.whole_step import error
from runtime.kernels.activation import gated_mul
from runtime.kernels.skinny import skinny_linear_reference
from runtime.kernels.tuning import processors
from runtime.kernels.wgmma_linear import TILES, PairTiles, WgmmaLinear, best_tiles

# n, k, gate; of Llama-3.1-8B
LAYER = {
    "qkv": (6144, 4096, None),
    "out": (4096, 4096, None),
    "gate_up": (14336, 4096, "silu"),
    "down": (4096, 14336, None),
}
SHAPES = {
    **LAYER,
    "gate_up/2": (7168, 4096, "silu"),  # a rank's half
    "gate_up/4": (3584, 4096, "silu"),
    "gate_up 0.5b": (4864, 896, "silu"),  # of Qwen2.5-0.5B
}
LAYERS = 4  # of weights: together more than the last cache holds


class Bench:
    def __init__(self, seconds: float) -> None:
        self.device = torch.device("cuda")
        self.seconds = seconds
        self.own = {
            (gate, tiles): WgmmaLinear(self.device, tiles, gate) for gate in (None, "silu") for tiles in TILES
        }
        self.weights = {
            name: [
                torch.randn(n * (2 if gate else 1), k, device=self.device).bfloat16() * k**-0.5
                for _ in range(LAYERS)
            ]
            for name, (n, k, gate) in SHAPES.items()
        }

    def library(self, x: Tensor, name: str, layer: int) -> Tensor:
        y = F.linear(x, self.weights[name][layer])
        gate = SHAPES[name][2]
        return gated_mul(y, gate) if gate else y

    def mine(self, x: Tensor, name: str, layer: int, tiles: PairTiles | None = None) -> Tensor:
        n, _, gate = SHAPES[name]
        tiles = tiles or best_tiles(len(x), n, gate is not None, processors(self.device))
        return self.own[gate, tiles](x, self.weights[name][layer])

    def us(self, calls: list[Callable[[], Any]]) -> float:
        """Microseconds of one call, over so many seconds of them."""
        for call in calls:
            call()
        torch.cuda.synchronize()
        began = time.perf_counter()
        for call in calls:
            call()
        torch.cuda.synchronize()
        repeats = max(1, round(self.seconds / (time.perf_counter() - began)))
        begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begun.record()
        for _ in range(repeats):
            for call in calls:
                call()
        ended.record()
        ended.synchronize()
        return begun.elapsed_time(ended) * 1e3 / repeats / len(calls)

    def product(self, name: str, rows: int) -> dict[str, Any]:
        n, k, gate = SHAPES[name]
        x = torch.randn(rows, k, device=self.device).bfloat16()
        found: dict[str, Any] = {}
        w = self.weights[name][0]
        some = torch.randint(rows, (256,), device=self.device)
        wanted = skinny_linear_reference(x[some], w, gated=gate)
        first = self.mine(x, name, 0)
        found["error"] = error(first[some], wanted)
        found["library error"] = error(self.library(x, name, 0)[some], wanted)
        found["same"] = all(
            torch.equal(self.mine(x, name, 0, TILES[i % len(TILES)]), first) for i in range(10)
        )
        found["ok"] = found["same"] and found["error"] < 2 * found["library error"]
        operations = 2 * rows * n * k * (2 if gate else 1)
        kinds: dict[str, Callable[[Tensor, str, int], Tensor]] = {"library": self.library}
        for tiles in TILES:
            kinds[f"{tiles.columns}{' across' * tiles.across}"] = partial(self.mine, tiles=tiles)
        for kind, call in kinds.items():
            us = self.us([lambda i=i, call=call: call(x, name, i) for i in range(LAYERS)])
            found[f"{kind} us"] = us
            found[f"{kind} tflops"] = operations / us / 1e6
        return found

    def layer(self, rows: int) -> dict[str, Any]:
        x = torch.randn(rows, 4096, device=self.device).bfloat16()
        wide = torch.randn(rows, 14336, device=self.device).bfloat16()
        found = {}

        def chain(own: tuple[str, ...], i: int) -> None:
            for name in LAYER:
                given = wide if name == "down" else x
                if name in own:
                    self.mine(given, name, i)
                else:
                    self.library(given, name, i)

        kinds = {"library": (), "gate": ("gate_up",), "gate, down": ("gate_up", "down"), "all": tuple(LAYER)}
        for _ in range(2):  # the second is of a warm card
            for kind, own in kinds.items():
                found[f"{kind} us"] = self.us([lambda i=i, own=own: chain(own, i) for i in range(LAYERS)])
        return found


def main(
    out: Annotated[Path | None, typer.Option(help="File of results, a line of JSON each.")] = None,
    shapes: Annotated[str, typer.Option(help="Which, and layer.")] = ",".join((*LAYER, "layer")),
    rows: Annotated[str, typer.Option(help="Rows of x.")] = "256,512,832,1024,2048,8192",
    seconds: Annotated[float, typer.Option(help="Of each figure.")] = 0.3,
) -> None:
    """Measure and print; exits 1 if something is wrong."""
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    b = Bench(seconds)
    wrong = False
    for name in shapes.split(","):
        for count in map(int, rows.split(",")):
            row: dict[str, Any] = {"shape": name, "rows": count}
            row |= b.layer(count) if name == "layer" else b.product(name, count)
            wrong = wrong or not row.get("ok", True)
            print(
                " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()),
                flush=True,
            )
            if out is not None:
                with out.open("a") as log:
                    log.write(json.dumps(row) + "\n")
    raise typer.Exit(int(wrong))


if __name__ == "__main__":
    typer.run(main)
