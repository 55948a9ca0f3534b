"""Decode steps of 8B over the ranks of one host against float64: in one launch, and by a launch for each part.

python -m benchmarks.gpu.step_ranks [--ranks 2] [--rows 1,8,16,32,64] [--context 1024]

Each rank makes the whole model's random weights and keeps its part. Hidden states must be as near to float64 as those of one card,
the same bits on every rank and from launch to launch; the likeliest token must be that of the logits put side by side.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor


def part_of(whole: Tensor, dim: int, rank: int, ranks: int) -> Tensor:
    return whole.chunk(ranks, dim)[rank]


def local_model(b: Any, rank: int, ranks: int, group: Any) -> tuple[Any, Any]:
    """This rank's part of the benchmark's model and of its cache."""
    from runtime.kv.store import KVStore
    from runtime.models.decoder import Decoder
    from runtime.models.shards import Shards

    with torch.device(b.device):
        model = Decoder(b.spec, torch.bfloat16, Shards(b.spec, rank, ranks), group)
    model.requires_grad_(False)
    store = KVStore(model.spec, b.store.k.shape[1] // b.page, b.page, torch.bfloat16, str(b.device))
    for mine, whole in ((store.k, b.store.k), (store.v, b.store.v)):
        mine.copy_(part_of(whole, 2, rank, ranks))
    model.norm.weight.data.copy_(b.model.norm.weight)
    assert model.head is not None
    model.head.weight.data.copy_(part_of(b.model.head.weight, 0, rank, ranks))
    for own, whole in zip(model.layers, b.model.layers, strict=True):
        mine: Any = own
        a = b.spec.layers[0].attention
        sizes = [n * a.head_dim for n in (a.heads, a.kv_heads, a.kv_heads)]
        qkv = torch.cat([part_of(x, 0, rank, ranks) for x in whole.attention.qkv.weight.split(sizes)])
        up = torch.cat([part_of(x, 0, rank, ranks) for x in whole.mlp.up.weight.chunk(2)])
        for to, source in (
            (mine.attn_norm, whole.attn_norm.weight),
            (mine.mlp_norm, whole.mlp_norm.weight),
            (mine.attention.qkv, qkv),
            (mine.mlp.up, up),
            (mine.attention.out, part_of(whole.attention.out.weight, 1, rank, ranks)),
            (mine.mlp.down, part_of(whole.mlp.down.weight, 1, rank, ranks)),
        ):
            to.weight.data.copy_(source)
    return model, store


def rank_main(rank: int, ranks: int, rows: list[int], context: int, folder: Path) -> None:
    from benchmarks.gpu.whole_step import Bench, error
    from runtime.attention.base import PagedInputs
    from runtime.attention.triton import TritonAttention
    from runtime.models.fused import FusedDecoder, whole_step
    from runtime.parallel.group import Group

    group = Group(rank, ranks, folder, f"cuda:{rank}", 60.0)
    b = Bench("8b", context, max(rows), 1)
    model, store = local_model(b, rank, ranks, group)
    fused = FusedDecoder(model, store)
    attention = TritonAttention(store, [x.attention for x in model.spec.layers])
    alone = whole_step(b.model, b.store, 8)
    wrong = False
    for count in rows:
        table, seats, lengths, slots = b.inputs(count)
        model.embedding.weight.data[:count] = b.x(count)
        starts = torch.arange(count + 1, dtype=torch.int32, device=b.device)
        ids, positions = torch.arange(count, device=b.device), (lengths - 1).long()

        def step() -> Tensor:
            attention.plan(PagedInputs(table, seats, lengths, starts, slots, 1, context, count))  # noqa: B023
            return fused(ids, positions, attention)  # noqa: B023

        found = step()
        torch.cuda.synchronize()
        group.smallest(1)
        same = all(torch.equal(found, step()) for _ in range(20))
        digest = int(found.view(torch.int16).long().sum())
        same = same and group.smallest(digest) == digest == -group.smallest(-digest)
        own = fused.own_logits(found)
        best, tokens = fused.likeliest(own)
        whole = fused.gathered(own)
        likeliest = bool(torch.equal(whole.float().amax(1), best)) and bool(
            torch.equal(whole.gather(1, tokens[:, None])[:, 0].float(), best)
        )
        wanted = b.reference(alone, count)
        line: dict[str, Any] = {"test": "step_ranks", "ranks": ranks, "rows": count, "context": context}
        line |= {"one_launch": fused.in_one_launch(count), "same": same, "likeliest": likeliest}
        line |= {"error": error(found, wanted), "alone": error(b.launches(count), wanted)}
        line["ok"] = same and likeliest and line["error"] < 1.3 * line["alone"] + 1e-3
        wrong = wrong or not line["ok"]
        if rank == 0:
            print(json.dumps(line), flush=True)
        group.smallest(1)
    assert not group.lost, "a rank was given up"
    group.close()
    raise SystemExit(int(wrong))


def main(
    ranks: Annotated[int, typer.Option(help="GPUs.")] = 2,
    rows: Annotated[str, typer.Option(help="Rows of a step.")] = "1,8,16,32,64",
    context: Annotated[int, typer.Option(help="Tokens before the step.")] = 1024,
    rank: Annotated[int, typer.Option(help="This process's; -1 starts all.")] = -1,
    folder: Annotated[Path | None, typer.Option(help="Where ranks meet.")] = None,
) -> None:
    """Check and print JSON lines; exits 1 if a step is wrong."""
    if rank >= 0 and folder is not None:
        rank_main(rank, ranks, [int(n) for n in rows.split(",")], context, folder)
        return
    with tempfile.TemporaryDirectory() as place:
        common = [sys.executable, __file__, "--ranks", str(ranks), "--rows", rows, "--context", str(context)]
        common += ["--folder", place]
        processes = [subprocess.Popen([*common, "--rank", str(r)]) for r in range(ranks)]
        codes = [p.wait(timeout=200) for p in processes]
    if any(codes):
        raise SystemExit(f"ranks ended with {codes}")


if __name__ == "__main__":
    typer.run(main)
