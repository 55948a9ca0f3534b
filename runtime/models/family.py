"""The register of families: from an architecture's name in config.json to a function that makes its ArchSpec."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from runtime.errors import ModelError
from runtime.models.hf_config import HFConfig
from runtime.models.spec import ArchSpec


@dataclass(frozen=True)
class Family:
    """A line of models. `weights` maps checkpoint names to ours (`*` stands for the layer's number; see weights.py);
    `tiny` is a small config.json for tests."""

    architecture: str
    spec: Callable[[HFConfig], ArchSpec]
    weights: Mapping[str, str]
    tiny: Mapping[str, Any]


def find_family(config: HFConfig, families: Mapping[str, Family]) -> Family:
    """The family of a configuration. Raises ModelError with near misses for one that is not known."""
    names = config.data.get("architectures") or []
    for name in names:
        if name in families:
            return families[name]
    given = names[0] if names else config.data.get("model_type")
    near = difflib.get_close_matches(str(given), families, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ModelError(
        f"{config.source}: architecture {given!r} is not supported{hint} Supported: {', '.join(sorted(families))}"
    )
