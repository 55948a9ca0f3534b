"""What a program asks for in one `gen` or `select`, as written: fields that are None take the run's default.

Shared by the language (which builds them), the IR (whose ops carry them) and execution (which resolves
them to `runtime.api.SamplingParams`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from runtime.api import Constraint


@dataclass(frozen=True, slots=True)
class Location:
    """Where in the user's source: file, line (from 1) and column (from 1; 0 if not known)."""

    file: str
    line: int
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class SamplingFields:
    """Sampling fields of a run (its defaults) or of one gen (None: not given)."""

    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: tuple[str, ...] | None = None
    stop_token_ids: tuple[int, ...] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    ignore_eos: bool | None = None
    seed: int | None = None
    return_logprob: bool | None = None
    logprob_start_len: int | None = None
    top_logprobs_num: int | None = None
    return_text_in_logprobs: bool | None = None

    def over(self, defaults: SamplingFields) -> SamplingFields:
        """These fields where they are given, else those of `defaults`. A `stop` replaces, it does not add."""
        given = {
            name: getattr(self, name) for name in self.__dataclass_fields__ if getattr(self, name) is not None
        }
        return replace(defaults, **given)


MAX_TOKENS = 128  # of a gen, in a run that names no limit either

RUN_DEFAULTS = SamplingFields(
    max_tokens=MAX_TOKENS,
    min_tokens=0,
    stop=(),
    stop_token_ids=(),
    temperature=1.0,
    top_p=1.0,
    top_k=-1,
    min_p=0.0,
    frequency_penalty=0.0,
    presence_penalty=0.0,
    ignore_eos=False,
)


@dataclass(frozen=True, slots=True)
class GenSpec:
    """One `gen`. `n`: how many samples (the variable is a list if it was given). `dtype` is int, float, str, bool.

    `reasoning`: the family whose tags separate reasoning from the answer (runtime/reasoning.py): the state goes on with the
    answer alone, and the reasoning becomes the variable `thoughts`.
    """

    name: str | None = None
    sampling: SamplingFields = SamplingFields()
    constraint: Constraint | None = None
    dtype: str | None = None
    n: int | None = None
    reasoning: str | None = None

    @property
    def thoughts(self) -> str:
        return f"{self.name}_reasoning_content"


@dataclass(frozen=True, slots=True)
class SelectSpec:
    """One `select`. `method` is a ChoicesSamplingMethod
    (see `sglc.lang.choices`)."""

    name: str | None
    choices: tuple[str, ...]
    method: Any = None
    temperature: float = 0.0


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """Encoded bytes of an image, or of the frames of a video. `token` is put into the text by the chat template."""

    data: bytes
    kind: str = "image"
    meta: Mapping[str, Any] = field(default_factory=dict)
