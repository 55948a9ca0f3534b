"""Every op, one frozen class each; the string and scalar ops are in ir/pure.py.

What a class declares is all there is to know of it: the printer, the parser, JSON, the verifier and the
passes read the roles of its fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from runtime.compute import pack
from sglc.errors import IRError
from sglc.ir.core import Licence, Node, Region, node
from sglc.ir.pure import PURE_OPS
from sglc.ir.slots import (
    AnyDef,
    AnyDefs,
    Arg,
    Args,
    Carried,
    Fields,
    Inner,
    State,
    StateDef,
    StateDefs,
    States,
    StrDef,
    StrDefs,
    Symbol,
    Value,
)
from sglc.ir.specs import SamplingFields
from sglc.ir.types import check_results, fits, type_of

JOIN_MODES = ("gather_variable", "concate_and_append")
METHODS = ("token_length_normalized", "greedy_token_selection", "unconditional_likelihood_normalized")


@node
class Begin(Node, op="begin"):
    """The empty state that a program starts from."""

    out: StateDef


@node
class Text(Node, op="text"):
    """Append text: constants and string values, in order."""

    out: StateDef
    state: State
    parts: Args

    def verify(self) -> None:
        for part in self.parts:
            if not isinstance(part, str) and not (isinstance(part, Value) and part.type in ("str", "any")):
                raise IRError(f"text: appends strings, but {part} is {type_of(part)}")


@node
class Image(Node, op="image"):
    """Append an image, or the frames of a video, given as encoded bytes."""

    out: StateDef
    state: State
    data: bytes
    kind: str = "image"


@node
class RoleBegin(Node, op="role_begin"):
    """Open a message; the chat template says what text that is."""

    out: StateDef
    state: State
    role: str


@node
class RoleEnd(Node, op="role_end"):
    """Close the open message."""

    out: StateDef
    state: State
    role: str


@node
class ScopeBegin(Node, op="scope_begin"):
    """From here on, text belongs to the variable `name` too."""

    out: StateDef
    state: State
    name: str


@node
class ScopeEnd(Node, op="scope_end"):
    """`text` is what was appended since the scope began; it is the variable `name`."""

    out: StateDef
    text: StrDef
    state: State
    name: str


@node
class SetVar(Node, op="set_var"):
    """Give the variable `name` a value; the text stays as it is."""

    out: StateDef
    state: State
    value: Arg
    name: str


@node
class Read(Node, op="read"):
    """The body reads a value and makes nothing of it: if the value never comes, the run fails there."""

    value: Arg


@node
class Gen(Node, op="gen"):
    """Let the model continue the state; `text` is what it wrote (with `n`, the list of what it wrote).

    `isolated`: of a program that was called, so what it does not say itself it takes from the defaults of every run.
    """

    out: StateDef
    text: StrDef
    state: State
    name: str | None = None
    sampling: Fields = SamplingFields()
    constraint: Symbol | None = None
    dtype: str | None = None
    n: int | None = None
    isolated: bool = False

    @property
    def licence(self) -> Licence:
        """Pure if it is greedy or seeded by itself; a default that the run sets does not count."""
        greedy = self.sampling.temperature is not None and self.sampling.temperature < 1e-6
        return Licence.PURE if greedy or self.sampling.seed is not None else Licence.SAMPLED

    def verify(self) -> None:
        if self.n is not None and self.n < 1:
            raise IRError(f"gen: n is {self.n} but must be at least 1")
        wanted = "str" if self.n is None else "list<str>"
        if self.text.type != wanted:
            raise IRError(f"gen: with n={self.n} it defines a {wanted}, but {self.text} is {self.text.type}")


@node
class Select(Node, op="select"):
    """Append the choice the model finds likeliest; `text` is that choice. `method` says how likelihood is counted."""

    out: StateDef
    text: StrDef
    state: State
    choices: Args
    name: str | None = None
    method: str = METHODS[0]

    @property
    def licence(self) -> Licence:
        return Licence.PURE

    def verify(self) -> None:
        if not self.choices:
            raise IRError("select: there are no choices")
        for choice in self.choices:
            if not isinstance(choice, str) and not (
                isinstance(choice, Value) and choice.type in ("str", "any")
            ):
                raise IRError(f"select: a choice is a string, but {choice} is {type_of(choice)}")
        if self.method not in METHODS:
            raise IRError(f"select: unknown method {self.method!r}; there are {', '.join(METHODS)}")


@node
class Reuse(Node, op="reuse"):
    """Append what an equal gen or select wrote, as it wrote it; `source` is its answer."""

    out: StateDef
    text: AnyDef
    state: State
    source: Arg
    name: str | None = None

    @property
    def licence(self) -> Licence:
        return Licence.PURE

    def verify(self) -> None:
        if not isinstance(self.source, Value) or self.source.type != self.text.type:
            raise IRError(
                f"reuse: {self.text} is {self.text.type}, but what it takes, {self.source}, is another type"
            )


@node
class Fork(Node, op="fork"):
    """Copies of the state as it is here. The state itself goes on: a fork does not use it up."""

    outs: StateDefs
    state: State


@node
class Join(Node, op="join"):
    """End the branches: gather the variables that are new in them into lists, or append their text."""

    out: StateDef
    state: State
    branches: States
    mode: str = JOIN_MODES[0]

    def verify(self) -> None:
        if self.mode not in JOIN_MODES:
            raise IRError(f"join: unknown mode {self.mode!r}; there are {', '.join(JOIN_MODES)}")


@node
class Call(Node, op="call"):
    """Run another program on a fresh state.

    `text` is its final text, `values` its variables (their names in `variables`), then what it returns.
    `sampling` are the defaults of its gens: those of a run, not the caller's.
    """

    text: StrDef
    values: StrDefs
    callee: Arg
    args: Args
    variables: tuple[str, ...] = ()
    sampling: Fields = SamplingFields()

    @property
    def licence(self) -> Licence:
        return Licence.SAMPLED

    @property
    def symbol(self) -> Symbol:
        if not isinstance(self.callee, Symbol):
            raise IRError(f"call: its first operand is a graph such as @f, not {self.callee!r}")
        return self.callee

    def verify(self) -> None:
        _ = self.symbol
        if len(self.values) != len(self.variables) + 1:
            raise IRError(
                f"call: {self.symbol} with {len(self.variables)} variables defines its text, each of them and its "
                f"result, {len(self.variables) + 2} values, not {len(self.values) + 1}"
            )


@node
class Pack(Node, op="pack"):
    """A list, tuple or dict of values."""

    out: AnyDef
    items: Args
    kind: str = "list"
    keys: tuple[str, ...] = ()

    @property
    def licence(self) -> Licence:
        return Licence.PURE

    def verify(self) -> None:
        if self.kind not in ("list", "tuple", "dict"):
            raise IRError(f"pack: kind is {self.kind!r} but must be list, tuple or dict")
        if self.kind == "dict" and len(self.keys) != len(self.items):
            raise IRError(f"pack: {len(self.keys)} keys for {len(self.items)} items")

    def compute(self, operands: tuple[Any, ...]) -> Any:
        return pack(self.kind, self.keys, operands)


@node
class If(Node, op="if"):
    """One of two regions, by a condition; `outs` are what that region yields.

    A state that an arm appends to is used up, whichever arm runs.
    """

    outs: AnyDefs
    cond: Arg
    then: Inner = Region(())
    orelse: Inner = Region(())

    @property
    def licence(self) -> Licence:
        return weakest(self.regions)

    def verify(self) -> None:
        if not fits(type_of(self.cond), "bool"):
            raise IRError(f"if: the condition {self.cond!r} is {type_of(self.cond)}, not bool")
        for name, region in (("then", self.then), ("else", self.orelse)):
            if region.params:
                raise IRError(f"if: its regions have no parameters, but {name} has {region.params[0]}")
            check_results(f"if: {name}", region.results, self.outs)


@node
class Loop(Node, op="loop"):
    """Run a region again and again, on what it yielded the time before; `outs` are what it yields last.

    The first of its results says whether to go on, the others are the next values of its parameters, which begin as
    `inits`. It runs at least once and at most `maximum` times; needing more is an error unless `bounded`.
    """

    outs: AnyDefs
    inits: Carried
    body: Inner = Region(())
    maximum: int = 1
    bounded: bool = False

    @property
    def licence(self) -> Licence:
        return weakest(self.regions)

    def verify(self) -> None:
        if self.maximum < 1:
            raise IRError(f"loop: maximum is {self.maximum} but must be at least 1")
        check_results("loop: its start", self.inits, self.body.params)
        if not self.body.results or not fits(type_of(self.body.results[0]), "bool"):
            raise IRError("loop: the first result of its region must be a bool: whether to go on")
        check_results("loop: its region", self.body.results[1:], self.body.params)
        check_results("loop: its region", self.body.results[1:], self.outs)


@node
class Host(Node, op="host"):
    """Call a Python function where the program runs; `function` is its name, as module:qualified name."""

    out: AnyDef
    args: Args
    function: str

    @property
    def licence(self) -> Licence:
        return Licence.EFFECT


@node
class Break(Node, op="break"):
    """The end of what was traced: from here on the Python function runs interpreted, and `reason` says why."""

    state: State
    live: Args = ()
    reason: str = ""


@node
class Return(Node, op="return"):
    """The end: the final state, and what the body returned."""

    state: State
    result: Arg = None


OPS: Mapping[str, type[Node]] = MappingProxyType(
    {
        **{
            cls.op: cls
            for cls in (
                Begin, Text, Image, RoleBegin, RoleEnd, ScopeBegin, ScopeEnd, SetVar, Read, Gen, Select, Reuse, Fork,
                Join,
                Call, Pack, If, Loop, Host, Break, Return,
            )
        },
        **PURE_OPS,
    }
)  # fmt: skip


def weakest(regions: tuple[Region, ...]) -> Licence:
    """What may be done with all nodes of these regions alike."""
    found = {item.licence for region in regions for item in region.nodes}
    for licence in (Licence.EFFECT, Licence.SAMPLED, Licence.PURE):
        if licence in found:
            return licence
    return Licence.STATE
