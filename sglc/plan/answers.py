"""How long the answers of constrained gens are, in tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from grammar.constraint_errors import ConstraintError
from sglc.ir.core import Module
from sglc.plan.interval import Interval


def answer_lengths(module: Module, compiled: Callable[[Any, str], Any]) -> Mapping[str, Interval]:
    """By the symbol of the constraint; those that cannot be enforced are left out.

    `compiled` gives the `grammar.CompiledConstraint` of a kind and a source, and may raise ConstraintError.
    """
    found: dict[str, Interval] = {}
    for name, constraint in module.constraints.items():
        try:
            automaton = compiled(constraint.kind, constraint.source).automaton
        except ConstraintError:
            continue
        if automaton is not None:
            found[name] = Interval(automaton.min_tokens, automaton.max_tokens)
    return found
