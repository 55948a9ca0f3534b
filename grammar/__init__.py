"""The formal languages that the compiler and the runtime both read.

Automata, tokenizer vocabularies and what they make of a constraint; Lark grammars as files. Names are
imported when they are first used, so that `import grammar` costs nothing. No torch here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "CompiledConstraint": "grammar.compile",
    "ConstraintReport": "grammar.compile",
    "ConstraintStore": "grammar.store",
    "Fsm": "grammar.fsm",
    "Options": "grammar.compile",
    "TokenFsm": "grammar.token_fsm",
    "Vocabulary": "grammar.vocabulary",
    "compile_constraint": "grammar.compile",
    "compile_regex": "grammar.regex",
    "ConstraintError": "grammar.constraint_errors",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'grammar' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
