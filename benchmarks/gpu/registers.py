"""What a compiler makes of the kernels, without a GPU: registers, spills and shared memory of a decode step's launches.

    python -m benchmarks.gpu.registers [--models 8b] [--rows 1,8,64]

Each wrapper is called with empty tensors on the CPU; what it would launch is compiled for Hopper instead. Exit code 1 if a
launch does not compile. Another Triton is tried by putting it first on PYTHONPATH.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

os.environ.pop("TRITON_INTERPRET", None)  # before triton is loaded

import torch
import triton
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from runtime.kernels import tuning
from runtime.kernels.argmax import argmax
from runtime.kernels.argmax_ranks import WORDS, argmax_ranks
from runtime.kernels.decode import decode_attention, packed_decode_attention
from runtime.kernels.kv_store import store_kv
from runtime.kernels.mla_decode import mla_decode_attention
from runtime.kernels.norm import add_rms_norm
from runtime.kernels.prefill import fresh_attention, prefill_attention
from runtime.kernels.rope_store import Turning, rope_store
from runtime.kernels.skinny import RowNorm, linear_scratch, skinny_linear
from runtime.kernels.sum_ranks import TURNS, Mailboxes, sum_ranks

SHAPES = {  # heads, KV heads, head size, hidden, inner, vocabulary
    "8b": (32, 8, 128, 4096, 14336, 128256),
    "8b/2": (16, 4, 128, 4096, 7168, 64128),
    "0.5b": (14, 2, 64, 896, 4864, 151936),
}
LATENTS = {"v2-lite": 16, "v2": 128}  # heads over latents of 512 with rotated keys of 64
_CARD = "NVIDIA H200"
_TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float8_e5m2: "fp8e5",
    torch.float8_e4m3fn: "fp8e4nv",
}


@dataclass(frozen=True)
class Launch:
    """A kernel with what it was called with."""

    name: str
    kernel: Any
    given: dict[str, Any]


class Recorder:
    """Stands where a kernel is launched and keeps the launch."""

    def __init__(self) -> None:
        self.name = ""
        self.launches: list[Launch] = []

    def __call__(self, kernel: Any, grid: Any) -> Callable[..., None]:
        def launch(*values: Any, **more: Any) -> None:
            given = {**dict(zip(kernel.arg_names, values, strict=False)), **more}
            self.launches.append(Launch(self.name, kernel, given))

        return launch


def compiled(launch: Launch) -> dict[str, Any]:
    """Compile for Hopper as Triton would at the launch."""
    kernel = launch.kernel
    fixed = {p.name for p in kernel.params if p.is_constexpr}
    loose = {*(kernel.do_not_specialize or ())}
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        value = launch.given[name]
        if name in fixed or value is None or (type(value) is int and value == 1 and name not in loose):
            signature[name], constants[(i,)] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name], attributes[(i,)] = "*" + _TYPES[value.dtype], [["tt.divisibility", 16]]
        elif isinstance(value, int):
            signature[name] = "i32" if abs(value) < 1 << 31 else "i64"
            if value % 16 == 0 and name not in loose:
                attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32"
    options = {k: v for k, v in launch.given.items() if k not in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    found = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assembler = Path(nvidia.__file__).parent / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as place:
        binary = Path(place) / "kernel.cubin"
        binary.write_bytes(found.asm["cubin"])
        told = subprocess.run(
            [assembler.with_name("cuobjdump"), "--dump-resource-usage", binary],
            capture_output=True,
            text=True,
        ).stdout
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", told)}
    return {
        "registers": numbers.get("REG"),
        "spilled": numbers.get("STACK"),
        "shared": found.metadata.shared,
    }


def latent_calls(model: str, rows: int) -> dict[str, Callable[[], Any]]:
    """What a layer over latents launches of its own, for so many rows."""
    pool, heads = torch.empty(64, 1, 576, dtype=torch.bfloat16), LATENTS[model]
    table = torch.zeros(rows, 1024, dtype=torch.int32)
    seats, lengths = torch.zeros(rows, dtype=torch.int32), torch.ones(rows, dtype=torch.int32)
    q, q_rope = (torch.empty(rows, heads, n, dtype=torch.bfloat16) for n in (512, 64))
    slots = torch.zeros(rows, dtype=torch.int64)
    return {
        "store": lambda: store_kv(torch.empty(rows, 1, 576, dtype=torch.bfloat16), None, pool, pool, slots),
        "attention": lambda: mla_decode_attention(
            q, q_rope, pool.squeeze(1), table, seats, lengths, page_size=1, scale=0.1
        ),
    }


def calls(model: str, rows: int) -> dict[str, Callable[[], Any]]:
    """The launches of one layer and of the head, over so many rows."""
    if model in LATENTS:
        return latent_calls(model, rows)
    heads, kv_heads, dim, hidden, inner, vocabulary = SHAPES[model]
    half = torch.bfloat16

    def empty(*shape: int, dtype: torch.dtype = half) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    x, weight = empty(rows, hidden), empty(hidden)
    norm = RowNorm(weight, 1e-5) if rows == 1 else None
    scratch = linear_scratch(x.device)
    pool_k, pool_v = empty(64, kv_heads, dim), empty(64, kv_heads, dim)
    table = torch.zeros(rows, 1024, dtype=torch.int32)
    seats, lengths = torch.zeros(rows, dtype=torch.int32), torch.ones(rows, dtype=torch.int32)
    slots = torch.zeros(rows, dtype=torch.int64)
    angles = torch.zeros(64, dim // 2)
    starts = torch.tensor([0, rows], dtype=torch.int32)
    mail = Mailboxes(
        1,
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(4 + TURNS, dtype=torch.int32),
        512,
        hidden // 2,
    )
    q, k, v = empty(rows, heads + 2 * kv_heads, dim).split((heads, kv_heads, kv_heads), 1)
    paged: dict[str, Any] = {"page_size": 1, "scale": 0.1}
    pages = (pool_k, pool_v, table, seats, lengths)

    return {
        "norm": lambda: add_rms_norm(x, x.clone(), weight, 1e-5),
        "ranks": lambda: sum_ranks(x, x.clone(), weight, 1e-5, mail=mail),
        "qkv": lambda: skinny_linear(
            x, empty((heads + 2 * kv_heads) * dim, hidden), norm=norm, scratch=scratch
        ),
        "out": lambda: skinny_linear(empty(rows, heads * dim), empty(hidden, heads * dim), scratch=scratch),
        "gate-up": lambda: skinny_linear(
            x, empty(2 * inner, hidden), norm=norm, gated="silu", scratch=scratch
        ),
        "down": lambda: skinny_linear(empty(rows, inner), empty(hidden, inner), scratch=scratch),
        "head": lambda: skinny_linear(x, empty(vocabulary, hidden), scratch=scratch),
        "store": lambda: store_kv(k, v, pool_k, pool_v, slots),
        "rope": lambda: rope_store(q, k, v, angles, angles, slots, slots, pool_k, pool_v),
        "attention": lambda: decode_attention(q.contiguous(), *pages, **paged),
        "attention, packed": lambda: packed_decode_attention(
            empty(rows, (heads + 2 * kv_heads) * dim), heads, Turning(angles, angles), slots, *pages, **paged
        ),
        "attention, packed, window of 1": lambda: packed_decode_attention(
            empty(rows, (heads + 2 * kv_heads) * dim), heads, Turning(angles, angles), slots, *pages, window=1, **paged
        ),
        "prefill": lambda: prefill_attention(
            q.contiguous(), *pages[:3], seats[:1], starts, lengths[:1], max_new=rows, **paged
        ),
        "prefill of rows": lambda: fresh_attention(
            q.contiguous(), k.contiguous(), v.contiguous(), starts, max_new=rows, scale=0.1
        ),
        "argmax": lambda: argmax(empty(rows, vocabulary)),
        "argmax of ranks": lambda: argmax_ranks(torch.zeros(rows), slots, 0, mail=replace(mail, words=WORDS)),
    }  # fmt: skip


def main(
    models: Annotated[str, typer.Option(help=f"Of {', '.join([*SHAPES, *LATENTS])}.")] = "8b,0.5b,v2-lite",
    rows: Annotated[str, typer.Option(help="Rows of a step.")] = "1,8,64",
    only: Annotated[str, typer.Option(help="Launches whose names contain this.")] = "",
) -> None:
    """Compile and print a table."""
    recorder = Recorder()
    JITFunction.__getitem__ = lambda kernel, grid: recorder(kernel, grid)  # type: ignore[method-assign]
    tuning.device_name.cache_clear()
    tuning._name = lambda _: _CARD
    tuning.processors = lambda _: 132  # type: ignore[assignment]
    with torch.device("cpu"):
        for model in models.split(","):
            for count in (int(x) for x in rows.split(",")):
                for name, call in calls(model, count).items():
                    if only in name:
                        recorder.name = f"{model}, {count} rows: {name}"
                        call()

    def attempt(launch: Launch) -> dict[str, Any] | str:
        try:
            return compiled(launch)
        except Exception as error:
            while error.__cause__ is not None:
                error = error.__cause__  # type: ignore[assignment]
            return str(error).splitlines()[0][:80]

    table = Table("launch", "kernel", "registers", "spilled, bytes", "shared, bytes")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(attempt, recorder.launches))
    for launch, found in zip(recorder.launches, results, strict=True):
        cells = [found] if isinstance(found, str) else [str(v) for v in found.values()]
        table.add_row(launch.name, launch.kernel.__name__, *cells)
    Console(width=120).print(f"Triton {triton.__version__}", table)
    failed = [
        launch.name
        for launch, found in zip(recorder.launches, results, strict=True)
        if isinstance(found, str)
    ]
    if failed:
        print("does not compile:", *failed, sep="\n  ", file=sys.stderr)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
