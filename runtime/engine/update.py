"""Other weights for a model that is served, in the place of its own.

Requests that run end first, and those that come meanwhile wait; no cached prefix is kept. The weights are read beside
the engine's thread, which still tells that it is alive. If they cannot be read, the earlier ones are read again.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor, wait

from runtime.config import EngineConfig, find_folder
from runtime.engine.messages import Weights
from runtime.errors import Conflict, EngineError, ModelError
from runtime.models.decoder import Decoder
from runtime.models.family import Family
from runtime.models.load import family_of_same, fill

log = logging.getLogger("runtime.engine")

_WAIT_SECONDS = 0.05  # for the reading, before the engine's thread looks after its messages again


class WeightUpdate:
    """At most one change of weights at a time. All but the reading belongs to the engine's thread."""

    def __init__(self, model: Decoder, config: EngineConfig) -> None:
        self._model = model
        self._config = config
        self._now = self._found(Weights(config.folder, config.load_format))
        self._next: tuple[Weights, Family] | None = None
        self._ticket = 0
        self._job: Future[None] | None = None

    @property
    def waits(self) -> bool:
        """Whether one was asked for that has not ended."""
        return self._next is not None

    def _found(self, weights: Weights) -> tuple[Weights, Family]:
        folder = find_folder(weights.model_path)
        options = self._config.overrides, self._config.is_embedding
        return weights, family_of_same(self._model, folder, options[0], is_embedding=options[1])

    def ask(self, ticket: int, weights: Weights) -> None:
        """Raises Conflict if another one is under way, ModelError for what this model cannot have."""
        if self._next is not None:
            raise Conflict("Another update is in progress. Please try again later.")
        self._next, self._ticket = self._found(weights), ticket

    def poll(self) -> tuple[int, EngineError | None] | None:
        """Begin, or wait a moment for the end; once it is done, the ticket and what went wrong. To be called while nothing runs.

        Raises EngineError if neither the new nor the earlier weights can be read: there is no model any more.
        """
        if self._next is None:
            return None
        if self._job is None:
            pool = ThreadPoolExecutor(1, thread_name_prefix="weights")
            self._job = pool.submit(self._read, *self._next)
            pool.shutdown(wait=False)
        if not wait([self._job], _WAIT_SECONDS).done:
            return None
        error = self._job.exception()
        wanted, self._next, self._job = self._next, None, None
        if error is None:
            self._now = wanted
            return self._ticket, None
        path = wanted[0].model_path
        log.warning("the weights of %s are not taken: %s", path, error)
        try:
            self._read(*self._now)
        except Exception as second:
            raise EngineError(
                f"the weights of {path} could not be read ({error}), nor the earlier ones again: {second}"
            ) from second
        known = isinstance(error, EngineError)
        return self._ticket, error if known else ModelError(f"{type(error).__name__}: {error}")  # type: ignore[return-value]

    def _read(self, weights: Weights, family: Family) -> None:
        fill(self._model, family, find_folder(weights.model_path), weights.load_format)
