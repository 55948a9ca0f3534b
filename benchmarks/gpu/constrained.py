"""What constraints cost: 64 requests without one, with one schema, with 64 different ones; and what forced text saves.

    python -m benchmarks.gpu.constrained llama8b --tokenizer FOLDER --out results.jsonl
    python -m benchmarks.gpu.constrained tiny --batch 4 --tokens 32             (a smoke test on the embedded model)

Prompts of 128 random tokens, temperature 1, random weights. The arms of the e test: `free`, one schema (first and second
use), 64 schemas that were never seen and the same again; then the character template of SGLang's README with and without
jump-forward, end to end. Floor: the constrained arms are as fast as the free one.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.gpu.workload import SHAPES, prompt
from benchmarks.jump_forward import CHARACTER

TEXT = {"type": "string"}
SCHEMA: dict[str, Any] = {
    "type": "array",
    "minItems": 4,  # no answer ends long before the 256 tokens, and all can be closed within them
    "items": {
        "type": "object",
        "additionalProperties": False,
        "required": ["id", "name", "kind", "score", "tags", "address"],
        "properties": {
            "id": {"type": "integer", "minimum": 0, "maximum": 99999},
            "name": {**TEXT, "maxLength": 32},
            "kind": {"enum": ["person", "company", "place", "event", "product"]},
            "score": {"type": "number"},
            "tags": {"type": "array", "items": {**TEXT, "maxLength": 16}, "minItems": 1, "maxItems": 4},
            "address": {
                "type": "object",
                "additionalProperties": False,
                "required": ["street", "city", "zip"],
                "properties": {
                    "street": {**TEXT, "maxLength": 40},
                    "city": {**TEXT, "maxLength": 24},
                    "zip": {**TEXT, "pattern": "^[0-9]{5}$"},
                },
            },
        },
    },
}


def distinct(i: int) -> str:
    """The schema with one more field, whose name and length nobody else has."""
    schema = json.loads(json.dumps(SCHEMA))
    schema["items"]["properties"][f"field_{i}"] = {**TEXT, "maxLength": 12 + i % 7}
    schema["items"]["required"].append(f"field_{i}")
    return json.dumps(schema)


def main(
    model: Annotated[str, typer.Argument(help=f"{', '.join(SHAPES)}, or tiny.")],
    tokenizer: Annotated[Path | None, typer.Option(help="Folder with tokenizer.json.")] = None,
    batch: Annotated[int, typer.Option(help="Requests at once.")] = 64,
    tokens: Annotated[int, typer.Option(help="Outputs of each.")] = 256,
    out: Annotated[Path | None, typer.Option(help="JSON lines go there.")] = None,
    options: Annotated[str, typer.Option(help="More engine options, as JSON.")] = "{}",
    arms: Annotated[str, typer.Option(help="schemas, jump, or both.")] = "schemas,jump",
) -> None:
    """Measure and print JSON lines."""
    import torch

    from runtime import Engine

    common: dict[str, Any] = {"model": model, "batch": batch}
    if torch.cuda.is_available():
        common["card"] = torch.cuda.get_device_name()
    chosen: dict[str, Any] = json.loads(options)
    if model in SHAPES:
        if tokenizer is None:
            raise typer.BadParameter(f"{model} needs --tokenizer")
        folder = SHAPES[model].folder(Path(tempfile.mkdtemp()), model)
        for file in tokenizer.iterdir():
            shutil.copy(file, folder)
        chosen |= {"load_format": "dummy", "dtype": "bfloat16", "context_length": 4096}
        chosen["model_path"] = str(folder)

    def log(**fields: Any) -> None:
        line = json.dumps({**common, **fields})
        print(line, flush=True)
        if out is not None:
            with out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def run(engine: Any, prompts: list[list[int]], params: Any) -> tuple[float, list[dict[str, Any]]]:
        engine.flush_cache()
        began = time.perf_counter()
        answers = engine.generate(input_ids=prompts, sampling_params=params)
        return time.perf_counter() - began, answers

    rng = random.Random(3)
    if "schemas" in arms:
        with Engine(**chosen) as engine:
            size = engine.get_server_info()["vocab_size"]
            prompts = [prompt(rng, 128, size - 1000) for _ in range(batch)]
            base = {"temperature": 1.0, "max_new_tokens": tokens, "ignore_eos": True}
            run(engine, prompts, base)
            free = 0.0
            for arm, fields in (
                ("free", [base] * batch),
                ("free", [base] * batch),
                ("schema, first use", [{**base, "json_schema": json.dumps(SCHEMA)}] * batch),
                ("schema", [{**base, "json_schema": json.dumps(SCHEMA)}] * batch),
                ("64 new schemas", [{**base, "json_schema": distinct(i)} for i in range(batch)]),
                ("64 seen schemas", [{**base, "json_schema": distinct(i)} for i in range(batch)]),
                ("64 seen schemas", [{**base, "json_schema": distinct(i)} for i in range(batch)]),
                ("free", [base] * batch),
            ):
                s, answers = run(engine, prompts, fields)
                made = sum(a["meta_info"]["completion_tokens"] for a in answers)
                drawn = sum(a["meta_info"]["completion_tokens_wo_jump_forward"] for a in answers)
                rate = made / s
                free = rate if arm == "free" else free
                log(
                    test="e", arm=arm, s=s, tokens=made, drawn=drawn, tokens_per_s=rate, of_free=rate / free,
                    sample=answers[0]["text"][:120],
                )  # fmt: skip
    if "jump" in arms:
        told: dict[tuple[bool, int], float] = {}
        for off in (False, True):
            with Engine(**chosen, disable_regex_jump_forward=off) as engine:
                size = engine.get_server_info()["vocab_size"]
                for count in (1, 32):
                    prompts = [prompt(rng, 128, size - 1000) for _ in range(count)]
                    params = {"temperature": 1.0, "max_new_tokens": 300, "regex": CHARACTER}
                    seeds = [
                        [{**params, "seed": 1000 * repeat + i} for i in range(count)] for repeat in range(4)
                    ]  # no request comes twice, or all of it would be guessed
                    run(engine, prompts, seeds[3])
                    s, answers = min((run(engine, prompts, seeds[k]) for k in range(3)), key=lambda x: x[0])
                    told[off, count] = s
                    made = sum(a["meta_info"]["completion_tokens"] for a in answers)
                    drawn = sum(a["meta_info"]["completion_tokens_wo_jump_forward"] for a in answers)
                    log(test="jump", jump_forward=not off, requests=count, s=s, tokens=made, drawn=drawn)
        for count in (1, 32):
            log(test="jump ratio", requests=count, as_fast=told[True, count] / told[False, count])


if __name__ == "__main__":
    typer.run(main)
