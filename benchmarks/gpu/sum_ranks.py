"""Sums over the ranks of a layer, with residual and norm: own mailboxes against NCCL, on the GPUs of one host.

python -m benchmarks.gpu.sum_ranks [--ranks 2] [--width 4096]

Every rank checks its sums against float64 over many launches of changing size, then times both in replayed graphs of 64
launches. Floor: each rank sends rows * width * 2 bytes to each other one.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

ROWS = (1, 8, 32, 64, 128, 256, 512)
LAUNCHES = 64


def timed(call: Callable[[], Any]) -> float:
    """Microseconds of one call, in a graph of LAUNCHES."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            call()
    spans = []
    for _ in range(8):
        begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begun.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        spans.append(begun.elapsed_time(ended) * 1e3 / LAUNCHES)
    return statistics.median(spans[1:])


def rank_main(rank: int, ranks: int, width: int, folder: Path) -> None:
    from runtime.kernels.norm import add_rms_norm
    from runtime.kernels.sum_ranks import sum_ranks, sum_ranks_reference
    from runtime.parallel.group import Group

    group = Group(rank, ranks, folder, f"cuda:{rank}", 60.0)
    peers = group.connect(width, torch.bfloat16)
    assert peers is not None, "the cards do not reach each other's memory"
    mail = peers.mail
    device = torch.device("cuda", rank)
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(width, generator=generator).to(device, torch.bfloat16)
    worst = 0.0
    for turn in range(200):
        rows = int(torch.randint(1, mail.rows + 1, (), generator=generator)) if turn % 3 else 1 + turn % 5
        parts = [
            torch.randn(rows, width, generator=generator).to(device, torch.bfloat16) for _ in range(ranks)
        ]
        residual = torch.randn(rows, width, generator=generator).to(device, torch.bfloat16)
        held = residual.clone()
        out = sum_ranks(parts[rank], held, weight, 1e-5, mail=mail)
        wanted, norm = sum_ranks_reference(parts, residual, weight, 1e-5)
        for a, b in ((held, wanted), (out, norm)):
            worst = max(worst, float((a.double() - b.double()).norm() / b.double().norm()))
    assert worst < 1e-2, f"sums are off by {worst}"
    for rows in (r for r in ROWS if r <= mail.rows):
        x = torch.randn(rows, width, device=device, dtype=torch.bfloat16)
        residual = torch.zeros_like(x)
        own = timed(lambda: sum_ranks(x, residual, weight, 1e-5, mail=mail))  # noqa: B023
        group.smallest(1)
        nccl = timed(lambda: add_rms_norm(group.all_reduce(x), residual, weight, 1e-5))  # noqa: B023
        group.smallest(1)
        if rank == 0:
            line = {"test": "sum_ranks", "ranks": ranks, "rows": rows, "own_us": own, "nccl_us": nccl}
            print(
                json.dumps({**line, "card": torch.cuda.get_device_name(), "worst_error": worst}), flush=True
            )


def main(
    ranks: Annotated[int, typer.Option(help="GPUs.")] = 2,
    width: Annotated[int, typer.Option(help="Numbers of a row.")] = 4096,
    rank: Annotated[int, typer.Option(help="This process's; -1 starts all.")] = -1,
    folder: Annotated[Path | None, typer.Option(help="Where ranks meet.")] = None,
) -> None:
    """Check, measure and print JSON lines."""
    if rank >= 0 and folder is not None:
        rank_main(rank, ranks, width, folder)
        return
    with tempfile.TemporaryDirectory() as place:
        common = [sys.executable, __file__, "--ranks", str(ranks), "--width", str(width), "--folder", place]
        processes = [subprocess.Popen([*common, "--rank", str(r)]) for r in range(ranks)]
        codes = [p.wait(timeout=150) for p in processes]
    if any(codes):
        raise SystemExit(f"ranks ended with {codes}")


if __name__ == "__main__":
    typer.run(main)
