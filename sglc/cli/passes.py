"""`sglc passes`: the passes and their options."""

from __future__ import annotations


def passes() -> None:
    """List the passes and their options."""
    import inspect

    from rich.table import Table

    from sglc.cli.common import console
    from sglc.passes.base import passes as known
    from sglc.passes.pipeline import DEFAULT

    table = Table("pass", "options", "what it does", box=None, pad_edge=False)
    for name, cls in known().items():
        options = ", ".join(f"{key}={f.default}" for key, f in cls.options().items())
        table.add_row(name, options, (inspect.getdoc(cls) or "").partition("\n")[0])
    out = console()
    out.print(table)
    out.print(f"default: {DEFAULT}", soft_wrap=True)
