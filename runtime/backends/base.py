"""What executes calls: the single door between programs and models.

A backend is asynchronous: one event loop serves every state of every program. `Capabilities` say what
it can do; a program is checked against them before its first call is sent, so a backend never has to
ignore a field.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from runtime.api import Constraint, Delta, Generate, Prompt, Score, ScoreResult


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend can do, beyond continuing a text.

    score        log-probabilities of given choices (`select`)
    prefill      computing and keeping a prefix before it is needed
    tokens       prompts that hold token ids
    constraints  kinds of `Constraint` it enforces
    samples      several samples of one prompt in one call
    logprobs     log-probabilities of tokens
    images       images in prompts
    sampling     fields of SamplingParams it honours; None means all of them
    chat_only    prompts must be conversations that end with an open assistant turn
    continues    it goes on from what the open assistant turn holds already
    context      tokens of prompt and answer together; None if not known
    """

    name: str
    score: bool = False
    prefill: bool = False
    tokens: bool = False
    constraints: frozenset[str] = frozenset()
    samples: bool = False
    logprobs: bool = False
    images: bool = False
    sampling: frozenset[str] | None = None
    chat_only: bool = False
    continues: bool = True
    context: int | None = None


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts by which a chat template is chosen.

    model_path     folder or name of the model
    chat_template  name of a template of the frontend, if the user or the server chose one
    jinja          the tokenizer's own template, if it has one
    """

    model_path: str
    chat_template: str | None = None
    jinja: str | None = None


@runtime_checkable
class Backend(Protocol):
    """Something that executes calls. Methods run on one event loop, that of the first call."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def model(self) -> ModelInfo: ...

    def generate(self, requests: Sequence[Generate]) -> AsyncIterator[Delta]:
        """Run all requests together; their Deltas interleave (match by `id` and `index`). Each sample ends with one
        Delta that has `finish`. A request whose `stream` is False yields only that one. An error of one
        request is a Delta with finish type "error"; an error of all is raised. Closing the iterator aborts what still runs."""
        ...

    async def score(self, request: Score) -> ScoreResult: ...

    async def prefill(self, prompt: Prompt) -> None:
        """Compute the prefix and keep it if memory allows. A hint: may do nothing."""
        ...

    async def flush_cache(self) -> bool:
        """Forget cached prefixes; False if requests are running."""
        ...

    async def close(self) -> None: ...


@runtime_checkable
class PreparesConstraints(Protocol):
    """A backend that can be told of constraints before a call brings them."""

    def prepare_constraints(self, constraints: Sequence[Constraint]) -> None:
        """Begin to compile them, beside whatever runs; returns at once. One that cannot be enforced is refused where a call
        brings it."""
        ...
