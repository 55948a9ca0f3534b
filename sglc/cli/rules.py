"""`sglc rules`: what `sglc check` looks for."""

from __future__ import annotations

from typing import Annotated

import typer

from sglc.cli.common import Mistake, console, near


def rules(
    code: Annotated[str | None, typer.Argument(metavar="CODE", help="One rule, with its examples.")] = None,
) -> None:
    """List the rules of `sglc check`, or explain one of them."""
    import inspect

    from rich.table import Table
    from rich.text import Text

    from sglc.check.run import RULES

    out = console()
    if code is not None:
        rule = RULES.get(code) or next((r for r in RULES.values() if r.name == code), None)
        if rule is None:
            known = [*RULES, *(r.name for r in RULES.values())]
            raise Mistake(f"there is no rule {code}{near(code, known)}; `sglc rules` lists them")
        shown = f" (with {rule.options})" if rule.options else ""
        print(f"{rule.code} {rule.name}: {rule.severity}{shown}\n\n{inspect.getdoc(type(rule))}")
        return
    table = Table("code", "name", "", "what it finds", box=None, pad_edge=False)
    for rule in sorted(RULES.values(), key=lambda rule: rule.code):
        summary = (inspect.getdoc(type(rule)) or "").partition("\n")[0]
        table.add_row(rule.code, rule.name, rule.severity, Text(summary))
    out.print(table)
