"""The register of families: from an architecture's name in config.json to a function that makes its ArchSpec."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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

    def without_head(self) -> Family:
        """The same layers alone, whose tensors may be named without `model.`: what embedding models are published as."""
        bare = {name.removeprefix("model."): ours for name, ours in self.weights.items()}
        return replace(self, spec=lambda c: embedding(self.spec(c), c), weights={**self.weights, **bare})

    def with_scores(self) -> Family:
        """The same layers with the head of a reward model."""
        weights = {**self.weights, "score.weight": "score.weight"}
        return replace(self, spec=lambda c: _scored(self.spec(c), c), weights=weights)


def embedding(spec: ArchSpec, config: HFConfig) -> ArchSpec:
    """The same layers for embeddings: no head is made, and its weights, if there are any, are left out."""
    config.expect("is_causal", True)
    sizes = config.get("matryoshka_dimensions") or config.get("is_matryoshka", False)
    if sizes is not True and sizes is not False and not _sizes(sizes, spec.hidden):
        raise ModelError(
            f"{config.source}: matryoshka_dimensions is {sizes!r}, but must be a list of sizes from 1 to {spec.hidden}"
        )
    return replace(
        spec, task="embed", tied=True, sizes=tuple(sizes) if isinstance(sizes, list) else sizes or ()
    )


def _sizes(value: Any, most: int) -> bool:
    return isinstance(value, list) and all(isinstance(v, int) and 1 <= v <= most for v in value)


def _scored(spec: ArchSpec, config: HFConfig) -> ArchSpec:
    labels = len(config.get("id2label") or ()) or config.get("num_labels", 2)
    return replace(spec, task="reward", tied=True, labels=labels)


def find_family(config: HFConfig, families: Mapping[str, Family]) -> Family:
    """The family of a configuration. Raises ModelError with near misses for one that is not known."""
    names = config.data.get("architectures") or []
    for name in names:
        if name in families:
            return families[name]
        for suffix, form in (
            ("Model", Family.without_head),
            ("ForSequenceClassification", Family.with_scores),
        ):
            base = families.get(name.removesuffix(suffix) + "ForCausalLM") if name.endswith(suffix) else None
            if base is not None:
                return form(base)
    given = names[0] if names else config.data.get("model_type")
    near = difflib.get_close_matches(str(given), families, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ModelError(
        f"{config.source}: architecture {given!r} is not supported{hint} Supported: {', '.join(sorted(families))}"
    )
