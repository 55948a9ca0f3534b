"""What each sampler takes for a batch, and whether they draw the same tokens.

python -m benchmarks.gpu.samplers --out FOLDER [--backends triton,flashinfer,torch] [--seconds 60]

One line for each vocabulary, batch and way to cut: microseconds of a call (the median of calls that are queued alone, logits
made anew before each), and the share of rows whose token is that of the first backend. Lines go to FOLDER/samplers.jsonl too.
`--smoke` runs the same code with few elements, on a CPU by the Triton interpreter.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from runtime.sampling.sampler import Sampler

# temperature, top_k, top_p, min_p
CUTS = {
    "no cut": (1.0, 0, 1.0, 0.0),
    "top-k 50": (1.0, 50, 1.0, 0.0),
    "top-p 0.9": (1.0, 0, 0.9, 0.0),
    "top-k 20, top-p 0.8": (0.7, 20, 0.8, 0.0),
    "min-p 0.05": (1.0, 0, 1.0, 0.05),
    "half of the rows top-p 0.9": (1.0, 0, 0.9, 0.0),
}


def fields_of(cut: str, rows: int) -> np.ndarray:
    fields = np.array([CUTS[cut]] * rows, dtype=np.float64)
    if cut.startswith("half"):
        fields[::2] = CUTS["no cut"]
    return fields


def main(
    out: Annotated[Path, typer.Option(help="Folder of samplers.jsonl.")],
    backends: Annotated[str, typer.Option(help="Compared with the first one.")] = "triton,flashinfer,torch",
    seconds: Annotated[float, typer.Option(help="Stop after the line under way then.")] = 60.0,
    repeats: int = 20,
    smoke: bool = False,
) -> None:
    if smoke:
        os.environ["TRITON_INTERPRET"] = "1"
    from runtime.sampling.select import select_sampler

    device = torch.device("cpu" if smoke else "cuda")
    began = time.perf_counter()
    samplers = {}
    for name in backends.split(","):
        start = time.perf_counter()
        samplers[name] = select_sampler(name, device)
        print(f"{name}: ready in {time.perf_counter() - start:.1f} s", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    end = time.perf_counter() + seconds
    with (out / "samplers.jsonl").open("a") as file:
        for columns in (300,) if smoke else (128256, 151936):
            for rows in (3,) if smoke else (1, 16, 64, 256):
                logits = torch.randn(rows, columns, device=device).mul_(3).to(torch.bfloat16)
                for cut in CUTS:
                    if time.perf_counter() > end:
                        print("out of time", flush=True)
                        return
                    line = {"vocabulary": columns, "rows": rows, "cut": cut}
                    line |= compare(samplers, logits, fields_of(cut, rows), repeats)
                    print(json.dumps(line), flush=True)
                    file.write(json.dumps(line) + "\n")
                    file.flush()
    print(f"done in {time.perf_counter() - began:.0f} s")


def compare(
    samplers: dict[str, Sampler], logits: Tensor, fields: np.ndarray, repeats: int
) -> dict[str, float]:
    u = np.random.default_rng(1).random(len(fields))
    packed = torch.from_numpy(np.stack((*fields.T, u))).to(logits.device)
    out: dict[str, float] = {}
    first: Tensor | None = None
    for name, sampler in samplers.items():
        spans = []
        for _ in range(repeats + 2):  # two that compile
            own = logits.clone()
            span, tokens = timed(sampler, own, packed, fields)
            spans.append(span)
        first = tokens if first is None else first
        out[f"{name} us"] = round(statistics.median(spans[2:]), 1)
        out[f"{name} same"] = round(float((tokens == first).float().mean()), 4)
    return out


def timed(sampler: Sampler, logits: Tensor, packed: Tensor, fields: np.ndarray) -> tuple[float, Tensor]:
    """Microseconds until its result is there, what the host takes to queue it included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    tokens, _ = sampler(logits, packed, fields)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e6, tokens


if __name__ == "__main__":
    typer.run(main)
