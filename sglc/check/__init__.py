"""Static checks of programs: what `sglc check` says, with code, place and fix."""

from __future__ import annotations

from sglc.check.diagnostic import Diagnostic, Severity
from sglc.check.run import check_file, check_program
from sglc.check.subject import Budget, CheckOptions
from sglc.check.tokens import Tokens

__all__ = ["Budget", "CheckOptions", "Diagnostic", "Severity", "Tokens", "check_file", "check_program"]
