"""What users write on `s`: `s += ...`, `s["name"]`, roles, forks, joins.

A ProgramState turns these into calls of its Sink (lang/sink.py), so the same program can run at once or be traced.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sglc.ir.specs import Location
from sglc.lang.location import user_location
from sglc.lang.pieces import Appended, Gen, Image, Piece, Role, Row, Select, assistant, system, user
from sglc.lang.sink import Sink
from sglc.lang.typed import Types, parse


class ProgramState:
    """The prompt so far. Appending never blocks; reading a variable waits until the model has written it.

    `ret_value` is what the body returned.
    """

    def __init__(self, sink: Sink, types: Types | None = None) -> None:
        """`types` are those of the program's variables."""
        self.sink = sink
        self.types = Types() if types is None else types
        self.ret_value: Any = None

    # -- appending ----------------------------------------------------------------------------------------------

    def __iadd__(self, other: Any) -> ProgramState:
        self._append(other, user_location())
        return self

    def _append(self, value: Any, at: Location | None) -> None:
        sink = self.sink
        if isinstance(value, str):
            sink.text(value, at)
        elif isinstance(value, Gen):
            if value.type is not None and value.spec.name is not None:
                self.types.note(value.spec.name, value.type)
            sink.gen(value.spec, at)
        elif isinstance(value, Select):
            sink.select(value.spec, at)
        elif isinstance(value, Row):
            for piece in value.pieces:
                self._append(piece, at)
        elif isinstance(value, Role):
            (sink.role_begin if value.edge == "begin" else sink.role_end)(value.role, at)
        elif isinstance(value, Image):
            sink.image(value.spec, at)
        elif isinstance(value, Appended):
            pass
        elif value is None:
            raise ValueError(f"{at}: Tried to append None to state.")
        else:
            sink.text(value, at)  # a traced string; a live sink refuses anything else

    def _role(self, role: str, make: Callable[[Any], Row], expr: Any) -> Any:
        if expr is None:
            return self._message(role)
        self._append(make(expr), user_location())
        return Appended()

    @contextmanager
    def _message(self, role: str) -> Iterator[None]:
        self.sink.role_begin(role, user_location())
        yield
        self.sink.role_end(role, user_location())

    def system(self, expr: Any = None) -> Any:
        """Append a system message; without an argument, a `with` block around it."""
        return self._role("system", system, expr)

    def user(self, expr: Any = None) -> Any:
        """Append a user message; without an argument, a `with` block around it."""
        return self._role("user", user, expr)

    def assistant(self, expr: Any = None) -> Any:
        """Append an assistant message; without an argument, a `with` block around it."""
        return self._role("assistant", assistant, expr)

    @contextmanager
    def var_scope(self, name: str) -> Iterator[None]:
        """What is appended in the block becomes variable `name`."""
        self.sink.scope_begin(name, user_location())
        try:
            yield
        finally:
            self.sink.scope_end(name, user_location())

    # -- branches -----------------------------------------------------------------------------------------------

    def fork(self, size: int = 1, position_ids_offset: Sequence[int] | None = None) -> ProgramStateGroup:
        """`size` states that go on from here independently. Raises ValueError for offsets that are not 0."""
        if position_ids_offset is not None and any(position_ids_offset):
            raise ValueError(
                f"{user_location()}: position_ids_offset={list(position_ids_offset)}: positions cannot be shifted, since a "
                "branch goes on from what its parent has computed; leave it out"
            )
        children = self.sink.fork(int(size), user_location())
        return ProgramStateGroup([ProgramState(child, self.types) for child in children], self)

    @contextmanager
    def copy(self, position_ids_offset: Sequence[int] | None = None) -> Iterator[ProgramState]:
        """One branch, joined at the end of the block."""
        group = self.fork(1, position_ids_offset)
        try:
            yield group[0]
        finally:
            group.join()

    # -- reading ------------------------------------------------------------------------------------------------

    def __getitem__(self, name: Any) -> Any:
        return self.sink.read(name, user_location())

    get_var = __getitem__

    def parsed(self, name: Any, type: Any = None) -> Any:
        """The value that a variable's text stands for, of the type that its gen was given, or of `type`.

        Raises RunError if the text is no value of that type, KeyError if no type is known.
        """
        wanted = self.types.of(name) if type is None else type
        return parse(wanted, self.sink.read(name, user_location()))

    def __setitem__(self, name: Any, value: Any) -> None:
        self.sink.assign(name, value)

    set_var = __setitem__

    def __contains__(self, name: Any) -> bool:
        return self.sink.has(name)

    def get_meta_info(self, name: Any, timeout: float | None = None) -> dict[str, Any] | None:
        """Token counts, finish reason and log-probabilities of the gen that wrote `name`; None if there is none.

        Raises TimeoutError if it is not there after `timeout` seconds.
        """
        return self.sink.meta(name, timeout)

    def text(self) -> str:
        """The whole text, once everything appended so far is there."""
        return self.sink.full_text()

    def messages(self) -> list[dict[str, Any]]:
        """The conversation, as role and content."""
        return self.sink.messages()

    def error(self) -> BaseException | None:
        """What went wrong, if anything did."""
        return self.sink.error()

    def sync(self) -> None:
        """Wait for everything appended so far."""
        self.sink.sync()

    def text_iter(self, var_name: str | None = None) -> Iterator[str]:
        """Chunks of the text, or of one variable, as they come (in a run with `stream=True`); always from its beginning."""
        for text, _ in self.sink.chunks(var_name):
            if text:
                yield text

    async def text_async_iter(
        self, var_name: str | None = None, return_meta_data: bool = False
    ) -> AsyncIterator[Any]:
        """`text_iter` for asyncio; with a name and `return_meta_data`, pairs of chunk and meta info, of which the last
        tells why the answer ended; its chunk may be empty."""
        import asyncio

        chunks = self.sink.chunks(var_name)
        while (item := await asyncio.to_thread(next, chunks, None)) is not None:
            text, meta = item
            if return_meta_data and var_name is not None:
                yield text, meta
            elif text:
                yield text

    def __repr__(self) -> str:
        return f"ProgramState({self.text()})"


