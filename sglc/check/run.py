"""Every rule over every program of a file."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sglc.check import boundary_rules as boundaries
from sglc.check import budget_rules as budgets
from sglc.check import choice_rules as choices
from sglc.check import compare_rules as compares
from sglc.check import constraint_rules as constraints
from sglc.check import fork_rules as forks
from sglc.check import message_rules as messages
from sglc.check import state_rules as states
from sglc.check import stop_rules as stops
from sglc.check import target_rules as targets
from sglc.check.diagnostic import Diagnostic, Severity
from sglc.check.rule import Rule
from sglc.check.subject import CheckOptions, Subject

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        rule.code: rule()
        for rule in (
            states.ReadBeforeGen, forks.DeadGen, forks.DeadFork, forks.EmptyFork, messages.NestedRole,
            messages.RoleNotClosed, messages.NotText, forks.EndedState, states.OpenScope, states.EndlessLoop,
            forks.EqualBranches, messages.EmptyPrompt, states.DeadCall,
            compares.ImpossibleCompare, choices.ChoicePrefix, choices.ChoiceSpace, choices.EqualChoices,
            choices.EmptyChoices, choices.OneChoice, choices.UnevenChoices, compares.AnswerType,
            boundaries.UnknownMethod, boundaries.TokenBoundary,
            constraints.BadRegex, constraints.Unsatisfiable, constraints.LargeConstraint, constraints.BadSchema,
            constraints.BadGrammar, constraints.BadTag,
            constraints.TooFewTokens, stops.ImpossibleStop, stops.EarlyStop, stops.EmptyStop,
            constraints.EndlessSpace, stops.RedundantStop, forks.EqualSamples,
            budgets.ContextOverflow, targets.Unsupported, targets.OutsideMessage, targets.SelectTemperature,
            targets.BodyRaises, budgets.OverBudget, budgets.LateConstant, targets.GraphBreaks,
        )
    }
)  # fmt: skip
_LAST_RESORT = targets.BodyRaises.code  # silent where another rule knows better
_IGNORE = re.compile(r"#\s*sglc:\s*ignore(?:\[([A-Z0-9, ]*)\])?")


def check_program(
    program: Any, options: CheckOptions | None = None, codes: Collection[str] | None = None
) -> list[Diagnostic]:
    """What is wrong with one program, in order of place. `codes`: only these rules.

    `# sglc: ignore` on a line silences it, `# sglc: ignore[SGL202]` one rule.
    """
    subject = Subject(program, options or CheckOptions())
    found: set[Diagnostic] = set()
    for code, rule in RULES.items():
        if codes is None or code in codes:
            found.update(rule.check(subject))
    told = {(d.file, d.line) for d in found if d.severity == Severity.ERROR and d.code != _LAST_RESORT}
    found = {d for d in found if d.code != _LAST_RESORT or (d.file, d.line) not in told}
    return sorted(d for d in found if not _ignored(d))


def check_file(
    programs: Sequence[Any], options: CheckOptions | None = None, codes: Collection[str] | None = None
) -> list[Diagnostic]:
    """What is wrong with several programs, each finding once."""
    return sorted({d for program in programs for d in check_program(program, options, codes)})


def lines_of(file: str) -> list[str]:
    """The lines of a source file; none if it cannot be read."""
    try:
        return Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _ignored(found: Diagnostic) -> bool:
    lines = lines_of(found.file)
    if not 0 < found.line <= len(lines):
        return False
    match = _IGNORE.search(lines[found.line - 1])
    return match is not None and (match[1] is None or found.code in match[1].replace(" ", "").split(","))
