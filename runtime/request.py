"""A request's life in the engine: waiting, running, finished.

The scheduler owns requests and alone changes them. Positions move through three marks: known (`tokens`),
`scheduled` (in a batch that was handed out) and `landed` (that batch was committed, so its KV exists).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING

from runtime.api import LogprobOptions, SamplingParams, TokenLogprob

if TYPE_CHECKING:
    from runtime.kv.radix import Node

Scores = list[tuple[TokenLogprob, list[TokenLogprob]]]


class Phase(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Request:
    """One sequence.

    tokens     the prompt, then the outputs committed so far
    prompt     length of the prompt
    max_new    outputs at most; the context is already taken into account
    ends       ids that end it (end-of-text and stop ids)
    pending    outputs sampled in batches not committed yet
    outputs_here  outputs sampled since it took its seat, or since its constraint forced some
    told       outputs that callers know of
    forced     outputs not told yet that took no pass of their own: not drawn, or drawn behind a guess
    guesses    tokens that are likely behind the known ones; `sure` as a slice has it
    steady     no tokens are forced behind one that was drawn
    plain      tokens are all that is wanted: no log-probabilities, nothing forced, at least one output
    pool       a vector of the prompt is wanted, and no output
    cached     prompt tokens that were not computed at the first admission
    """

    __slots__ = (
        "arrival",
        "broken",
        "cached",
        "copies",
        "doomed",
        "ends",
        "forced",
        "guesses",
        "id",
        "in_flight",
        "landed",
        "logprobs",
        "max_new",
        "node",
        "outputs_here",
        "pages",
        "pending",
        "phase",
        "plain",
        "pool",
        "priority",
        "prompt",
        "prompt_scores",
        "salt",
        "sampling",
        "scheduled",
        "scored",
        "seat",
        "seed",
        "shared",
        "skipped",
        "steady",
        "sure",
        "tokens",
        "told",
    )

    def __init__(
        self,
        id: str,
        tokens: list[int],
        sampling: SamplingParams,
        *,
        max_new: int,
        ends: frozenset[int] = frozenset(),
        seed: int = 0,
        logprobs: LogprobOptions | None = None,
        priority: int = 0,
        salt: str = "",
        forced: Sequence[int] = (),
        steady: bool = False,
        pool: bool = False,
    ) -> None:
        """`forced`: outputs that the constraint lets every answer begin with; `steady`: nothing is forced after them."""
        self.id = id
        self.tokens = [*tokens, *forced]
        self.forced = len(forced)
        self.guesses: tuple[int, ...] = ()
        self.sure: tuple[int, ...] = ()
        self.steady = steady or sampling.constraint is None
        self.told = 0
        self.prompt = len(tokens)
        self.sampling = sampling
        self.max_new = max_new
        self.ends = ends
        self.seed = seed
        self.logprobs = logprobs
        self.plain = logprobs is None and sampling.constraint is None and max_new > 0
        self.pool = pool
        self.priority = priority
        self.salt = salt
        self.phase = Phase.WAITING
        self.arrival = 0
        self.seat = -1
        self.pages: list[int] = []
        self.shared = 0
        self.copies: list[int] = []
        self.node: Node | None = None
        self.scheduled = 0
        self.landed = 0
        self.pending = 0
        self.outputs_here = 0
        self.in_flight = 0
        self.doomed = False  # finished or retracted, but a batch in flight still writes to its pages
        self.cached = -1
        self.broken = False  # ended with an error: what it computed is not to be trusted
        self.scored = False  # the log-probabilities of the prompt are complete
        self.prompt_scores: Scores = []
        self.skipped = 0  # steps in which others were started before it

    @property
    def outputs(self) -> int:
        return len(self.tokens) - self.prompt

    @property
    def scores_from(self) -> int:
        """First position whose next-token log-probability is still wanted; -1 for none."""
        if self.logprobs is None or self.logprobs.start < 0 or self.scored:
            return -1
        return self.logprobs.start

    @property
    def reusable(self) -> int:
        """Tokens that may come from the cache: never the last one, nor any whose output is asked for."""
        limit = len(self.tokens) - 1
        start = self.scores_from
        return limit if start < 0 else min(limit, start)

    @property
    def prefilling(self) -> bool:
        """Known tokens are still to be computed, beyond the one a decode step would feed."""
        return self.landed < len(self.tokens) - (1 if self.outputs_here else 0)
