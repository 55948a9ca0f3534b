"""Constraints that a server compiles before it is ready: `--precompile FILE`.

The file holds one JSON object a line, with one kind of constraint each: `{"regex": "[0-9]+"}`, `{"json_schema": {...}}`,
`{"ebnf": "root ::= ..."}`, `{"structural_tag": {...}}`; or it is a compiled program (`sglc compile --emit artifact`), of which the
constraints of all gens are taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from runtime.api import Constraint
from runtime.constrain.compiler import KINDS, ConstraintCompiler
from runtime.errors import InvalidRequest, ModelError
from runtime.plan import Decode, Plan


class _Program(msgspec.Struct):
    plan: Plan


def read_constraints(path: str | Path) -> list[tuple[str, Constraint]]:
    """Each with its place in the file. Raises ModelError that names the file and the line."""
    file = Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ModelError(f"--precompile {file}: {error.strerror}") from None
    try:
        steps = msgspec.json.decode(data, type=_Program).plan.steps
    except msgspec.MsgspecError:
        return [
            (f"{file}:{k}", _constraint(line, f"{file}:{k}"))
            for k, line in enumerate(data.splitlines(), 1)
            if line.strip()
        ]
    found = dict.fromkeys(s.constraint for s in steps if isinstance(s, Decode) and s.constraint is not None)
    return [(f"{file}: constraint {k}", constraint) for k, constraint in enumerate(found, 1)]


def _constraint(line: bytes, place: str) -> Constraint:
    try:
        given = msgspec.json.decode(line)
    except msgspec.MsgspecError as error:
        raise ModelError(f"{place}: not JSON: {error}") from None
    kinds = [k for k in KINDS if isinstance(given, dict) and k in given]
    if len(kinds) != 1 or len(given) != 1:
        raise ModelError(f"{place}: a line is an object with one of {', '.join(KINDS)}")
    source = given[kinds[0]]
    if not isinstance(source, str):
        if kinds[0] in ("regex", "ebnf"):
            raise ModelError(
                f"{place}: {kinds[0]} is a text, not {msgspec.json.encode(source).decode()[:40]}"
            )
        source = msgspec.json.encode(source).decode()
    return Constraint(kinds[0], source).compact  # type: ignore[arg-type]


def precompile(compiler: ConstraintCompiler, constraints: Sequence[tuple[str, Constraint]]) -> None:
    """Compile them all, with a progress bar. Raises ModelError for one that is refused."""
    from tqdm import tqdm

    compiler.capacity = max(compiler.capacity, len(constraints))
    for place, constraint in tqdm(constraints, desc="constraints", unit="", disable=None):
        try:
            compiler.get(constraint)
        except InvalidRequest as error:
            raise ModelError(f"{place}: {error.message}") from None
