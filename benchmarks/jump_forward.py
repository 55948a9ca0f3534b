"""What forced tokens are worth: the same constrained requests with and without jump-forward, in one run.

    python benchmarks/jump_forward.py

The embedded model fills in a character record (a template: most of it is fixed) and a JSON object; batch 1 and 32, greedy.
The floor of a forced run is one forward pass over its tokens, which costs about one decode step as long as a step is bound by
reading the weights.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import sglc as sgl

RESULTS = Path(__file__).parent / "results" / "jump_forward.json"
WORDS = r"[\w ]{1,16}"
CHARACTER = (
    rf'\{{\n    "name": "{WORDS}",\n    "house": "(Gryffindor|Slytherin|Ravenclaw|Hufflepuff)",\n'
    r'    "blood status": "(Pure-blood|Half-blood|Muggle-born)",\n'
    r'    "occupation": "(student|teacher|auror|ministry of magic|death eater)",\n'
    rf'    "wand": \{{\n        "wood": "{WORDS}",\n        "core": "{WORDS}",\n'
    r'        "length": [0-9]{1,2}\.[0-9]{0,2}\n    \},\n    "alive": "(Alive|Deceased)",\n'
    rf'    "patronus": "{WORDS}"\n\}}'
)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 16},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "address": {
            "type": "object",
            "properties": {
                "street": {"type": "string", "maxLength": 16},
                "city": {"enum": ["Paris", "Rome", "Tokyo"]},
            },
            "required": ["street", "city"],
            "additionalProperties": False,
        },
        "married": {"type": "boolean"},
    },
    "required": ["name", "age", "address", "married"],
    "additionalProperties": False,
}
CASES: dict[str, dict[str, Any]] = {
    "character template (regex)": {"regex": CHARACTER},
    "person (JSON schema)": {"json_schema": json.dumps(SCHEMA)},
}


def timed(engine: Any, prompts: list[str], params: dict[str, Any], repeats: int) -> tuple[float, int, int]:
    """Seconds of the fastest repeat, outputs and drawn ones of one."""
    best, told = float("inf"), []
    for _ in range(repeats):
        engine.flush_cache()
        begin = time.perf_counter()
        told = [a["meta_info"] for a in engine.generate(prompts, params)]
        best = min(best, time.perf_counter() - begin)
    outputs = sum(t["completion_tokens"] for t in told)
    return best, outputs, sum(t["completion_tokens_wo_jump_forward"] for t in told)


def main(
    repeats: Annotated[int, typer.Option(help="Of each measurement; the fastest counts.")] = 5,
    save: Annotated[bool, typer.Option(help="Write benchmarks/results/jump_forward.json.")] = True,
) -> None:
    """Measure both ways and print a table."""
    table = Table("request", "batch", "tokens", "drawn", "forced", "seconds", "without", "ratio")
    rows = []
    with sgl.Engine() as jumping, sgl.Engine(disable_regex_jump_forward=True) as drawing:
        for name, constraint in CASES.items():
            for batch in (1, 32):
                prompts = [f"Character {i}: fill in the record.\n" for i in range(batch)]
                params = {**constraint, "max_new_tokens": 300, "temperature": 0}
                for engine in (jumping, drawing):
                    timed(engine, prompts, params, 1)  # compiles, and learns what is forced
                fast, outputs, drawn = timed(jumping, prompts, params, repeats)
                slow, _, _ = timed(drawing, prompts, params, repeats)
                row = {
                    "request": name,
                    "batch": batch,
                    "tokens": outputs,
                    "drawn": drawn,
                    "ratio": slow / fast,
                }
                rows.append({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()})
                share = f"{1 - drawn / outputs:.0%}"
                table.add_row(
                    name,
                    str(batch),
                    str(outputs),
                    str(drawn),
                    share,
                    f"{fast:.3f}",
                    f"{slow:.3f}",
                    f"{slow / fast:.2f}x",
                )
    Console().print(table)
    if save:
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
