"""Every own kernel on real shapes: is it right, how near the floor is it, which tiles are best.

python -m benchmarks.gpu.kernels --out FOLDER [--parts correct,decode,prefill,linear,small,layer] [--limit 400]

Times are of replayed graphs over buffers that together exceed the cache. Results go to FOLDER/kernels.jsonl as they
come; the best tiles of each shape are printed, to be entered into runtime/kernels/tuning.py. `--smoke` runs the same
code on a CPU with few elements.
"""

# ruff: noqa: B023  every closure here runs before its loop goes on
from __future__ import annotations

import itertools
import json
import statistics
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from runtime.kernels import tuning
from runtime.kernels.activation import gated_mul, gated_reference
from runtime.kernels.decode import decode_attention, decode_reference, packed_decode_attention
from runtime.kernels.merge import split_scratch
from runtime.kernels.norm import add_rms_norm, rms_norm, rms_norm_reference
from runtime.kernels.prefill import fresh_attention, prefill_attention, prefill_reference
from runtime.kernels.rope_store import Turning, rope_store, rope_store_reference
from runtime.kernels.skinny import RowNorm, linear_scratch, skinny_linear, skinny_linear_reference
from runtime.kernels.tuning import DecodeTiles, LinearTiles, PrefillTiles, decode_tiles, linear_tiles

# heads, kv_heads, head_dim, hidden, inner, vocabulary
SHAPES = {
    "8b": (32, 8, 128, 4096, 14336, 128256),
    "0.5b": (14, 2, 64, 896, 4864, 151936),
    "8b/2": (16, 4, 128, 4096, 7168, 64128),  # a rank's half
    "8b/4": (8, 2, 128, 4096, 3584, 32064),
}
MODELS = {name: SHAPES[name] for name in ("8b", "0.5b")}
ROWS: list[int] = []
BF16 = torch.bfloat16


