"""Log-probabilities of the engine's decode steps against plain torch in float32, beside those of plain torch in the model's own type.

python -m benchmarks.gpu.logits --model llama8b --rows 1,8,32,64,128,256      (random weights of the real shape)
python -m benchmarks.gpu.logits --model stdlib/tiny/weights --rows 1,8 --device cpu

Each batch writes some greedy tokens and gives its likeliest ones with their log-probabilities. Plain torch then reads the prompt and
what was written in one pass, for a few rows of the batch. The engine may be no farther from float32 than plain torch is, up to a
fifth (other sums, other roundings): exit code 1 otherwise. One JSON line a batch.
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.gpu.workload import SHAPES, prompt
from runtime import Engine
from runtime.attention.base import AttentionInputs, Span
from runtime.attention.plain import PlainAttention
from runtime.kv.store import KVStore
from runtime.models.decoder import Decoder
from runtime.models.load import load_model

TOP = 20  # tokens of a step that are compared
# of each prompt: its tokens, `TOP` ids of each step, their log-probabilities
Found = tuple[list[int], list[list[int]], Tensor]


class Plain:
    """Log-probabilities by plain torch."""

    def __init__(self, model: Decoder, page: int, device: str) -> None:
        self.model, self.page, self.device = model, page, device

    @torch.inference_mode()
    def __call__(self, ids: list[int], new: int) -> Tensor:
        """float32 [new, vocabulary]: what each of the last `new` ids was drawn from."""
        count = len(ids) - 1
        store = KVStore(self.model.spec, -(-count // self.page) + 1, self.page, self.model.dtype, self.device)
        slots = torch.arange(count, device=self.device)
        attention = PlainAttention(store)
        attention.plan(AttentionInputs([Span(0, count, 0, slots)], slots))
        hidden = self.model(torch.tensor(ids[:-1], device=self.device), slots, attention)
        return torch.log_softmax(self.model.logits(hidden[count - new :]).float(), -1)


def written(engine: Engine, prompts: list[list[int]], new: int, sampled: list[int]) -> list[Found]:
    """Of these rows of a batch."""
    sampling = {"temperature": 0, "max_new_tokens": new, "ignore_eos": True}
    answers = engine.generate(
        input_ids=prompts, sampling_params=sampling, return_logprob=True, top_logprobs_num=TOP
    )
    found: list[Found] = []
    for row in sampled:
        meta: dict[str, Any] = answers[row]["meta_info"]
        ids = [token for _, token, *_ in meta["output_token_logprobs"]]
        steps = meta["output_top_logprobs"]
        likely = [[token for _, token, *_ in step] for step in steps]
        values = torch.tensor([[value for value, *_ in step] for step in steps])
        found.append((prompts[row] + ids, likely, values))
    return found


def error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Root of the mean square of the difference."""
    return float((torch.cat(found) - torch.cat(wanted)).double().pow(2).mean().sqrt())


def main(
    model: Annotated[str, typer.Option(help=f"{', '.join(SHAPES)}, or a folder.")] = "llama8b",
    rows: Annotated[str, typer.Option(help="Batches.")] = "1,8,32,64,128,256",
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    new: Annotated[int, typer.Option(help="Tokens of each request.")] = 6,
    compared: Annotated[int, typer.Option(help="Requests of a batch that are compared.")] = 6,
    longest: Annotated[int, typer.Option(help="Prompt.")] = 1024,
    options: Annotated[str, typer.Option(help="More engine options, as JSON.")] = "{}",
) -> None:
    """Compare and print."""
    rng, batches = random.Random(5), [int(x) for x in rows.split(",")]
    chosen: dict[str, Any] = {"device": device, "dtype": "bfloat16", "skip_tokenizer_init": True}
    folder, load_format = Path(model), "auto"
    if model in SHAPES:
        folder = SHAPES[model].folder(Path(tempfile.mkdtemp()), model)
        load_format = "dummy"
        chosen |= {"load_format": "dummy", "context_length": 10240}
    own: dict[int, list[Found]] = {}
    with Engine(str(folder), **chosen, **json.loads(options)) as engine:
        vocabulary = SHAPES[model].vocabulary if model in SHAPES else 2000
        for batch in batches:
            prompts = [prompt(rng, rng.randint(longest // 8, longest), vocabulary) for _ in range(batch)]
            own[batch] = written(engine, prompts, new, rng.sample(range(batch), min(batch, compared)))
    narrow = load_model(folder, device=device, dtype="bfloat16", load_format=load_format)
    wide = load_model(folder, device=device, dtype="float32", load_format=load_format)
    for to, of in zip(wide.parameters(), narrow.parameters(), strict=True):
        to.data.copy_(of.data)
    reference, usual = Plain(wide, 16, device), Plain(narrow, 16, device)
    good = True
    for batch, found in own.items():
        values: list[list[Tensor]] = [[], [], []]
        for ids, likely, logprobs in found:
            at = torch.tensor(likely, device=device)
            values[0].append(logprobs)
            for to, path in zip(values[1:], (usual, reference), strict=True):
                to.append(path(ids, new).gather(1, at).cpu())
        ours, torchs = (error(v, values[2]) for v in values[:2])
        good &= ours <= 1.2 * torchs
        line = {"model": model, "rows": batch, "error": ours, "plain_torch": torchs, "ratio": ours / torchs}
        typer.echo(json.dumps(line))
    raise typer.Exit(0 if good else 1)


if __name__ == "__main__":
    typer.run(main)
