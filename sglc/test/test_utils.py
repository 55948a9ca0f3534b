"""Options of benchmark programs: how many rows at once, and which backend."""

from __future__ import annotations

import argparse
from typing import Any

from sglc.backends import OpenAI, RuntimeEndpoint


def add_common_sglang_args_and_parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Add --parallel, --host, --port, --backend and --result-file, and read the command line."""
    parser.add_argument("--parallel", type=int, default=64, help="Rows that run at once.")
    parser.add_argument("--host", default="http://127.0.0.1", help="Where the server is.")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--backend", default="srt", help="srt (the server), or the name of an OpenAI model.")
    parser.add_argument("--result-file", default="result.jsonl")
    return parser.parse_args()


def select_sglang_backend(args: argparse.Namespace) -> Any:
    """The backend of these options. Raises ValueError for a name that is none."""
    if args.backend == "srt":
        return RuntimeEndpoint(f"{args.host}:{args.port}")
    if args.backend.startswith(("gpt-", "o1", "o3", "o4")):
        return OpenAI(args.backend)
    raise ValueError(f"--backend {args.backend}: choose srt, or an OpenAI model such as gpt-4o-mini")
