"""Tiles of a step's products, chosen by how long the whole step takes with them: alone, each has the card for itself.

python -m benchmarks.gpu.chain --model 0.5b --rows 64 [--limit 60]

Each shape in turn tries its tiles with one number changed, and the library, and keeps what makes the step shortest, until nothing
does or the time is up. Contexts lie in a row, as in an engine that has just started. What is printed last goes to
runtime/kernels/tuned.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any

import torch
import typer

from benchmarks.gpu.whole_step import Bench
from runtime.attention import triton as attention_paths
from runtime.kernels import tuned, tuning
from runtime.kernels.cluster_linear import COLUMNS, SPLITS
from runtime.kernels.nvrtc import MOST_SHARED
from runtime.kernels.tuning import LinearTiles

Shape = tuple[int, int, bool]
CHOICES: dict[str, tuple[int, ...]] = {
    "block_m": (16, 32, 64, 128),
    "block_n": (16, 32, 64, 128),
    "block_k": (64, 128, 256),
    "warps": (4, 8),
    "stages": (3, 4, 5, 6),
    "splits": (1, 2, 4, 8),
}
CLUSTERS = {"block_n": COLUMNS, "splits": SPLITS}
LIBRARY = LinearTiles("library")


def shapes_of(b: Bench) -> list[Shape]:
    """Of the products of a layer, and the head, the largest first."""
    layer: Any = b.model.layers[0]
    plain = [layer.attention.qkv, layer.attention.out, layer.mlp.down]
    found = [(*w.weight.shape, False) for w in plain]
    n, k = layer.mlp.up.weight.shape
    found += [(n // 2, k, True), (*b.model.head_weight.shape, False)]
    return sorted(set(found), key=lambda shape: -shape[0] * shape[1])


def variants(tiles: LinearTiles, shape: Shape, rows: int) -> Iterator[LinearTiles]:
    """With one number changed, as far as they fit a multiprocessor."""
    _, k, gated = shape
    own = tiles.kind == "cluster"
    for name, values in (CLUSTERS if own else CHOICES).items():
        for value in values:
            found = replace(tiles, **{name: value})
            if own and found != tiles:
                yield found
            if own:
                continue
            stage = (found.block_m + found.block_n * (2 if gated else 1)) * found.block_k * 2
            fits = found.stages * stage <= MOST_SHARED and found.block_m <= tuning.triton_width(rows)
            if found != tiles and fits and found.splits * found.block_k <= k:
                yield found


class Chain:
    """Steps of one model with tiles of our choice."""

    def __init__(self, model: str, rows: int, context: int, limit: float) -> None:
        self.rows, self.end = rows, time.perf_counter() + limit
        self.bench = Bench(model, context, rows, 1, scattered=False)
        self.tiles: dict[Shape, LinearTiles] = {}
        self.usual = dict(tuned.LINEAR)

    def ms(self, **changed: Any) -> float:
        """Of a step; inf if it cannot run."""
        tiles = self.tiles | changed.get("tiles", {})
        rows = {shape: ((self.rows, t),) for shape, t in tiles.items()}
        tuned.LINEAR = self.usual | rows
        tuning._measured.cache_clear()
        try:
            return self.bench.step_ms(None, self.rows)
        except Exception as error:
            print(f"  failed: {str(error).splitlines()[0][:150]}", flush=True)
            return float("inf")

    def search(self, shapes: list[Shape]) -> float:
        best = self.ms()
        print(f"at first {best:.4f} ms", flush=True)
        moved = True
        while moved and time.perf_counter() < self.end:
            moved = False
            for shape in shapes:
                now = self.tiles[shape]
                tried = [] if now == LIBRARY else list(variants(now, shape, self.rows))
                for tiles in [LIBRARY, *tried] if now != LIBRARY else tried:
                    if time.perf_counter() > self.end:
                        break
                    ms = self.ms(tiles={shape: tiles})
                    if ms < 0.999 * best:
                        best, self.tiles[shape], moved = ms, tiles, True
                        print(f"{best:.4f} ms with {shape}: {tiles}", flush=True)
        return best


def main(
    model: Annotated[str, typer.Option(help="8b, 8b/2 or 0.5b.")] = "0.5b",
    rows: Annotated[int, typer.Option(help="Of a step.")] = 64,
    context: Annotated[int, typer.Option(help="Tokens before the step.")] = 1024,
    own: Annotated[bool, typer.Option(help="Start with own tiles for all products.")] = False,
    packed_rows: Annotated[
        int | None, typer.Option(help="Up to so many rows attend by the kernel in CUDA C++.")
    ] = None,
    cluster: Annotated[
        bool, typer.Option(help="Start with the products of clusters (kernels/cluster_linear.py).")
    ] = False,
    early_rows: Annotated[
        int | None, typer.Option(help="Up to so many rows kernels start while the one before ends.")
    ] = None,
    limit: Annotated[float, typer.Option(help="Seconds.")] = 60.0,
) -> None:
    """Search and print."""
    device = torch.device("cuda", 0)
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    if packed_rows is not None:
        attention_paths.packed_rows = lambda _: (range(1, packed_rows + 1),)
    if early_rows is not None:
        tuning.EARLY_ROWS = early_rows
    chain = Chain(model, rows, context, limit)
    shapes = shapes_of(chain.bench)
    print(f"as it is {chain.ms():.4f} ms", flush=True)
    head = shapes[0]
    for n, k, gated in shapes:
        usual = tuning.linear_tiles(device, rows, n, k, torch.bfloat16, gated)
        if own and usual.kind != "tiled" and (n, k, gated) != head:
            usual = LinearTiles(
                "tiled", min(64, tuning.triton_width(rows)), 64, 64 if gated else 128, 4, 4, 1
            )
        if cluster and (n, k, gated) != head:
            programs = -(-n // (40 if gated else 64))
            split = max(s for s in SPLITS if s == 1 or s * programs <= tuning.processors(device))
            usual = LinearTiles("cluster", 64, 80 if gated else 64, 64, splits=split)
        chain.tiles[n, k, gated] = usual
    best = chain.search(shapes)
    print(f"best {best:.4f} ms")
    for shape, tiles in chain.tiles.items():
        print(f"{shape}: ({rows}, {tiles}),")


if __name__ == "__main__":
    typer.run(main)
