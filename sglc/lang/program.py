"""`@sgl.function`: a Python function that builds a prompt, and the ways to run it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from sglc.config import global_config
from sglc.ir.specs import RUN_DEFAULTS, SamplingFields
from sglc.lang.async_runs import AsyncRuns
from sglc.lang.state import ProgramState
from sglc.lang.typed import Types
from sglc.lang.values import ACTIVE

# The backend of the run that is going on in this context; programs that a body calls inherit it.
_CURRENT: ContextVar[Any] = ContextVar("sglc-backend", default=None)


def set_default_backend(backend: Any) -> None:
    """The backend of runs that name none, in the whole process."""
    global_config.default_backend = backend


def resolve_backend(backend: Any) -> Any:
    """The `runtime.backends.base.Backend` behind what a user gave: itself, or its `endpoint`.

    Raises AssertionError if there is none.
    """
    found = backend or _CURRENT.get() or global_config.default_backend
    if found is None:
        raise AssertionError(
            "Please specify a backend: run(backend=...), or set_default_backend(...); sgl.Engine() runs the embedded model"
        )
    return getattr(found, "endpoint", found)


def run_defaults(fields: Mapping[str, Any]) -> SamplingFields:
    """The run's sampling fields, from keyword arguments of `run`."""
    given = {k: v for k, v in fields.items() if v is not None}
    if "max_new_tokens" in given:
        given["max_tokens"] = given.pop("max_new_tokens")
    if isinstance(given.get("stop"), str):
        given["stop"] = (given["stop"],)
    for name in ("stop", "stop_token_ids"):
        if name in given:
            given[name] = tuple(given[name])
    return SamplingFields(**given).over(RUN_DEFAULTS)


def _with_sampling(method: Callable[..., Any]) -> Callable[..., Any]:
    """Collect the sampling arguments of a run in one mapping, `sampling`."""
    names = (
        "max_new_tokens",
        "stop",
        "stop_token_ids",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "frequency_penalty",
        "presence_penalty",
        "ignore_eos",
        "seed",
        "return_logprob",
        "logprob_start_len",
        "top_logprobs_num",
        "return_text_in_logprobs",
    )

    @functools.wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        sampling = run_defaults({n: kwargs.pop(n) for n in names if n in kwargs})
        return method(self, *args, sampling=sampling, **kwargs)

    return wrapper