class ProgramStateGroup:
    """The branches of a fork. `group += x` appends to all: the same piece, one of a list each, or `x(i)`."""

    def __init__(self, states: list[ProgramState], parent: ProgramState) -> None:
        self.states = states
        self.parent = parent

    def join(self, mode: str = "gather_variable") -> None:
        """End the branches: their new variables become lists in the parent, or their texts are appended to it."""
        if mode not in ("gather_variable", "concate_and_append"):
            raise ValueError(
                f"{user_location()}: join(mode={mode!r}): choose gather_variable or concate_and_append"
            )
        self.parent.sink.join([s.sink for s in self.states], mode, user_location())

    def __getitem__(self, index: int) -> ProgramState:
        return self.states[index]

    def __setitem__(self, index: int, value: ProgramState) -> None:
        if self.states[index] is not value:
            raise AssertionError("a branch cannot be replaced; use group[i] += ...")

    def __len__(self) -> int:
        return len(self.states)

    def __iter__(self) -> Iterator[ProgramState]:
        return iter(self.states)

    def __iadd__(self, other: Any) -> ProgramStateGroup:
        at = user_location()
        if isinstance(other, Piece):
            values = [other] * len(self.states)
        elif isinstance(other, (list, tuple)):
            if len(other) != len(self.states):
                raise ValueError(f"{at}: {len(other)} values for {len(self.states)} branches")
            values = list(other)
        elif callable(other):
            values = [other(i) for i in range(len(self.states))]
        else:
            raise ValueError(
                f"{at}: Invalid value: {other!r}; append a piece, a list with one value for each branch, or a function of the index"
            )
        for state, value in zip(self.states, values, strict=True):
            state._append(value, at)
        return self
