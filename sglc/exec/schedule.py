"""What all runs of a plan share: who waits for whom, which steps a condition guards, what each call is sent with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from runtime.plan import (
    Choose,
    Compute,
    Decode,
    Either,
    Enter,
    HostCall,
    Last,
    Output,
    Pick,
    Plan,
    Prefill,
    Prefix,
    Ref,
    Repeat,
    Rope,
    Rounds,
    Step,
    Turn,
)
from sglc.errors import PlanError
from sglc.ir.specs import RUN_DEFAULTS, GenSpec, Location, SamplingFields
from sglc.lang.host import find_host


@dataclass(frozen=True)
class Schedule:
    """What every run of a plan shares. Prefixes are numbered first, then steps."""

    plan: Plan
    needs: tuple[int, ...]  # how many others each one waits for
    releases: tuple[tuple[int, ...], ...]
    specs: Mapping[int, GenSpec]
    guarded: Mapping[int, tuple[tuple[int, bool], ...]]  # by condition: steps, and how it must turn out
    late: frozenset[int]  # those whose needs depend on a condition
    hosts: Mapping[str, Callable[..., Any]]  # functions of the client, by name

    @classmethod
    def of(cls, plan: Plan) -> Schedule:
        base = len(plan.prefixes)
        items = (*plan.prefixes, *plan.steps)
        sources = [sources_of(item, base) for item in items]
        late = {number for number, item in enumerate(items) if is_late(item)}
        guarded: dict[int, list[tuple[int, bool]]] = {}
        for number, step in enumerate(plan.steps):
            if step.when is not None:
                guarded.setdefault(step.when[0], []).append((number, step.when[1]))
        releases: list[list[int]] = [[] for _ in sources]
        for number, found in enumerate(sources):
            for source in sorted(found):
                releases[source].append(number)
        specs = {n: _spec(s) for n, s in enumerate(plan.steps) if isinstance(s, Decode)}
        return cls(
            plan,
            tuple(map(len, sources)),
            tuple(map(tuple, releases)),
            specs,
            {cond: tuple(found) for cond, found in guarded.items()},
            frozenset(late),
            {name: _host(name) for name in plan.hosts()},
        )


def _host(name: str) -> Callable[..., Any]:
    found = find_host(name)
    if found is None:
        raise PlanError(f"the plan calls {name}, which is no function marked with @sgl.host here")
    return found.func


def sources_of(item: Prefix | Step, base: int) -> set[int]:
    """What it waits for before all else; see `_is_late`."""
    found: set[int] = set()
    for part in parts_of(item):
        if isinstance(part, (Ref, Output)):
            found.add(base + part.step)
        elif isinstance(part, Either):
            found.add(base + part.cond)
        elif isinstance(part, Rounds) and part.count < 0:
            found.add(base + part.repeat)
    if isinstance(item, Prefix):
        return found | {item.parent} if item.parent >= 0 else found
    if isinstance(item, (Decode, Choose, Prefill)):
        found.add(item.prefix)
    elif isinstance(item, Pick):
        found.add(base + item.cond)
    elif isinstance(item, Repeat):
        found.add(base + item.stop - 1)
    elif isinstance(item, Last):
        found.add(base + item.repeat)
    if item.when is not None:
        found.add(base + item.when[0])
    return found


def parts_of(item: Prefix | Step) -> Rope:
    if isinstance(item, Prefix):
        return item.parts
    if isinstance(item, Compute):
        return item.operands
    if isinstance(item, Turn):
        return (item.again,)
    if isinstance(item, HostCall):
        return item.args
    return item.choices if isinstance(item, Choose) else ()


def is_late(item: Prefix | Step) -> bool:
    """Whether it may need more once a condition is known, or a loop has ended."""
    if isinstance(item, (Pick, Enter, Last)) or (isinstance(item, (HostCall, Turn)) and item.after):
        return True
    return any(isinstance(part, (Either, Rounds)) for part in parts_of(item))


def _spec(step: Decode) -> GenSpec:
    sampling = _fields(step.sampling)
    if step.defaults is not None:
        sampling = sampling.over(_fields(step.defaults).over(RUN_DEFAULTS))
    return GenSpec(step.name, sampling, step.constraint, step.dtype, step.n)


def _fields(given: Mapping[str, Any]) -> SamplingFields:
    """Sampling fields of a plan, which JSON may have made lists of."""
    values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items()}
    return SamplingFields(**values)


def location(at: str) -> Location | None:
    file, _, line = at.rpartition(":")
    return Location(file, int(line)) if file else None
