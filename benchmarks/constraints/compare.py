"""Ours beside other engines of constrained decoding, in one run: regexes, public JSON schemas, 131k tokens.

    python -m benchmarks.constraints.compare --corpus FOLDER [-n 300] [--engines ours,llguidance] [--work FOLDER]

Needs the harness `cdbench` on the path, with its vocabularies. An engine that is not installed is left out, and
the reason is printed. Engines run one after the other, each regex in a fresh process; what they answered is kept
in the folder `--work`. The table goes to the standard output, and with the plot to `benchmarks/results`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.constraints import summary

_OURS = "benchmarks.constraints.adapter:Sglc"
_RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Engine:
    """
    package  that has to be installed, and its version; None: this project
    regex    adapter for regexes; None: not run
    schema   adapter for schemas, values written without blanks; None: not run
    """

    name: str
    package: tuple[str, str] | None
    regex: str | None
    schema: str | None

    def missing(self) -> str | None:
        """Why it cannot be run."""
        if self.package is None:
            return None
        package, wanted = self.package
        try:
            found = version(package)
        except PackageNotFoundError:
            return f"{package} is not installed; pip install {package}=={wanted}"
        return None if found == wanted else f"{package} {found} is installed, not {wanted}"


ENGINES = (
    Engine("ours", None, _OURS, _OURS),
    Engine("ours, closed objects", None, None, f"{_OURS}?objects=closed"),
    Engine("ours, strict objects", None, None, f"{_OURS}?objects=strict"),
    Engine("ours, any order", None, None, f"{_OURS}?order=any"),
    Engine("llguidance", ("llguidance", "1.9.1"), "llg", "llg-compact"),
    Engine("xgrammar", ("xgrammar", "0.2.8"), "xgr", "xgr-compact"),
    Engine("outlines-core", ("outlines-core", "0.2.14"), "outlines", "outlines-compact"),
)


def harness(what: str, adapter: str, to: Path, *options: str) -> None:
    arguments = [sys.executable, "-m", "cdbench.run", what, "--adapters", adapter, "--vocab", "tekken"]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    subprocess.run([*arguments, "--out", str(to), *options], check=True, env=environment)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True, help="folder of schemas with instances")
    parser.add_argument("-n", type=int, default=300, help="schemas")
    parser.add_argument("--engines", default="", help="names, separated by semicolons; all if not given")
    parser.add_argument(
        "--seconds", type=float, default=900, help="for the schemas of one engine, then it is stopped"
    )
    parser.add_argument("--work", type=Path)
    parser.add_argument("--results", type=Path, default=_RESULTS)
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp(prefix="constraints-"))
    work.mkdir(parents=True, exist_ok=True)
    wanted = [e for e in ENGINES if not given.engines or e.name in given.engines.split(";")]
    names, files = {}, []
    for engine in wanted:
        why = engine.missing()
        if why is not None:
            print(f"{engine.name} is left out: {why}", file=sys.stderr)
            continue
        for what, adapter in (("regex", engine.regex), ("schema", engine.schema)):
            if adapter is None:
                continue
            names[adapter] = engine.name
            to = work / f"{engine.name.replace(', ', '-').replace(' ', '-')}.{what}.jsonl"
            to.unlink(missing_ok=True)
            files.append(to)
            if what == "regex":
                harness(what, adapter, to, "--timeout", "90")
            else:
                limits = ("--timeout", "10", "--budget", str(given.seconds))
                harness(what, adapter, to, "--corpus", given.corpus, "-n", str(given.n), *limits)
    more = {"ours": _from_store(work)} if any(e.name == "ours" for e in wanted) else {}
    runs = summary.read(files, names)
    given.results.mkdir(parents=True, exist_ok=True)
    summary.report(runs, given.results / "constraints.json", given.results / "constraints.png", more)


def _from_store(work: Path) -> dict[str, str]:
    """Regexes compiled once, then by fresh processes that find them in the store."""
    adapter = f"{_OURS}?store={work / 'store'}"
    harness("regex", adapter, work / "filled.jsonl", "--timeout", "90")
    to = work / "stored.regex.jsonl"
    to.unlink(missing_ok=True)
    harness("regex", adapter, to, "--timeout", "90")
    compiled = [1e3 * r["compile_s"] for r in summary.read([to])[adapter]["regex"] if "error" not in r]
    return {"regex compile p50 from the disk store, ms": summary.quantiles(compiled, (0.5,))}


if __name__ == "__main__":
    main()
