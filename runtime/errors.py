"""What the runtime raises, and the HTTP status each one becomes.

    EngineError                 500
      InvalidRequest            400   the caller can fix it: the message names value, limit and remedy
        TooLong                 400   prompt and budget exceed the context or the pool
        Unsupported             400   this backend or model lacks the feature
      NotFound                  404
        ModelNotFound           404   a model that is not served
      Conflict                  409   the object's state does not allow it now
      Overloaded                503   try again later
        Crowded                 429   too many requests wait already
      EngineDead                503   the engine process was lost with the request; another one may be starting
      Aborted                   499   the caller gave up
      ModelError                500   a model folder that cannot be loaded (exit code 2 on the command line)
      BackendError              502   a remote backend answered with an error

Every message has three parts: what is wrong with the value, where, and what to do.
"""

from __future__ import annotations


class EngineError(Exception):
    """Root of the tree. `status` is the HTTP status; `code` the short machine-readable name."""

    status = 500
    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(EngineError):
    status = 400
    code = "invalid_request"


class TooLong(InvalidRequest):
    code = "context_length_exceeded"


class Unsupported(InvalidRequest):
    code = "unsupported"


class NotFound(EngineError):
    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class Conflict(EngineError):
    status = 409
    code = "conflict"


class Overloaded(EngineError):
    status = 503
    code = "overloaded"


class Crowded(Overloaded):
    status = 429
    code = "rate_limit_exceeded"


class EngineDead(EngineError):
    status = 503
    code = "engine_dead"


class Aborted(EngineError):
    status = 499
    code = "aborted"


class ModelError(EngineError):
    code = "model_error"


class BackendError(EngineError):
    status = 502
    code = "backend_error"
