"""What forced and guessed tokens are worth: the same constrained requests drawn token by token, with forced tokens appended, and
with likely ones guessed as well, in one run.

    python benchmarks/jump_forward.py

The embedded model fills in a character record (a template: most of it is fixed) and a JSON object; batch 1 and 32. No request
comes twice: what is guessed is what other answers went on with. The floor of a forced or guessed run is one forward pass over
its tokens, which costs about one decode step as long as a step is bound by reading the weights.
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


ENGINES: dict[str, dict[str, Any]] = {
    "drawn": {"disable_regex_jump_forward": True},
    "forced": {"constrained_guesses": 0},
    "guessed": {"constrained_guesses": 8},
}


def timed(
    engine: Any, batch: int, params: dict[str, Any], repeats: range
) -> tuple[float, int, int, list[str]]:
    """Seconds of all repeats, outputs, and how many of them took a pass of their own; the texts."""
    seconds, outputs, passes, texts = 0.0, 0, 0, []
    for repeat in repeats:
        prompts = [f"Character {repeat * batch + i}: fill in the record.\n" for i in range(batch)]
        given = [{**params, "seed": repeat * batch + i} for i in range(batch)]
        begin = time.perf_counter()
        answers = engine.generate(prompts, given)
        seconds += time.perf_counter() - begin
        for answer in answers:
            outputs += answer["meta_info"]["completion_tokens"]
            passes += answer["meta_info"]["completion_tokens_wo_jump_forward"]
            texts.append(answer["text"])
    return seconds, outputs, passes, texts


def main(
    repeats: Annotated[int, typer.Option(help="Of each measurement, with other prompts each time.")] = 6,
    temperature: Annotated[float, typer.Option(help="Of all requests.")] = 0.7,
    save: Annotated[bool, typer.Option(help="Write benchmarks/results/jump_forward.json.")] = True,
) -> None:
    """Measure in turn and print a table."""
    table = Table("request", "batch", "arm", "tokens", "passes of their own", "seconds", "as fast", "same")
    rows = []
    engines = {name: sgl.Engine(max_total_tokens=1 << 16, **options) for name, options in ENGINES.items()}
    try:
        for name, constraint in CASES.items():
            for batch in (1, 32):
                params = {**constraint, "max_new_tokens": 300, "temperature": temperature}
                found = {}
                for arm, engine in engines.items():
                    timed(engine, batch, params, range(1000, 1002))  # compiles; what is forced is worked out
                    found[arm] = timed(engine, batch, params, range(repeats))
                slow, wanted = found["drawn"][0], found["forced"][3]
                for arm, (seconds, outputs, passes, texts) in found.items():
                    same = sum(a == b for a, b in zip(texts, wanted, strict=True)) / len(wanted)
                    row = {
                        "request": name,
                        "batch": batch,
                        "arm": arm,
                        "tokens": outputs,
                        "passes": passes,
                        "as_fast": round(slow / seconds, 2),
                        "same_as_forced": round(
                            same, 3
                        ),  # 1 on a CPU; sums of a GPU depend on the rows of a batch
                    }
                    rows.append(row)
                    table.add_row(
                        name, str(batch), arm, str(outputs), f"{passes} ({passes / outputs:.0%})", f"{seconds:.3f}",
                        f"{slow / seconds:.2f}x", f"{same:.0%}",
                    )  # fmt: skip
    finally:
        for engine in engines.values():
            engine.shutdown()
    Console().print(table)
    if save:
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
