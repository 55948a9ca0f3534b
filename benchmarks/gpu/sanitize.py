# ruff: noqa: B023  every closure runs before its generator goes on; the environment is set before torch
"""Launch every own kernel once on awkward shapes, to be run under a memory checker.

compute-sanitizer --tool memcheck --error-exitcode 1 python benchmarks/gpu/sanitize.py
PYTORCH_NO_CUDA_MEMORY_CACHING=1 gives each tensor memory of its own, so that a step outside of it is seen; the script
sets it. Racecheck and initcheck run it as well. Words behind the script's name choose launches whose names have one of them.
Without a GPU Triton's kernels run in its interpreter.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import torch
from torch import Tensor

from runtime.kernels import nvrtc
from runtime.kernels.activation import ACTIVATIONS, gated_mul
from runtime.kernels.argmax import argmax
from runtime.kernels.argmax_ranks import WORDS, argmax_ranks
from runtime.kernels.cluster_linear import ADDING, ROWS, SPLITS, ClusterForm, ClusterLinear, Half
from runtime.kernels.decode import decode_attention, packed_decode_attention
from runtime.kernels.decode_step import begin_step, end_step
from runtime.kernels.head_linear import HeadLinear
from runtime.kernels.kv_store import store_kv
from runtime.kernels.mask import mask_bits
from runtime.kernels.mla_decode import mla_decode_attention
from runtime.kernels.norm import add_rms_norm, rms_norm
from runtime.kernels.paged_decode import DecodeShape, PagedDecode
from runtime.kernels.prefill import fresh_attention, prefill_attention
from runtime.kernels.rope_store import Turning, rope_store
from runtime.kernels.sample import sample
from runtime.kernels.sharing import Sharing
from runtime.kernels.skinny import RowNorm, skinny_linear
from runtime.kernels.step_layers import StepLayer, StepSpec
from runtime.kernels.sum_ranks import TURNS, Mailboxes, empty_word, sum_ranks
from runtime.kernels.tuning import DecodeTiles, LatentTiles, LinearTiles, PrefillTiles
from runtime.kernels.wgmma_linear import TILES, WgmmaLinear
from runtime.kernels.whole_step import WholeStep

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if torch.cuda.is_available() else torch.float16
LENGTHS = (1, 0, 37, 16, 90)
NEW = (1, 0, 37, 3, 21)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(DTYPE)


def integers(values: object, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=DEVICE)


class Cache:
    """Pools and tables with no slot, page or entry to spare."""

    def __init__(self, page: int, *shape: int, stored: torch.dtype = DTYPE) -> None:
        pages = [-(-n // page) for n in LENGTHS]
        order = torch.randperm(sum(pages)).tolist()
        self.table = torch.full((len(LENGTHS), max(pages)), 1 << 28, dtype=torch.int32)
        for seat, count in enumerate(pages):
            self.table[seat, :count] = torch.tensor(order[:count], dtype=torch.int32)
            del order[:count]
        self.table = self.table.to(DEVICE)
        self.k = normal(sum(pages) * page, *shape).to(stored)
        self.v = normal(sum(pages) * page, *shape).to(stored)
        self.seats = torch.arange(len(LENGTHS), dtype=torch.int32, device=DEVICE)
        self.lengths = integers(LENGTHS)


def launches() -> Iterator[tuple[str, Callable[[], object]]]:
    starts = integers([0, *itertools.accumulate(NEW)])
    for page, heads, kv, dim in ((1, 4, 2, 64), (16, 7, 1, 80), (64, 3, 3, 128)):
        c = Cache(page, kv, dim)
        at = {"page_size": page, "scale": 0.1}
        q, new = normal(len(LENGTHS), heads, dim), normal(sum(NEW), heads + 2 * kv, dim)
        args = (c.k, c.v, c.table, c.seats)
        for splits in (1, 5):
            tiles = DecodeTiles(16, 4, 3, splits, 16)
            yield f"decode {page} {splits}", lambda: decode_attention(q, *args, c.lengths, **at, tiles=tiles)
        slopes = torch.rand(heads, device=DEVICE)
        more = {"window": 9, "softcap": 4.0, "slopes": slopes}
        yield f"decode {page} all", lambda: decode_attention(q, *args, c.lengths, **at, **more)
        packed, half = normal(len(LENGTHS), (heads + 2 * kv) * dim), torch.rand(200, dim // 4, device=DEVICE)
        turning = Turning(half, half, q_weight=normal(dim), k_weight=normal(dim), eps=1e-6)
        ends = torch.randperm(len(c.k), device=DEVICE)[: len(LENGTHS)]
        for splits in (1, 5):
            tiles = DecodeTiles(16, 4, 3, splits, 16)
            yield (
                f"packed decode {page} {splits}",
                lambda: packed_decode_attention(
                    packed, heads, turning, ends, c.k, c.v, c.table, c.seats, c.lengths, **at, tiles=tiles
                ),
            )
        queries, keys, values = new.split((heads, kv, kv), 1)
        small = PrefillTiles(32, 16, 4, 2)
        for extra in ({}, more):
            yield (
                f"prefill {page} {len(extra)}",
                lambda: prefill_attention(
                    queries, *args, starts, c.lengths, **at, max_new=64, tiles=small, **extra
                ),
            )
            yield (
                f"fresh {page} {len(extra)}",
                lambda: fresh_attention(
                    queries, keys, values, starts, max_new=64, scale=0.1, tiles=small, **extra
                ),
            )
        slots = torch.randperm(len(c.k), device=DEVICE)[: sum(NEW)]
        slots[3] = -1
        yield f"store {page}", lambda: store_kv(keys, values, c.k, c.v, slots)
        angles = torch.rand(100, dim // 4, device=DEVICE)
        positions = torch.randint(100, (sum(NEW),), device=DEVICE)
        norms = {"q_weight": normal(dim), "k_weight": normal(dim), "eps": 1e-6}
        for tables, extra in (((angles, angles), norms), ((None, None), {})):
            yield (
                f"rope {page} {len(extra)}",
                lambda: rope_store(
                    queries, keys, values, *tables, positions, slots, c.k, c.v,
                    k_out=torch.empty_like(keys.contiguous()), **extra,
                ),
            )  # fmt: skip
    for stored in (torch.float8_e4m3fn, torch.float8_e5m2):
        c = Cache(1, 2, 64, stored=stored)
        q = normal(len(LENGTHS), 4, 64)
        yield (
            f"decode {stored}",
            lambda: decode_attention(q, c.k, c.v, c.table, c.seats, c.lengths, page_size=1, scale=0.1),
        )
    c = Cache(16, 96)
    q, q_rope = normal(len(LENGTHS), 19, 64), normal(len(LENGTHS), 19, 32)
    kept, places = c.k.unsqueeze(1), torch.tensor([5, -1, 0, len(c.k) - 1], device=DEVICE)
    yield "store latents", lambda: store_kv(normal(4, 1, 96), None, kept, kept, places)
    for splits in (1, 3):
        tiles = LatentTiles(16, 16, 4, 2, splits)
        yield (
            f"mla {splits}",
            lambda: mla_decode_attention(
                q, q_rope, c.k, c.table, c.seats, c.lengths, page_size=16, scale=0.1, tiles=tiles
            ),
        )
    for width in (7, 900):
        x, residual, weight = normal(5, width), normal(5, width), normal(width)
        yield f"norm {width}", lambda: rms_norm(x, weight, 1e-5, 1.0)
        yield f"add norm {width}", lambda: add_rms_norm(x, residual, weight, 1e-5)
        yield f"argmax {width}", lambda: argmax(x)
        pair = normal(3, 2 * width)
        for kind in ACTIVATIONS:
            yield f"{kind} {width}", lambda: gated_mul(pair, kind)
    for rows, n, k, tiles in (
        (1, 13, 130, LinearTiles("gemv", 1, 4, 64, 4, 2)),
        (5, 33, 90, LinearTiles("tiled", 16, 16, 32, 4, 2, 2)),
        (70, 130, 200, LinearTiles("tiled", 64, 64, 64, 4, 3, 1)),
    ):
        for gated in (None, "silu"):
            w = normal(n * (2 if gated else 1), k)
            extra = {
                "bias": normal(len(w)),
                "norm": RowNorm(normal(k), 1e-5),
                "residual": normal(rows, n),
            }
            x = normal(rows, k)
            yield (
                f"linear {tiles.kind} {rows} {gated}",
                lambda: skinny_linear(x, w, gated=gated, tiles=tiles, **extra),
            )
    for rows, width in ((1, 70), (9, 900)):
        fields = torch.tensor([0.7, 5, 0.9, 0.01, 0.5], dtype=torch.float64, device=DEVICE)
        logits, packed = normal(rows, width), fields[:, None].repeat(1, rows)
        yield f"sample {rows}", lambda: sample(logits, packed)
        bits = integers([[-1] * -(-width // 32)] * rows)
        yield f"mask {rows}", lambda: mask_bits(logits, integers(list(range(rows))), bits)
        control = integers([list(range(rows)), [3] * rows, [2] * rows, [-1] * rows], torch.int64)
        table, newest = integers([[0, 1]] * rows), integers([5] * rows, torch.int64)
        yield f"begin step {rows}", lambda: begin_step(control, table, newest, 2)
        yield f"end step {rows}", lambda: end_step(control, newest, logits[:, 0].float(), newest)
        yield f"sums of ranks {rows}", lambda: exchange(rows, width)
    if DEVICE.type != "cuda":
        return  # what follows is CUDA C++
    for page, window in ((1, None), (16, 9)):
        yield f"whole step {page}", lambda: whole_step(page, window)
        for heads, kv in ((16, 8), (7, 1)):
            yield f"paged decode {page} {kv}", lambda: paged_decode(page, heads, kv, window)
    for heads, kv in ((16, 8), (16, 4)):
        yield (
            f"paged decode, rows that begin alike {kv}",
            lambda: paged_decode(1, heads, kv, None, alike=True),
        )


def whole_step(page: int, window: int | None) -> Tensor:
    """Two layers of odd widths in one launch, behind the requests of a cache."""
    heads, kv, dim, hidden, inner = 7, 1, 96, 96, 1184
    spec = StepSpec(heads, kv, dim, hidden, inner, "silu", 0.2, None, False, 1e-5, 0.0, 0.0, 0.0, page)
    c = Cache(page, kv, dim)
    angles = normal(max(LENGTHS), dim // 2).float()
    layers = [
        StepLayer(
            normal(hidden), normal((heads + 2 * kv) * dim, hidden), None, None, None, angles.cos(), angles.sin(), c.k, c.v,
            normal(hidden, heads * dim), None, normal(hidden), normal(2 * inner, hidden), normal(hidden, inner), window,
        )
        for _ in range(2)
    ]  # fmt: skip
    at = c.lengths.long().clamp(min=1) - 1
    slots = c.table[c.seats.long(), at // page].long() * page + at % page
    slots = torch.where(c.lengths > 0, slots, -1)
    step = WholeStep(layers, normal(hidden), spec, rows=len(slots))
    return step(normal(len(slots), hidden), c.table, c.seats, c.lengths, slots)


def paged_decode(page: int, heads: int, kv: int, window: int | None, *, alike: bool = False) -> Tensor:
    """Behind the requests of a cache. `alike`: two of them begin alike."""
    c = Cache(page, kv, 64)
    angles = torch.rand(max(LENGTHS), 32, device=DEVICE)
    at = c.lengths.long().clamp(min=1) - 1
    slots = c.table[c.seats.long(), at // page].long() * page + at % page
    slots = torch.where(c.lengths > 0, slots, -1)
    kernel = PagedDecode(DecodeShape(heads, kv, 64, page, 64), DEVICE, window=window)
    sharing = None
    if alike:
        least, rows = kernel.shape.span, [i for i, n in enumerate(LENGTHS) if n > kernel.shape.span][:2]
        c.table[rows[1], :least] = c.table[rows[0], :least]
        order, shares = integers(rows + [-1] * (len(slots) - 2), torch.int64), torch.zeros(len(slots)).long()
        shares[rows] = torch.tensor([least << 32 | i << 16 | i << 8 | 2 for i in range(2)])
        sharing = Sharing(order, shares.to(DEVICE))
    kernel.cut(c.lengths, sharing)
    qkv = normal(len(slots), (heads + 2 * kv) * 64)
    pages = (c.k, c.v, c.table, c.seats, c.lengths)
    return kernel(qkv, Turning(angles, angles), slots, *pages, scale=0.1, window=window, sharing=sharing)


def many_rows() -> Iterator[tuple[str, Callable[[], object]]]:
    """Products in CUDA C++ whose last tiles are not full, on Hopper."""
    if nvrtc.why_not(DEVICE) is not None:
        return
    for tiles in TILES:
        for gated in (None, *ACTIVATIONS):
            rows, n, k = 300, 264, 136
            x, w = normal(rows, k), normal(n * (2 if gated else 1), k)
            linear = WgmmaLinear(DEVICE, tiles, gated)
            yield f"wgmma {tiles} {gated}", lambda: linear(x, w)
    for split in SPLITS:
        for form in (ClusterForm(136, 328, gated, 80, split) for gated in (None, *ACTIVATIONS)):
            x, w = normal(40, 328), normal(272 if form.gated else 136, 328)
            small = ClusterLinear(DEVICE, form)
            yield f"cluster {form}", lambda: small(x, w, bias=w[:, 0].contiguous())
    for k in (136, 896):
        x, w = normal(40, k), normal(128 * 500 - 56, k)
        head = HeadLinear(DEVICE, k)
        yield f"head of {k} columns", lambda: head(x, w)
    for columns in ADDING:
        adds = ClusterForm(136, 328, None, columns, 4, adds=True)
        first = ClusterLinear(DEVICE, adds)
        second = ClusterLinear(DEVICE, ClusterForm(72, 136, "silu", 48, 1, normed=adds.parts))
        yield f"halves of a norm {adds}", lambda: halves(first, second)


def halves(first: ClusterLinear, second: ClusterLinear) -> Tensor:
    """A product that adds to a residual, and the next one, which share a norm."""
    squares = torch.zeros(first.form.parts, ROWS, device=DEVICE)
    x, v = normal(40, first.form.n), normal(2 * second.form.n, second.form.k)
    whole = Half(squares, residual=x, weight=x[0].clone())
    y = first(normal(40, first.form.k), normal(first.form.n, first.form.k), half=whole)
    return second(y, v, half=Half(squares, 1e-5))


def exchange(rows: int, width: int) -> None:
    """Two ranks on one device, whose boxes hold no row more; four turns."""
    words = width * DTYPE.itemsize // 4
    boxes = [
        torch.full((TURNS, 2, rows, words), empty_word(DTYPE), dtype=torch.int32, device=DEVICE)
        for _ in range(2)
    ]
    places = integers([box.data_ptr() for box in boxes], torch.int64)
    mail = [Mailboxes(r, places, integers([0] * (4 + TURNS)), rows, words, looks=10) for r in range(2)]
    weight, residual = normal(width), normal(rows, width)
    picks = [
        torch.full((TURNS, 2, rows, WORDS), empty_word(torch.float32), dtype=torch.int32, device=DEVICE)
        for _ in range(2)
    ]
    ends = integers([box.data_ptr() for box in picks], torch.int64)
    likeliest = [Mailboxes(r, ends, integers([0] * (4 + TURNS)), rows, WORDS, looks=10) for r in range(2)]
    best, tokens = torch.rand(rows, device=DEVICE), torch.zeros(rows, dtype=torch.int64, device=DEVICE)
    for turn in range(4):
        for send in (True, False):
            for m in likeliest:
                argmax_ranks(
                    best[: max(1, rows - turn)],
                    tokens[: max(1, rows - turn)],
                    0,
                    mail=m,
                    send=send,
                    take=not send,
                )
        x = normal(max(1, rows - turn), width)
        for send in (True, False):
            for m in mail:
                sum_ranks(x, residual[: len(x)].clone(), weight, 1e-5, mail=m, send=send, take=not send)


def main() -> None:
    """Launch them; a fault is the checker's to report."""
    count = 0
    for name, launch in itertools.chain(launches(), many_rows()):
        if sys.argv[1:] and not any(word in name for word in sys.argv[1:]):
            continue
        print(name, flush=True)
        launch()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        count += 1
    print(f"{count} launches on {DEVICE}")


if __name__ == "__main__":
    main()
