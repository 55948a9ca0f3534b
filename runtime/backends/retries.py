"""When a call to a provider is sent again: one rule for all vendors, whose clients differ in it.

Sent again are calls that were answered with 408, 409, 429 or at least 500, and those that were not answered; a provider's
x-should-retry overrules that. What was answered with the beginning of a stream never is: no text comes twice.
"""

from __future__ import annotations

import email.utils
import logging
import random
import time
from asyncio import sleep
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from runtime.errors import BackendError, InvalidRequest

log = logging.getLogger("runtime.backends")

MAX_RETRIES = 3  # unless told otherwise
LONGEST_WAIT = 60.0  # seconds: a provider that asks for more is not waited for
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds, where a provider names none

T = TypeVar("T")


@dataclass(frozen=True)
class Retries:
    """most        times that a call is sent again
    unanswered  exceptions of a client that got no answer
    """

    most: int
    unanswered: tuple[type[Exception], ...]

    def __post_init__(self) -> None:
        if isinstance(self.most, bool) or not isinstance(self.most, int) or not 0 <= self.most <= 100:
            raise InvalidRequest(
                f"max_retries is {self.most!r}; give a whole number from 0 to 100", param="max_retries"
            )

    async def sent(self, send: Callable[[], Awaitable[T]]) -> T:
        """What `send` gives, once it gives something. Raises its last error; BackendError if the provider asks for
        longer than `LONGEST_WAIT`."""
        for tried in range(self.most + 1):
            try:
                return await send()
            except Exception as error:
                if tried == self.most or not self._again(error):
                    raise
                asked = _asked(_headers(error))
                if asked is not None and asked > LONGEST_WAIT:
                    raise BackendError(
                        f"the provider asks to wait {asked:,.0f} s before the next try, and at most {LONGEST_WAIT:.0f} s "
                        f"are waited: {error}"
                    ) from error
                pause = asked if asked else _pause(tried)
                log.info("a call failed with %s and is sent again in %.2f s", type(error).__name__, pause)
            await sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _again(self, error: Exception) -> bool:
        if isinstance(error, self.unanswered):
            return True
        status = getattr(error, "status_code", None) or getattr(error, "code", None)
        if not isinstance(status, int):
            return False
        told = _headers(error).get("x-should-retry")
        if told in ("true", "false"):
            return told == "true"
        return status in (408, 409, 429) or status >= 500


def _headers(error: Exception) -> Mapping[str, str]:
    """Of the answer that an error stands for."""
    found: Any = getattr(getattr(error, "response", None), "headers", None)
    return found if isinstance(found, Mapping) else {}


def _asked(headers: Mapping[str, str]) -> float | None:
    """Seconds that the provider asks to wait; None if it does not, or what it says is no time."""
    for name, scale in (("retry-after-ms", 1e3), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) / scale)  # in this order a NaN is 0
        except (KeyError, ValueError):
            continue
    try:
        return max(email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time(), 0.0)
    except (KeyError, ValueError, OverflowError):
        return None


def _pause(tried: int) -> float:
    """Doubles with each try; a quarter is chance, so that calls that failed together do not come back together."""
    return min(_FIRST_PAUSE * 2.0**tried, _LONGEST_PAUSE) * random.uniform(0.75, 1)
