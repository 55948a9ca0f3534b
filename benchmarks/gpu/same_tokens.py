"""The engine on a CUDA device against the CPU: the same greedy tokens in float32, and the speed of both.

python -m benchmarks.gpu.same_tokens --model stdlib/tiny/weights
"""

from __future__ import annotations

import json
import time
from typing import Annotated

import torch
import typer

from runtime import Engine

QUESTIONS = [f"Q: What is the capital of {c}?\nA:" for c in ("France", "Japan", "Italy", "Peru", "Kenya")] + [
    f"{a} + {b} =" for a, b in ((12, 35), (48, 27), (91, 8))
]


def main(
    model: Annotated[str, typer.Option(help="Model folder.")],
    tokens: Annotated[int, typer.Option(help="New tokens of each request.")] = 64,
) -> None:
    """Compare and print one JSON line."""
    if not torch.cuda.is_available():
        raise SystemExit("this script needs a CUDA device")
    sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    texts, rates = {}, {}
    for device in ("cpu", "cuda"):
        with Engine(model, device=device, dtype="float32", max_total_tokens=65536) as engine:
            engine.generate(QUESTIONS[0], sampling)
            engine.flush_cache()
            begun = time.perf_counter()
            texts[device] = [r["text"] for r in engine.generate(QUESTIONS, sampling)]
            rates[device] = len(QUESTIONS) * tokens / (time.perf_counter() - begun)
    same = texts["cpu"] == texts["cuda"]
    typer.echo(json.dumps({"device": torch.cuda.get_device_name(), "equal": same, "tokens_per_s": rates}))
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    typer.run(main)
