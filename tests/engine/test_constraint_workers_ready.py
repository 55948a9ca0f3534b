"""A worker that says it is ready has compiled its loops: on a machine that has none of them yet this takes a minute, which
is no constraint's fault."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
from pathlib import Path
from numba.core.dispatcher import Dispatcher
import stdlib.tiny
from runtime.api import Constraint
from runtime.constrain.compiler import ConstraintCompiler
from runtime.constrain.workers import get_ready

def loops():
    found = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "grammar":
            for key, value in vars(module).items():
                if isinstance(value, Dispatcher):
                    found[name, key] = len(value.signatures)
    return found

compiler = ConstraintCompiler(Path(stdlib.tiny.__file__).parent / "weights", (0, 2), capacity=1)
get_ready(compiler)
before = loops()
assert sum(before.values()) > 20, before
compiler.get(Constraint("regex", "[a-z]+@(x|y)"))
compiler.get(Constraint("ebnf", 'root ::= "(" root ")" | [0-9]+'))
compiler.get(Constraint("json_schema", '{"type": "object", "properties": {"name": {"type": "string"}, '
    '"size": {"type": "integer"}, "tags": {"type": "array", "items": {"enum": ["a", "b"]}}}, "required": ["name"]}'))
compiler.get(Constraint("json_schema", '{"$defs": {"t": {"type": "object", "properties": {"n": {"$ref": "#/$defs/t"}}}}, '
    '"anyOf": [{"$ref": "#/$defs/t"}, {"type": "string", "pattern": "^[a-f]{3}$"}]}'))
later = {k: n for k, n in loops().items() if n != before.get(k)}
assert not later, later
"""


def test_nothing_is_left_to_be_compiled_by_the_first_constraints() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
