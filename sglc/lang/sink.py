"""The seam between what users write and what becomes of it.

`ProgramState` turns user code into calls of a Sink. A live sink (exec/interpreter.py) sends them to a
backend at once; the trace (lang/trace.py) records them as IR. Both see the same calls in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from sglc.ir.specs import GenSpec, ImageSpec, Location, SelectSpec


class Sink(Protocol):
    """Operations on one state. None of the appending ones blocks; `at` is where the user wrote it."""

    def text(self, value: Any, at: Location | None) -> None:
        """Append text: a str, or while tracing a traced string."""

    def gen(self, spec: GenSpec, at: Location | None) -> None: ...

    def select(self, spec: SelectSpec, at: Location | None) -> None: ...

    def image(self, spec: ImageSpec, at: Location | None) -> None: ...

    def role_begin(self, role: str, at: Location | None) -> None: ...

    def role_end(self, role: str, at: Location | None) -> None: ...

    def scope_begin(self, name: str, at: Location | None) -> None: ...

    def scope_end(self, name: str, at: Location | None) -> None: ...

    def fork(self, size: int, at: Location | None) -> Sequence[Sink]: ...

    def join(self, children: Sequence[Sink], mode: str, at: Location | None) -> None: ...

    def read(self, name: Any, at: Location | None) -> Any:
        """The variable's value; waits for it. KeyError if nothing defines it."""

    def has(self, name: Any) -> bool:
        """Whether the variable has a value now; never waits."""

    def assign(self, name: Any, value: Any) -> None: ...

    def meta(self, name: Any, timeout: float | None = None) -> dict[str, Any] | None:
        """What is known of the call that wrote it; waits for it, raises TimeoutError after so many seconds."""

    def full_text(self) -> str: ...

    def messages(self) -> list[dict[str, Any]]: ...

    def error(self) -> BaseException | None: ...

    def sync(self) -> None: ...

    def finish(self) -> None:
        """The body is over: nothing more will be appended."""

    def chunks(self, name: str | None) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """Chunks of the text (or of one variable) with the latest meta info, from its beginning until it is complete."""
