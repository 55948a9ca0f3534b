"""Send a server thousands of requests made from its own OpenAPI document, right and wrong ones.

schemathesis makes them and looks at the answers: no 5xx, no status and no content type that the document does not name,
no answer of another shape. Afterwards the same processes have to be there and to answer. The context is short, so that
a request without a limit does not write for minutes.

    python benchmarks/fuzz_api.py --cases 10000
    python benchmarks/fuzz_api.py --cases 2000 --is-embedding
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from runtime.server.launch import ServerProcess

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
)


@dataclass(frozen=True)
class Outcome:
    """`code` is 0 if nothing was found; `cases` counts the requests of `operations`; `report` is what schemathesis says."""

    code: int
    cases: int
    operations: int
    report: str


def fuzz(url: str, *, each: int, phases: str, seed: int | None = None, seconds: int = 3600) -> Outcome:
    """Run schemathesis on the document at `url`, with up to `each` made-up cases for an operation."""
    program = shutil.which("schemathesis", path=str(Path(sys.executable).parent)) or shutil.which(
        "schemathesis"
    )
    if program is None:
        raise SystemExit("schemathesis is not installed; pip install 'sglc[dev]'")
    command = [program, "run", f"{url}/openapi.json", "--checks", ",".join(CHECKS), "--phases", phases]
    command += [
        "-n",
        str(each),
        "--request-timeout",
        "120",
        "--continue-on-failure",
        "--warnings",
        "off",
        "--no-color",
    ]
    command += ["--exclude-path-regex", r"^/page/.*\.(js|css)$", "--generation-database", ":memory:"]
    command += [] if seed is None else ["--seed", str(seed)]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, cwd=folder)
    cases = re.search(r"(\d+) generated", done.stdout)
    operations = re.search(r"Tested: (\d+)", done.stdout)
    return Outcome(
        done.returncode,
        int(cases.group(1)) if cases else 0,
        int(operations.group(1)) if operations else 0,
        done.stdout + done.stderr,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10_000, help="requests at least, over all operations")
    parser.add_argument("--phases", default="coverage,fuzzing", help="of schemathesis")
    parser.add_argument("--is-embedding", action="store_true", help="of a server of embeddings")
    parser.add_argument("--json", type=Path, help="file of the figures")
    parser.add_argument("--seed", type=int, help="of the made-up cases; random unless given")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as state:
        server = ServerProcess(
            context_length=256,
            max_running_requests=32,
            state_dir=state,
            profile_dir=state,
            is_embedding=args.is_embedding,
        )
        began = time.monotonic()
        try:
            total, each, seed, report = 0, 4, args.seed, ""
            while total < args.cases:
                outcome = fuzz(server.url, each=each, phases=args.phases, seed=seed)
                total, report = total + outcome.cases, outcome.report
                print(
                    f"{outcome.cases} cases for {outcome.operations} operations, {total} in all", flush=True
                )
                if outcome.code or not outcome.cases:
                    print(report)
                    return 1
                left = args.cases - total
                each = max(4, min(200, left // max(outcome.operations, 1)))
                args.phases, seed = "fuzzing", None if seed is None else seed + 1
            info = json.load(urllib.request.urlopen(f"{server.url}/get_server_info", timeout=60))
            print(
                f"afterwards: {info['num_running_reqs']} running, KV in use: {info['kv_cache']['used_tokens']}"
            )
            whole = {
                "schemathesis": version("schemathesis"),
                "server": "embeddings" if args.is_embedding else "generation",
                "seed": args.seed,
                "cases": total,
                "operations": outcome.operations,
                "server_errors_and_undocumented_answers": 0,
                "running_afterwards": info["num_running_reqs"],
                "kv_tokens_in_use_afterwards": info["kv_cache"]["used_tokens"],
                "seconds": round(time.monotonic() - began),
            }
            if args.json is not None:
                before = json.loads(args.json.read_text()) if args.json.exists() else {}
                args.json.write_text(json.dumps({**before, whole["server"]: whole}, indent=2) + "\n")
            return 0 if info["num_running_reqs"] == 0 else 1
        finally:
            server.shutdown()


if __name__ == "__main__":
    sys.exit(main())