class Program(AsyncRuns):
    """A decorated function. Its parameters after `s` are the program's arguments."""

    def __init__(
        self,
        func: Callable[..., Any],
        num_api_spec_tokens: int | None = None,
        bind_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.func = func
        self.num_api_spec_tokens = num_api_spec_tokens
        self.bound = dict(bind_arguments or {})
        self.types = Types()  # of variables, as far as gens with a type were seen
        functools.update_wrapper(self, func)
        self.__name__ = func.__name__
        parameters = list(inspect.signature(func).parameters.values())
        if not parameters or parameters[0].name != "s":
            raise AssertionError(
                f"the first argument of a program must be `s`: write def {func.__name__}(s, ...) instead of "
                f"def {func.__name__}({', '.join(p.name for p in parameters)})"
            )
        _check_callable(func, parameters[1:])
        self._signature = inspect.Signature(parameters[1:])
        self.arg_names = [p.name for p in parameters[1:]]
        self.arg_defaults = [p.default for p in parameters[1:] if p.default is not inspect.Parameter.empty]

    @property
    def parameter_names(self) -> list[str]:
        return self.arg_names

    def bind_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by name, defaults included; bound ones win. Raises TypeError as a call would."""
        try:
            bound = self._signature.bind(*args, **{**kwargs, **self.bound})
        except TypeError as error:
            raise TypeError(f"{self.__name__}: {error}") from None
        bound.apply_defaults()
        return dict(bound.arguments)

    def bind(self, **kwargs: Any) -> Program:
        """The program with some arguments fixed. Raises AssertionError for names it does not have."""
        unknown = [k for k in kwargs if k not in self.arg_names]
        if unknown:
            raise AssertionError(
                f"{self.__name__} has no argument {unknown[0]!r}; it has {', '.join(self.arg_names)}"
            )
        return Program(self.func, self.num_api_spec_tokens, {**self.bound, **kwargs})

    # -- running ------------------------------------------------------------------------------------------------

    @_with_sampling
    def run(
        self,
        *args: Any,
        sampling: SamplingFields,
        stream: bool = False,
        backend: Any = None,
        raise_on_error: bool = False,
        **kwargs: Any,
    ) -> ProgramState:
        """Run the body; returns its state, while generation may still go on.

        Sampling arguments (max_new_tokens=128, stop, stop_token_ids, temperature=1.0, top_p, top_k, min_p,
        frequency_penalty, presence_penalty, ignore_eos, seed, return_logprob, logprob_start_len, top_logprobs_num,
        return_text_in_logprobs) are defaults for gens that do not say otherwise. With `stream` the body runs in a
        thread and `text_iter` gives chunks. Raises what the body raises; what the backend could not do is in
        `state.error()`, or raised if `raise_on_error`.
        """
        from sglc.exec.interpreter import interpret

        arguments = self.bind_arguments(args, kwargs)
        return interpret(
            self, arguments, resolve_backend(backend), sampling, stream=stream, raise_on_error=raise_on_error
        )

    @_with_sampling
    def run_batch(
        self,
        batch_kwargs: Sequence[Any],
        *,
        sampling: SamplingFields,
        backend: Any = None,
        num_threads: int | str = "auto",
        progress_bar: bool = False,
        return_exceptions: bool = False,
        on_done: Callable[[int, Any], None] | None = None,
    ) -> list[Any]:
        """Run once for each row (a dict, or a list or tuple of positional values); finished states in the rows' order.

        An exception of a body is raised when all others are done, or with `return_exceptions` returned in its
        place. What the backend could not do stays in the `error()` of its state. `on_done` is called with the number
        and the state (or exception) of each row as it ends, in any order and any thread: it must not wait.
        """
        from sglc.exec.batch import interpret_batch

        rows = self.bind_rows(batch_kwargs)
        if not rows:
            return []
        return interpret_batch(
            self,
            rows,
            resolve_backend(backend),
            sampling,
            num_threads=num_threads,
            progress_bar=progress_bar,
            return_exceptions=return_exceptions,
            on_done=on_done,
        )

    def bind_rows(self, batch: Sequence[Any]) -> list[dict[str, Any]]:
        """The arguments of every row of a batch."""
        if not isinstance(batch, (list, tuple)):
            raise AssertionError(f"run_batch takes a list of rows, not a {type(batch).__name__}")
        if batch and not isinstance(batch[0], dict):
            least = len(self.arg_names) - len(self.arg_defaults)
            count = len(batch[0])
            if not least <= count <= len(self.arg_names) or any(len(row) != count for row in batch):
                raise Exception("Given arguments mismatch the SGL function signature")
            batch = [dict(zip(self.arg_names, row, strict=False)) for row in batch]
        return [self.bind_arguments((), row) for row in batch]

    def __call__(self, *args: Any, **kwargs: Any) -> ProgramState:
        """`run`; inside a program that is being traced, a call in its graph."""
        tracing = ACTIVE.get()
        if tracing is not None:
            return self._traced_call(tracing, args, kwargs)
        return self.run(*args, **kwargs)

    @_with_sampling
    def _traced(self, *args: Any, sampling: SamplingFields, tracing: Any, **kwargs: Any) -> ProgramState:
        return tracing.call(self, args, kwargs, sampling)

    def _traced_call(self, tracing: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ProgramState:
        return self._traced(*args, tracing=tracing, **kwargs)

    # -- compiling ----------------------------------------------------------------------------------------------

    def defaults(self) -> dict[str, Any]:
        """Values of the arguments that need not be given; bound ones are among them."""
        found = {n: p.default for n, p in self._signature.parameters.items() if p.default is not p.empty}
        return {**found, **self.bound}

    def trace(self, *, backend: Any = None, **kwargs: Any) -> Any:
        """The program's IR, as a Module (sglc/ir). What is given here, or bound, is a constant of it, and so is a
        default that is not a string; other arguments stay unknown. Raises TraceError with file and line."""
        from sglc.lang.trace import trace

        known = {**self.defaults(), **kwargs}
        fixed = {n for n in known if n in kwargs or n in self.bound or type(known[n]) is not str}
        return trace(self, known, frozenset(self.arg_names) - fixed)

    def compile(self, *, backend: Any = None, passes: str | None = None, verify: bool = False) -> Any:
        """The compiled program: the same `run` and `run_batch`, the same results.

        Arguments that are strings may differ from run to run; for other ones each new value is compiled anew. What
        cannot be compiled runs interpreted, and `breaks` says why. `passes` is a pipeline such as
        "canonicalize,hoist-prefix"; `verify` checks the IR around each pass.
        """
        from sglc.exec.compiled import CompiledProgram

        return CompiledProgram(self, backend=backend, passes=passes, verify=verify)

    def cache(self, backend: Any = None) -> None:
        """Compute the text that every run begins with, and keep it in the backend's prefix cache."""
        from sglc.exec.batch import warm_prefix

        warm_prefix(self, resolve_backend(backend), {})


def _check_callable(func: Callable[..., Any], parameters: Sequence[inspect.Parameter]) -> None:
    """Raises TypeError for a function that a run cannot call, or that would do nothing when it is called."""
    is_async = inspect.iscoroutinefunction(func) or inspect.isasyncgenfunction(func)
    if is_async or inspect.isgeneratorfunction(func):
        kind = "async" if is_async else "a generator"
        raise TypeError(
            f"{func.__name__} is {kind}, so calling it runs nothing of it: write a plain def; `await program.arun(...)` runs it "
            "in asyncio"
        )
    for p in parameters:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY):
            raise TypeError(
                f"the argument `{p}` of {func.__name__} cannot be given by name: name every argument; a list or a dict can be one"
            )


def function(func: Callable[..., Any] | None = None, num_api_spec_tokens: int | None = None) -> Any:
    """Make a program of a function whose first argument is `s`. Works with and without parentheses."""
    if func is not None:
        return Program(func, num_api_spec_tokens)
    return lambda f: Program(f, num_api_spec_tokens)


def flush_cache(backend: Any = None) -> Any:
    """Forget cached prefixes of a backend; False if there is no backend or it is busy."""
    import asyncio

    from sglc.exec.loop import event_loop

    if backend is None and global_config.default_backend is None:
        return False
    return asyncio.run_coroutine_threadsafe(resolve_backend(backend).flush_cache(), event_loop()).result()


def get_server_info(backend: Any = None) -> dict[str, Any] | None:
    """Facts about a backend's server; None if there is no backend or it has none."""
    import asyncio

    from sglc.exec.loop import event_loop

    if backend is None and global_config.default_backend is None:
        return None
    front = backend or global_config.default_backend
    if hasattr(front, "get_server_info"):
        return front.get_server_info()
    target = resolve_backend(backend)
    ask = getattr(target, "server_info", None) or getattr(target, "stats", None)
    return asyncio.run_coroutine_threadsafe(ask(), event_loop()).result() if ask else None


get_server_args = get_server_info
