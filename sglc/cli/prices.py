"""What models cost, from a file of the user."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from sglc.cli.common import Mistake
from sglc.plan.interval import Price

FORM = "TOML or JSON: [model] input = 2.5, output = 10, cached = 1.25, by a million tokens."


def prices_in(file: Path | None) -> dict[str, Price]:
    """Prices by model. Raises Mistake."""
    if file is None:
        return {}
    try:
        text = file.read_text(encoding="utf-8")
        data = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise Mistake(f"--prices {file}: {error.strerror}") from None
    except ValueError as error:  # what both parsers raise
        raise Mistake(f"--prices {file}: {error}; write it as {FORM}") from None
    if not isinstance(data, dict):
        raise Mistake(f"--prices {file}: it is a {type(data).__name__}; it needs a table for each model")
    found: dict[str, Price] = {}
    for name, entry in data.items():
        try:
            values = {key: float(value) for key, value in entry.items()}
            if not all(0 <= value < float("inf") for value in values.values()):
                raise ValueError
            found[name] = Price(**values)
        except (TypeError, ValueError, AttributeError):
            raise Mistake(
                f"--prices {file}: [{name}] needs input and output, and may have cached, as numbers from 0 up"
            ) from None
    return found
