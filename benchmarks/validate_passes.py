"""Every pass, and every pass after every other, on thousands of random graphs: same outcome, only licensed changes.

    python benchmarks/validate_passes.py                    # 10,000 graphs
    python benchmarks/validate_passes.py --programs 500     # goes on where an earlier run was, if the code is the same

Graphs have forks, joins, selects, roles, scopes, calls, branches on generated values and bounded loops; the model is a hash
of its prompt and fields. Each result is verified, printed, parsed and printed again. The graphs and the comparison are
those of tests/compiler/test_pass_properties.py.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import multiprocessing
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from tqdm import tqdm

from sglc.ir.parser import parse_module
from sglc.passes.pipeline import Pipeline

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "validate_passes.json"
JOURNAL = ROOT / ".validate_passes.jsonl"
CHUNK = 200


@cache
def graphs() -> ModuleType:
    """The generator of random graphs, which is a test's."""
    path = ROOT / "tests" / "compiler" / "test_pass_properties.py"
    spec = importlib.util.spec_from_file_location("random_graphs", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def check(seed: int) -> tuple[Counter[str], list[str]]:
    """How often each pipeline was run on this graph, and what went wrong."""
    made: Any = graphs()
    module = made.random_module(seed)
    expected = made.outcome(module)
    runs: Counter[str] = Counter()
    wrong: list[str] = []

    def compare(changed: Any, order: list[str]) -> None:
        name = ",".join(order)
        runs[name] += 1
        try:
            made.assert_licensed(expected, made.outcome(changed), order)
            assert str(parse_module(str(changed))) == str(changed), "does not print and parse back"
        except Exception as error:  # whatever it is, the seed and the pipeline say how to see it again
            wrong.append(f"seed {seed}, {name}: {type(error).__name__}: {error}"[:300])

    for first in made.PIPELINES:
        once = Pipeline.parse(first).run(module, verify=True)
        compare(once, [first])
        for second in made.PIPELINES:
            compare(Pipeline.parse(second).run(once, verify=True), [first, second])
    return runs, wrong


def guarded(seed: int) -> tuple[Counter[str], list[str]]:
    try:
        return check(seed)
    except Exception as error:
        return Counter(), [f"seed {seed}: {type(error).__name__}: {error}"[:300]]


def revision() -> str:
    """The code that is checked: the digest of these passes, the IR and the generator."""
    digest = hashlib.sha256()
    used = {item.partition("{")[0].replace("-", "_") for item in graphs().PIPELINES}
    files = [ROOT / "sglc" / "passes" / f"{name}.py" for name in sorted({*used, "base"})]
    files += sorted((ROOT / "sglc" / "ir").glob("*.py"))
    for file in (*files, ROOT / "tests" / "compiler" / "test_pass_properties.py"):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def load(journal: Path, code: str) -> dict[int, Any]:
    """The chunks that were checked already, by first seed; only those of the same code count."""
    if not journal.exists():
        return {}
    lines = [
        json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines() if line.endswith("}")
    ]
    return {line["first_seed"]: line for line in lines if line["code"] == code}


def main(
    programs: Annotated[int, typer.Option(help="Random graphs.")] = 10_000,
    first: Annotated[int, typer.Option(help="The first seed.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
    journal: Annotated[Path, typer.Option(help="Where chunks go; a later run goes on from there.")] = JOURNAL,
    save: Annotated[bool, typer.Option(help="Write benchmarks/results/validate_passes.json.")] = True,
) -> None:
    """Check the passes; exit code 1 if one changes what a graph means."""
    code = revision()
    done = load(journal, code)
    starts = range(first, first + programs, CHUNK)
    bar = tqdm(total=programs, initial=sum(min(CHUNK, first + programs - k) for k in starts if k in done))
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for start in starts:
            if start in done:
                continue
            seeds = range(start, min(start + CHUNK, first + programs))
            runs: Counter[str] = Counter()
            wrong: list[str] = []
            for counts, found in pool.imap_unordered(guarded, seeds, chunksize=5):
                runs.update(counts)
                wrong += found
                bar.update()
            line = {
                "first_seed": start,
                "graphs": len(seeds),
                "code": code,
                "pipelines": len(runs),
                "runs": sum(runs.values()),
                "wrong": wrong,
            }
            done[start] = line
            journal.parent.mkdir(parents=True, exist_ok=True)
            with journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    bar.close()
    chunks = [done[k] for k in starts]
    mismatches = [w for c in chunks for w in c["wrong"]]
    data = {
        "code": code,
        "graphs": sum(c["graphs"] for c in chunks),
        "first_seed": first,
        "pipelines": max(c["pipelines"] for c in chunks),
        "runs": sum(c["runs"] for c in chunks),
        "mismatches": len(mismatches),
        "examples": mismatches[:20],
    }
    print(
        f"{data['graphs']} graphs, {data['pipelines']} pipelines, {data['runs']} runs, {len(mismatches)} mismatches"
    )
    for line in mismatches[:20]:
        print(line)
    if save:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    if mismatches:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