def replayed_us(calls: list[Callable[[], Any]], repeats: int = 5) -> float:
    """Microseconds of one call: the median over replays of a graph that makes all of them."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    spans = []
    for _ in range(repeats):
        begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begun.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        spans.append(begun.elapsed_time(ended) * 1e3 / len(calls))
    return statistics.median(spans)


class Bench:
    """The device, the clock, the log, and what was best so far."""

    def __init__(self, out: Path, smoke: bool, limit: float) -> None:
        self.smoke = smoke
        self.device = torch.device("cpu" if smoke else "cuda")
        self.end = time.perf_counter() + limit
        self.best: dict[str, Any] = {}
        out.mkdir(parents=True, exist_ok=True)
        self.file = (out / "kernels.jsonl").open("a")

    def size(self, real: int, small: int) -> int:
        return min(real, small) if self.smoke else real

    def late(self) -> bool:
        return time.perf_counter() > self.end

    def log(self, line: str, **row: Any) -> None:
        print(line, flush=True)
        self.file.write(json.dumps(row, default=str) + "\n")
        self.file.flush()

    def normal(self, *shape: int, dtype: torch.dtype = BF16) -> Tensor:
        if dtype.itemsize == 1:
            return torch.randn(shape, device=self.device, dtype=torch.float16).to(dtype)
        return torch.randn(shape, device=self.device, dtype=dtype)

    def weight(self, n: int, k: int) -> Tensor:
        return self.normal(n, k) * k**-0.5

    def compile(self, calls: Iterable[Callable[[], Any]]) -> None:
        """Launch each once, several compiling at a time; one that fails does so again when it is timed."""

        def attempt(call: Callable[[], Any]) -> None:
            try:
                call()
            except Exception:
                pass

        if self.smoke:
            return
        with ThreadPoolExecutor(12) as pool:
            list(pool.map(attempt, calls))
        torch.cuda.synchronize()

    def time(self, calls: list[Callable[[], Any]], repeats: int = 5) -> float:
        """Microseconds of one call: the median over replays of a graph that makes all of them."""
        if self.smoke:
            calls[0]()
            return 1.0
        return replayed_us(calls, repeats)

    def try_time(self, name: str, calls: list[Callable[[], Any]]) -> float | None:
        try:
            return self.time(calls)
        except Exception as error:
            self.log(
                f"  {name} failed: {str(error).splitlines()[0][:110]}", failed=name, error=str(error)[:2000]
            )
            return None

    def quickest(self, key: str, variants: dict[Any, list[Callable[[], Any]]]) -> tuple[Any, float]:
        """Time every variant, log all, remember and return the best."""
        self.compile([calls[0] for calls in variants.values()])
        times = {}
        for tiles, calls in variants.items():
            if self.late() and times:
                break
            us = self.try_time(f"{key} {tiles}", calls)
            if us is not None:
                times[tiles] = us
        if not times:
            raise RuntimeError(f"{key}: no variant ran")
        tiles = min(times, key=lambda t: times[t])
        self.best[key] = tiles
        self.file.write(json.dumps({"sweep": key, "us": {str(t): us for t, us in times.items()}}) + "\n")
        return tiles, times[tiles]


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


class Paged:
    """`layers` pools and the page table of `batch` requests of `context` tokens, pages in random order."""

    def __init__(
        self, b: Bench, model: str, lengths: list[int], page: int, layers: int, dtype: torch.dtype = BF16
    ) -> None:
        _, kv_heads, dim, *_ = MODELS[model]
        pages = [-(-n // page) for n in lengths]
        order = torch.randperm(sum(pages), device=b.device).int()
        self.table = torch.zeros(len(lengths), max(max(pages), 1), dtype=torch.int32, device=b.device)
        for i, part in enumerate(order.split(pages)):
            self.table[i, : pages[i]] = part
        self.seats = torch.arange(len(lengths), dtype=torch.int32, device=b.device)
        self.lengths = torch.tensor(lengths, dtype=torch.int32, device=b.device)
        shape = (max(sum(pages) * page, 1), kv_heads, dim)
        self.pools = [(b.normal(*shape, dtype=dtype), b.normal(*shape, dtype=dtype)) for _ in range(layers)]
        self.bytes = sum(lengths) * kv_heads * dim * 2 * dtype.itemsize


def correct(b: Bench) -> None:
    torch.manual_seed(0)

    def report(name: str, value: float, bound: float) -> None:
        verdict = "ok" if value < bound else "WRONG"
        b.log(
            f"  {verdict:5} {name}: {value:.2e} (bound {bound:.0e})",
            check=name,
            error=value,
            ok=value < bound,
        )

    def attempt(name: str, check: Callable[[], float], bound: float = 1e-2) -> None:
        try:
            report(name, check(), bound)
        except Exception as problem:
            b.log(
                f"  FAIL  {name}: {str(problem).splitlines()[0][:150]}",
                check=name,
                error=traceback.format_exc(),
            )

    lengths = [b.size(n, 70) for n in (1, 0, 1023, 8192, 17, 300, 64)]
    for model, page, dtype, splits in [
        ("8b", 1, BF16, 1),
        ("8b", 1, BF16, 16),
        ("8b", 16, BF16, 4),
        ("8b", 64, BF16, 8),
        ("0.5b", 1, BF16, 8),
        ("8b", 1, torch.float8_e4m3fn, 8),
        ("8b", 16, torch.float8_e5m2, 2),
    ]:
        heads, _, dim, *_ = MODELS[model]
        p = Paged(b, model, lengths, page, 1, dtype)
        q = b.normal(len(lengths), heads, dim)

        def decode(p: Paged = p, q: Tensor = q, page: int = page, splits: int = splits) -> float:
            args = (q, *p.pools[0], p.table, p.seats, p.lengths)
            out = torch.full_like(q, float("nan"))
            for _ in range(3):  # the counters of a launch must be left as they were found
                decode_attention(*args, page_size=page, scale=q.shape[2] ** -0.5, splits=splits, out=out)
            return error(out, decode_reference(*args, page_size=page, scale=q.shape[2] ** -0.5))

        attempt(f"decode {model} page {page} {dtype} splits {splits}", decode)
        counts = [min(n, b.size(c, 33)) for n, c in zip(lengths, (1, 1, 1023, 2048, 5, 300, 3), strict=True)]
        starts = torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32, device=b.device)
        new = b.normal(sum(counts), heads, dim)

        def prefill(p: Paged = p, q: Tensor = new, page: int = page, starts: Tensor = starts) -> float:
            args = (q, *p.pools[0], p.table, p.seats, starts, p.lengths)
            more: dict[str, Any] = {"page_size": page, "scale": q.shape[2] ** -0.5}
            out = torch.full_like(q, float("nan"))
            prefill_attention(*args, max_new=2048, out=out, **more)
            return error(out, prefill_reference(*args, **more))

        attempt(f"prefill {model} page {page} {dtype}", prefill)

    for name, more in {
        "window": {"window": 500},
        "softcap": {"softcap": 30.0},
        "alibi": {"slopes": torch.rand(32, device=b.device)},
    }.items():
        p = Paged(b, "8b", lengths, 16, 1)
        q = b.normal(len(lengths), 32, 128)

        def changed(more: dict[str, Any] = more, p: Paged = p, q: Tensor = q) -> float:
            args = (q, *p.pools[0], p.table, p.seats, p.lengths)
            at = {"page_size": 16, "scale": 128**-0.5, **more}
            return error(decode_attention(*args, splits=8, **at), decode_reference(*args, **at))

        attempt(f"decode {name}", changed)
        counts = [min(n, 100) for n in lengths]
        starts = torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32, device=b.device)
        new = b.normal(sum(counts), 32, 128)

        def changed_prefill(
            more: dict[str, Any] = more, p: Paged = p, q: Tensor = new, starts: Tensor = starts
        ) -> float:
            args = (q, *p.pools[0], p.table, p.seats, starts, p.lengths)
            at = {"page_size": 16, "scale": 128**-0.5, **more}
            return error(prefill_attention(*args, max_new=100, **at), prefill_reference(*args, **at))

        attempt(f"prefill {name}", changed_prefill)

    n, k = b.size(4096, 128), 4096
    w, pair = b.normal(n, k) / 64, b.normal(2 * n, k) / 64
    norm = RowNorm(b.normal(k), 1e-5)
    for rows in (1, 2, 16, 33, 200):
        x, residual = b.normal(rows, k), b.normal(rows, n)
        attempt(
            f"linear m={rows} norm residual",
            lambda x=x, r=residual: error(
                skinny_linear(x, w, norm=norm, residual=r),
                skinny_linear_reference(x, w, norm=norm, residual=r),
            ),
        )
        attempt(
            f"linear m={rows} gated",
            lambda x=x: error(
                skinny_linear(x, pair, gated="silu"), skinny_linear_reference(x, pair, gated="silu")
            ),
        )
    one = b.normal(1, k)
    eager = LinearTiles("gemv", 1, 4, 1024, 4, 2)

    def chain() -> float:
        """Each product reads what the one before wrote; a start that does not wait would read old numbers."""
        squares = [b.weight(k, k) for _ in range(4)]
        x, wanted, residual = one, one, b.normal(1, k)
        for turn in range(40):
            y = residual.clone()
            x = skinny_linear(x, squares[turn % 4], norm=norm, residual=y, out=y, tiles=eager)
            wanted = skinny_linear_reference(wanted, squares[turn % 4], norm=norm, residual=residual)
        return error(x, wanted)

    before = tuning.EARLY_STARTS
    tuning.EARLY_STARTS = before if b.smoke else frozenset({tuning.device_name(0)})
    attempt("chain of early starts", chain, 5e-2)
    tuning.EARLY_STARTS = before
    split = LinearTiles("tiled", 64, 64, 64, 4, 4, 7)
    x = b.normal(50, k)
    attempt("linear split 7", lambda: error(skinny_linear(x, w, tiles=split), skinny_linear_reference(x, w)))
    y = b.normal(77, 4096)
    attempt(
        "rms_norm", lambda: error(rms_norm(y, norm.weight, 1e-5), rms_norm_reference(y, norm.weight, 1e-5))
    )
    attempt("silu_mul", lambda: error(gated_mul(y, "silu"), gated_reference(y, "silu")))
    for model, dtype in (("8b", BF16), ("0.5b", torch.float8_e4m3fn)):
        heads, kv, dim, *_ = MODELS[model]
        packed = b.normal(50, heads + 2 * kv, dim)
        angles = torch.rand(100, dim // 2, device=b.device)
        slots = torch.randperm(60, device=b.device)[:50]
        slots[7] = -1
        positions = torch.randint(100, (50,), device=b.device)
        pools = [torch.zeros(60, kv, dim, device=b.device).to(dtype) for _ in range(4)]

        def rope() -> float:
            args = (*packed.split((heads, kv, kv), 1), angles.cos(), angles.sin(), positions, slots)
            a, r = rope_store(*args, *pools[:2]), rope_store_reference(*args, *pools[2:])
            return max(error(a, r), error(pools[0], pools[2]), error(pools[1], pools[3]))

        attempt(f"rope_store {model} {dtype}", rope, 1e-2 if dtype == BF16 else 5e-2)


def decode(b: Bench) -> None:
    for model in MODELS:
        heads, kv_heads, dim, *_ = MODELS[model]

        def calls(
            p: Paged, t: DecodeTiles, page: int, q: Tensor, kv: int = kv_heads
        ) -> list[Callable[[], Any]]:
            rows, heads, dim = q.shape
            scratch = split_scratch(rows, kv, t.splits, heads // kv, dim, b.device)
            out = torch.empty_like(q)
            return [
                lambda k=k, v=v: decode_attention(
                    q, k, v, p.table, p.seats, p.lengths,
                    page_size=page, scale=0.1, splits=t.splits, scratch=scratch, tiles=t, out=out,
                )
                for k, v in p.pools
            ]  # fmt: skip

        shapes = [
            (64, 4, 3),
            (64, 4, 4),
            (64, 4, 5),
            (32, 4, 4),
            (32, 4, 6),
            (32, 2, 4),
            (128, 4, 3),
            (128, 8, 4),
        ]
        batch = b.size(64, 2)
        p = Paged(b, model, [b.size(1024, 40)] * batch, 1, 4)
        q = b.normal(batch, heads, dim)
        tiles, us = b.quickest(
            f"decode {model} tiles",
            {(n, w, s): calls(p, DecodeTiles(n, w, s, 1), 1, q) for n, w, s in shapes},
        )
        b.log(
            f"  decode {model} batch {batch} context 1024: best tiles {tiles} {p.bytes / us / 1e6:.2f} TB/s"
        )
        for context, batches in ((1024, (1, 8, 32, 64, 128, 256)), (8192, (1, 8, 64))):
            for batch in batches:
                if b.late():
                    return
                batch = b.size(batch, 2)
                length = b.size(context, 40)
                bytes_ = batch * length * kv_heads * dim * 4
                layers = b.size(max(2, min(32, 500_000_000 // bytes_)), 2)
                p = Paged(b, model, [length] * batch, 1, layers)
                q = b.normal(batch, heads, dim)
                counts = [
                    c for c in (1, 2, 4, 8, 16, 32) if batch * kv_heads * c <= 1100 and c <= context // 64
                ]
                counts = counts[-4:] or [1]
                variants = {s: calls(p, DecodeTiles(*tiles, s, tiles[0]), 1, q) for s in counts}
                splits, us = b.quickest(f"decode {model} {context} x {batch} splits", variants)
                b.log(
                    f"  decode {model} {context:5} x {batch:3}: {us:8.1f} us {p.bytes / us / 1e6:.2f} TB/s, {splits} splits",
                    decode=model, context=context, batch=batch, us=us, tb_s=p.bytes / us / 1e6, splits=splits,
                )  # fmt: skip
                if batch in (1, 64) and context == 1024:
                    other = Paged(b, model, [length] * batch, 16, layers)
                    us = b.time(calls(other, DecodeTiles(*tiles, splits, tiles[0]), 16, q))
                    b.log(
                        f"    page 16: {us:8.1f} us {p.bytes / us / 1e6:.2f} TB/s",
                        decode=model,
                        page=16,
                        us=us,
                    )


def prefill(b: Bench) -> None:
    shapes = [
        (128, 64, 8, 3),
        (128, 128, 8, 2),
        (128, 128, 8, 3),
        (64, 64, 4, 3),
        (128, 64, 8, 4),
        (64, 128, 4, 2),
    ]
    for model in MODELS:
        heads, kv_heads, dim, *_ = MODELS[model]
        for new, before in ((8192, 0), (2048, 6144)):
            if b.late():
                return
            new, before = b.size(new, 150), b.size(before, 100)
            flop = 4 * heads * dim * (new * before + new * (new + 1) / 2)
            q = b.normal(new, heads, dim)
            starts = torch.tensor([0, new], dtype=torch.int32, device=b.device)
            for page in (1, 16):
                p = Paged(b, model, [before + new], page, 1)
                out = torch.empty_like(q)
                use = shapes if page == 1 else [b.best.get(f"prefill {model} {new}+{before}", shapes[0])]
                key = f"prefill {model} {new}+{before}" + ("" if page == 1 else f" page {page}")
                tiles, us = b.quickest(
                    key,
                    {
                        t: [
                            lambda t=t, p=p, page=page: prefill_attention(
                                q, *p.pools[0], p.table, p.seats, starts, p.lengths, out=out,
                                page_size=page, max_new=new, scale=0.1, tiles=PrefillTiles(*t),
                            )
                        ] * 3
                        for t in use
                    },
                )  # fmt: skip
                b.log(
                    f"  {key}: {us:8.1f} us {flop / us / 1e6:6.1f} TFLOP/s {tiles}",
                    prefill=key,
                    us=us,
                    tiles=tiles,
                )
            if before:
                continue
            k, v = b.normal(new, kv_heads, dim), b.normal(new, kv_heads, dim)
            tiles, us = b.quickest(
                f"fresh {model} {new}",
                {
                    t: [
                        lambda t=t, k=k, v=v: fresh_attention(
                            q, k, v, starts, max_new=new, scale=0.1, out=out, tiles=PrefillTiles(*t)
                        )
                    ] * 3
                    for t in shapes
                },
            )  # fmt: skip
            b.log(
                f"  fresh {model} {new}: {us:8.1f} us {flop / us / 1e6:6.1f} TFLOP/s {tiles}",
                fresh=model,
                us=us,
            )
            if b.smoke:
                continue
            from torch.nn.attention import SDPBackend, sdpa_kernel

            for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):

                def library(backend: Any = backend, k: Tensor = k, v: Tensor = v) -> Tensor:
                    with sdpa_kernel(backend):
                        return F.scaled_dot_product_attention(
                            q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None],
                            is_causal=True, scale=0.1, enable_gqa=True,
                        )  # fmt: skip

                time_us = b.try_time(f"torch {backend}", [library] * 3)
                if time_us:
                    b.log(
                        f"  torch {backend.name} {model} {new}: {time_us:8.1f} us {flop / time_us / 1e6:6.1f} TFLOP/s",
                        library=backend.name, model=model, us=time_us,
                    )  # fmt: skip


def linear_variants(rows: int, n: int, k: int, gated: bool) -> list[LinearTiles]:
    if rows == 1:
        half = 2 if gated else 1
        shapes = [(4, 1024, 4, 1), (4, 1024, 4, 2), (8, 512, 4, 2), (2, 2048, 4, 1), (8, 1024, 8, 1), (16, 256, 4, 2), (4, 512, 2, 2), (16, 512, 8, 1)]  # fmt: skip
        shapes += (
            [(32, 128, 4, 1), (8, 256, 2, 2)]
            if k < 4096
            else [(2, 1024, 4, 5), (2, 2048, 8, 2), (4, 1024, 8, 2)]
        )
        return [
            LinearTiles("gemv", 1, max(1, bn // half), bk, w, u)
            for bn, bk, w, u in shapes
            if k % bk == 0 or k < 8192
        ]
    width = max(16, 1 << (rows - 1).bit_length())
    sizes = {
        16: [(64, 128, 4, 4), (64, 256, 4, 3), (64, 128, 4, 6), (128, 128, 8, 4), (32, 256, 4, 4)],
        32: [(64, 128, 4, 4), (64, 128, 4, 5), (128, 128, 8, 4)],
        64: [(64, 128, 4, 4), (128, 64, 4, 4), (128, 128, 8, 3)],
        128: [(128, 64, 8, 4), (128, 64, 4, 4), (64, 128, 4, 3)],
        256: [(128, 64, 8, 4), (256, 64, 8, 4)],
    }[width]
    found = []
    for bn, bk, warps, stages in sizes:
        bms = (128, 256) if width == 256 and bn == 128 else (min(width, 128),)
        for bm in bms:
            if gated and bm * bn > 128 * 128:
                continue  # two accumulators and two tiles of weights: more than a multiprocessor holds
            if gated:
                bk = min(bk, 64)
            if k % bk:
                bk = 128 if k % 128 == 0 else 64
            tiles = -(-n // bn) * -(-rows // bm)
            counts = [c for c in (1, 2, 4, 8, 16) if c == 1 or (tiles * c <= 600 and c * bk * 2 <= k)]
            counts = [c for c in counts if tiles * c >= 100] or counts[-1:]
            found += [LinearTiles("tiled", bm, bn, bk, warps, stages, c) for c in counts]
    return list(dict.fromkeys(found))[:14]


def linear(b: Bench) -> None:
    shapes = []
    for model in MODELS:
        heads, kv, dim, hidden, inner, vocabulary = MODELS[model]
        shapes += [
            (model, "qkv", (heads + 2 * kv) * dim, hidden, False),
            (model, "out", hidden, heads * dim, False),
            (model, "gate-up", inner, hidden, True),
            (model, "down", hidden, inner, False),
            (model, "head", vocabulary, hidden, False),
        ]
    scratch = linear_scratch(b.device, 1 << 24)
    for rows in ROWS:
        for model, name, n, k, gated in shapes:
            if b.late():
                return
            n = b.size(n, 256)
            weights = [
                b.normal(n * (1 + gated), k) for _ in range(b.size(max(2, 300_000_000 // (n * k * 2)), 2))
            ]
            x = b.normal(rows, k)
            bytes_ = weights[0].numel() * 2
            flop = 2 * rows * weights[0].numel()
            norm = RowNorm(b.normal(k), 1e-5) if rows == 1 and name in ("qkv", "gate-up") else None
            kind = "silu" if gated else None
            if rows in (8, 4, 2):  # the same tiles serve all small batches
                variants = [b.best[f"linear {model} {name} m=16"]]
            else:
                variants = linear_variants(rows, n, k, gated)
            tiles, us = b.quickest(
                f"linear {model} {name} m={rows}",
                {
                    t: [
                        lambda w=w, t=t, x=x: skinny_linear(x, w, norm=norm, gated=kind, scratch=scratch, tiles=t)
                        for w in weights
                    ]
                    for t in variants
                },
            )  # fmt: skip
            plain = b.time([lambda w=w, x=x: F.linear(x, w) for w in weights])
            b.log(
                f"  m={rows:3} {model:4} {name:7}: own {us:7.1f} us {bytes_ / us / 1e6:.2f} TB/s {flop / us / 1e6:5.0f} TFLOP/s"
                f" | torch {plain:7.1f} us {bytes_ / plain / 1e6:.2f} TB/s{' (no gate)' if gated else ''}"
                f" | {tiles.block_m},{tiles.block_n},{tiles.block_k} w{tiles.warps} s{tiles.stages} x{tiles.splits}",
                linear=name, model=model, rows=rows, us=us, torch_us=plain, tiles=tiles,
            )  # fmt: skip
            del weights


def small(b: Bench) -> None:
    for model in MODELS:
        heads, kv, dim, hidden, inner, _ = MODELS[model]
        for rows in (1, 64, 256, 8192):
            if b.late():
                return
            rows = b.size(rows, 4)
            copies = b.size(max(2, min(20, 200_000_000 // (rows * inner * 6))), 2)
            weight = b.normal(hidden)
            xs, rs = (
                [b.normal(rows, hidden) for _ in range(copies)],
                [b.normal(rows, hidden) for _ in range(copies)],
            )
            gates = [b.normal(rows, 2 * inner) for _ in range(copies)]
            packed = [b.normal(rows, heads + 2 * kv, dim) for _ in range(copies)]
            angles = torch.rand(max(rows, 64), dim // 2, device=b.device)
            at = torch.arange(rows, device=b.device)
            pool_k, pool_v = b.normal(rows, kv, dim), b.normal(rows, kv, dim)
            cos, sin = angles.cos(), angles.sin()
            kinds: dict[str, tuple[float, list[Callable[[], Any]]]] = {
                "rms_norm": (4.0 * rows * hidden, [lambda x=x: rms_norm(x, weight, 1e-5) for x in xs]),
                "add_rms_norm": (
                    8.0 * rows * hidden,
                    [lambda x=x, r=r: add_rms_norm(x, r, weight, 1e-5) for x, r in zip(xs, rs, strict=True)],
                ),
                "silu_mul": (6.0 * rows * inner, [lambda g=g: gated_mul(g, "silu") for g in gates]),
                "rope_store": (
                    4.0 * rows * (heads + 2 * kv) * dim,
                    [
                        lambda p=p: rope_store(*p.split((heads, kv, kv), 1), cos, sin, at, at, pool_k, pool_v)
                        for p in packed
                    ],
                ),
            }
            for name, (bytes_, calls) in kinds.items():
                us = b.try_time(name, calls)
                if us is not None:
                    b.log(
                        f"  {name:12} {model:4} m={rows:4}: {us:7.2f} us {bytes_ / us / 1e6:.2f} TB/s",
                        small=name, model=model, rows=rows, us=us,
                    )  # fmt: skip


def layer(b: Bench) -> None:
    """A whole decode layer as a chain, with the best tiles of this run, times the number of layers."""
    for model, depth in (("8b", 32), ("0.5b", 24)):
        heads, kv, dim, hidden, inner, vocabulary = MODELS[model]
        vocabulary = b.size(vocabulary, 256)
        copies = 8 if model == "8b" else 24
        inner_ = b.size(inner, 256)
        ws = [
            (b.weight((heads + 2 * kv) * dim, hidden), b.weight(hidden, heads * dim),
             b.weight(2 * inner_, hidden), b.weight(hidden, inner_))
            for _ in range(b.size(copies, 2))
        ]  # fmt: skip
        head = b.weight(vocabulary, hidden)
        norm = RowNorm(b.normal(hidden), 1e-5)
        scratch = linear_scratch(b.device, 1 << 24)
        angles = torch.rand(2048, dim // 2, device=b.device)
        cos, sin = angles.cos(), angles.sin()
        for batch, early, packed in itertools.product((1, 8, 32, 64, 128, 256), (False, True), (False, True)):
            if b.late():
                return
            batch = b.size(batch, 2)
            length = b.size(1024, 40)
            p = Paged(b, model, [length] * batch, 1, len(ws) if batch <= 32 else 4)
            class_ = 16 if 1 < batch <= 16 else batch
            tiles = {
                name: b.best.get(f"linear {model} {name} m={class_}")
                or linear_tiles(b.device, batch, n, k, BF16, name == "gate-up")
                for name, n, k in (
                    ("qkv", (heads + 2 * kv) * dim, hidden), ("out", hidden, heads * dim), ("gate-up", inner, hidden),
                    ("down", hidden, inner), ("head", vocabulary, hidden),
                )
            }  # fmt: skip
            tuning.EARLY_STARTS = frozenset({tuning.device_name(0)}) if early and not b.smoke else frozenset()
            usual = decode_tiles(b.device, batch, kv, dim, BF16)
            splits = b.best.get(f"decode {model} 1024 x {batch} splits", usual.splits)
            shape = b.best.get(f"decode {model} tiles", (usual.block_n, usual.warps, usual.stages))
            t = DecodeTiles(*shape, splits, shape[0] if splits != usual.splits else usual.shortest)
            parts = split_scratch(batch, kv, splits, heads // kv, dim, b.device)
            x = b.normal(batch, hidden)
            at = torch.full((batch,), 1023, dtype=torch.long, device=b.device)
            slots = p.table[:, length - 1].long()

            def linear_(name: str, x: Tensor, w: Tensor, tiles: Any = tiles, **more: Any) -> Tensor:
                return skinny_linear(x, w, tiles=tiles[name], scratch=scratch, **more)

            def step(
                w: tuple[Tensor, ...], pools: tuple[Tensor, Tensor], x: Tensor = x, p: Paged = p,
                t: DecodeTiles = t, parts: Any = parts, at: Tensor = at, slots: Tensor = slots,
                packed: bool = packed,
            ) -> None:  # fmt: skip
                alone = x.shape[0] == 1
                y = linear_("qkv", x, w[0], norm=norm)
                how: Any = {"page_size": 1, "scale": 0.1, "splits": t.splits, "tiles": t, "scratch": parts}
                if packed:
                    o = packed_decode_attention(
                        y, heads, Turning(cos, sin), slots, *pools, p.table, p.seats, p.lengths, **how
                    )
                else:
                    q, k, v = y.unflatten(1, (-1, dim)).split((heads, kv, kv), 1)
                    q = rope_store(q, k, v, cos, sin, at, slots, *pools)
                    o = decode_attention(q, *pools, p.table, p.seats, p.lengths, **how)
                if alone:
                    linear_("out", o.flatten(1), w[1], residual=x, out=x)
                    h = linear_("gate-up", x, w[2], norm=norm, gated="silu")
                    linear_("down", h, w[3], residual=x, out=x)
                else:
                    y = linear_("out", o.flatten(1), w[1])
                    h = linear_("gate-up", add_rms_norm(y, x, norm.weight, 1e-5), w[2], gated="silu")
                    add_rms_norm(linear_("down", h, w[3]), x, norm.weight, 1e-5)

            calls = [lambda i=i: step(ws[i], p.pools[i % len(p.pools)]) for i in range(len(ws))]
            us = b.try_time(f"layer {model} {batch}", calls)
            top = b.try_time("head", [lambda x=x: linear_("head", x, head)] * 4)
            if us is not None and top is not None:
                b.log(
                    f"  {model} batch {batch:3}{' early' if early else ''}{' packed' if packed else ''}: layer {us:7.1f} us, head {top:6.1f} us -> step {(us * depth + top) / 1e3:.3f} ms",
                    layer=model, batch=batch, early=early, packed=packed, us=us, head_us=top, step_ms=(us * depth + top) / 1e3,
                )  # fmt: skip
        tuning.EARLY_STARTS = frozenset()


PARTS = {
    "correct": correct, "small": small, "decode": decode, "prefill": prefill, "linear": linear, "layer": layer,
}  # fmt: skip


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    parts: Annotated[
        str, typer.Option(help="Which, in this order.")
    ] = "correct,small,decode,prefill,linear,layer",
    limit: Annotated[float, typer.Option(help="Seconds for all; what is left then is not measured.")] = 400,
    smoke: Annotated[bool, typer.Option(help="Few elements on a CPU.")] = False,
    models: Annotated[str, typer.Option(help=f"Of {', '.join(SHAPES)}.")] = "8b,0.5b",
    rows: Annotated[str, typer.Option(help="Row counts of linear.")] = "1,16,64,256,32,128,8,4,2",
) -> None:
    """Measure and print."""
    MODELS.clear()
    MODELS.update({name: SHAPES[name] for name in models.split(",")})
    ROWS[:] = [int(x) for x in rows.split(",")]
    b = Bench(out, smoke, limit)
    if not smoke:
        props = torch.cuda.get_device_properties(0)
        b.log(f"{props.name}, {props.multi_processor_count} multiprocessors, torch {torch.__version__}")
    for name in parts.split(","):
        begun = time.perf_counter()
        print(f"== {name}", flush=True)
        try:
            PARTS[name](b)
        except Exception:
            b.log(f"  {name} stopped: {traceback.format_exc(limit=-3)}", stopped=name)
        print(f"== {name}: {time.perf_counter() - begun:.0f} s", flush=True)
    for key, tiles in b.best.items():
        print(f"best {key}: {tiles}")


if __name__ == "__main__":
    typer.run(main)
