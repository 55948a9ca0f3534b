"""What may be appended to a state: text, `gen(...)`, `select(...)`, `image(...)`, roles, or several in a row.

Pieces are plain descriptions; appending the same piece twice does it twice. `a + b` is a row of pieces.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from runtime.api import Constraint
from runtime.reasoning import reasoning_tags
from sglc.ir.specs import GenSpec, ImageSpec, SamplingFields, SelectSpec
from sglc.lang.choices import ChoicesSamplingMethod, token_length_normalized
from sglc.lang.type_schema import schema_of
from sglc.lang.values import TracedStr

REGEX_INT = r"[-+]?[0-9]+[ \n]*"
REGEX_FLOAT = r"[-+]?[0-9]*\.?[0-9]+[ \n]*"
REGEX_BOOL = r"(True|False)"
REGEX_STR = r"\"[\w\d\s]*\""
DTYPES = {"int": REGEX_INT, "float": REGEX_FLOAT, "bool": REGEX_BOOL, "str": REGEX_STR}


class Piece:
    """Something that can be appended, or joined to others by `+`."""

    def __add__(self, other: Any) -> Row:
        return Row((*_flat(self), *_flat(other)))

    def __radd__(self, other: Any) -> Row:
        return Row((*_flat(other), *_flat(self)))

    def __format__(self, spec: str) -> str:
        kind = type(self).__name__.lower()
        raise TypeError(
            f"a {kind} is not text yet, so it cannot stand in an f-string: append it with + or +="
        )


@dataclass(frozen=True)
class Row(Piece):
    """Pieces (and text between them) in order."""

    pieces: tuple[Any, ...]


@dataclass(frozen=True)
class Gen(Piece):
    """`type`: what the text stands for, if it was given (sglc/lang/typed.py)."""

    spec: GenSpec
    type: Any = None


@dataclass(frozen=True)
class Select(Piece):
    spec: SelectSpec


@dataclass(frozen=True)
class Image(Piece):
    spec: ImageSpec


@dataclass(frozen=True)
class Role(Piece):
    """The beginning or the end of a message."""

    role: str
    edge: Literal["begin", "end"]


class Appended(Piece):
    """What `s.user(...)` returns: it has been appended already, so appending it does nothing."""


def _flat(value: Any) -> tuple[Any, ...]:
    return value.pieces if isinstance(value, Row) else (value,)


def _strings(value: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    return (value,) if isinstance(value, str) else tuple(value)


def _dtype_name(dtype: Any) -> str | None:
    if dtype is None:
        return None
    name = dtype.__name__ if isinstance(dtype, type) else dtype
    if name not in DTYPES:
        raise ValueError(f"gen(dtype={dtype!r}): choose int, float, bool or str")
    return name


def _json_text(name: str, document: str | Mapping[str, Any]) -> str:
    try:
        return document if isinstance(document, str) else json.dumps(document)
    except TypeError as error:
        raise TypeError(f"gen({name}=...): {error}; for a model or another type use type=") from None


def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    min_tokens: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    ignore_eos: bool | None = None,
    return_logprob: bool | None = None,
    logprob_start_len: int | None = None,
    top_logprobs_num: int | None = None,
    return_text_in_logprobs: bool | None = None,
    dtype: type | str | None = None,
    choices: Sequence[str] | None = None,
    choices_method: ChoicesSamplingMethod | None = None,
    regex: str | None = None,
    json_schema: str | Mapping[str, Any] | None = None,
    *,
    ebnf: str | None = None,
    structural_tag: str | Mapping[str, Any] | None = None,
    type: Any = None,
    n: int | None = None,
    seed: int | None = None,
) -> Gen | Select:
    """Let the model write; the text becomes variable `name`.

    None takes the run's default. `choices` makes it a `select`. `n` asks for several samples: the variable is the
    list of them, and the state goes on with the first. `json_schema` is JSON text, or what becomes it; `ebnf` a grammar in
    EBNF or Lark's syntax; `structural_tag` free text with constrained parts, `{"triggers": [...], "structures": [{"begin":
    ..., "schema": ..., "end": ...}]}`, as JSON text or what becomes it. `type` (a pydantic model, a dataclass, list[int], ...) asks for JSON of that type, and
    `s.parsed(name)` gives its value. Raises ValueError, TypeError or re.error for bad arguments.
    """
    kinds = {
        "regex": regex, "dtype": dtype, "json_schema": json_schema, "ebnf": ebnf, "structural_tag": structural_tag,
        "type": type,
    }  # fmt: skip
    several = [k for k, v in kinds.items() if v is not None]
    if choices:
        held = [k for k in several if k != "dtype"]
        if held:
            raise ValueError(f"gen: choices and {held[0]} cannot be given together; leave one out")
        return select(name, choices, temperature or 0.0, choices_method or token_length_normalized)
    if regex is not None:
        re.compile(regex)
    if len(several) > 1 and set(several) != {"regex", "dtype"}:
        raise ValueError(f"gen: {several[0]} and {several[1]} cannot be given together; leave one out")
    if n is not None and n < 1:
        raise ValueError(f"gen(n={n}): ask for at least one sample")
    kind = _dtype_name(dtype)
    constraint = None
    if kind is not None:
        if regex is not None:
            import warnings

            warnings.warn("Both dtype and regex are set. Only dtype will be used.", stacklevel=2)
        constraint = Constraint("regex", DTYPES[kind])
    elif regex is not None:
        constraint = Constraint("regex", regex)
    elif json_schema is not None:
        constraint = Constraint("json_schema", _json_text("json_schema", json_schema))
    elif ebnf is not None:
        constraint = Constraint("ebnf", ebnf)
    elif structural_tag is not None:
        constraint = Constraint("structural_tag", _json_text("structural_tag", structural_tag))
    elif type is not None:
        constraint = Constraint("json_schema", schema_of(type))
    fields = SamplingFields(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        stop=_strings(stop),
        stop_token_ids=None if stop_token_ids is None else tuple(stop_token_ids),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        ignore_eos=ignore_eos,
        seed=seed,
        return_logprob=return_logprob,
        logprob_start_len=logprob_start_len,
        top_logprobs_num=top_logprobs_num,
        return_text_in_logprobs=return_text_in_logprobs,
    )
    return Gen(GenSpec(name, fields, constraint, kind, n), type)


def separate_reasoning(expr: Gen | Row, model_type: str) -> Row:
    """Of what the gens in `expr` write, only the answer stays in the state and in their variables.

    The reasoning of gen("x") becomes the variable "x_reasoning_content". `model_type` is the family of the model, which
    says by which tags it reasons. Raises ValueError for an unknown family, or where there is no named gen to separate.
    """
    reasoning_tags(model_type)
    pieces: list[Any] = []
    for piece in _flat(expr):
        if isinstance(piece, Gen):
            if piece.spec.name is None or piece.spec.n is not None:
                raise ValueError("separate_reasoning: the gen needs a name, and cannot have n samples")
            piece = replace(piece, spec=replace(piece.spec, reasoning=model_type))
        pieces.append(piece)
    if not any(isinstance(p, Gen) for p in pieces):
        raise ValueError("separate_reasoning: there is no gen in it; write separate_reasoning(gen(...), ...)")
    return Row(tuple(pieces))


def _typed(dtype: type, name: str, doc: str) -> Callable[..., Gen]:
    def make(
        name: str | None = None,
        max_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        stop_token_ids: Sequence[int] | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        frequency_penalty: float | None = None,
        presence_penalty: float | None = None,
        ignore_eos: bool | None = None,
        return_logprob: bool | None = None,
        logprob_start_len: int | None = None,
        top_logprobs_num: int | None = None,
        return_text_in_logprobs: bool | None = None,
        *,
        n: int | None = None,
        seed: int | None = None,
    ) -> Gen:
        made = gen(
            name,
            max_tokens,
            None,
            stop,
            stop_token_ids,
            temperature,
            top_p,
            top_k,
            min_p,
            frequency_penalty,
            presence_penalty,
            ignore_eos,
            return_logprob,
            logprob_start_len,
            top_logprobs_num,
            return_text_in_logprobs,
            dtype,
            n=n,
            seed=seed,
        )
        assert isinstance(made, Gen)
        return made

    make.__name__ = make.__qualname__ = name
    make.__doc__ = doc
    return make


gen_int = _typed(int, "gen_int", "`gen` of an integer; the variable is its text.")
gen_string = _typed(str, "gen_string", "`gen` of a quoted string; the variable keeps the quotes.")


def select(
    name: str | None = None,
    choices: Sequence[str] | None = None,
    temperature: float = 0.0,
    choices_method: ChoicesSamplingMethod = token_length_normalized,
) -> Select:
    """Append the choice that the model finds likeliest; it becomes variable `name`."""
    if choices is None:
        raise AssertionError("select needs choices: select(name, choices=[...])")
    if isinstance(choices, str) or not all(isinstance(c, (str, TracedStr)) for c in choices):
        raise ValueError(f"select({name!r}): choices must be a list of strings, got {choices!r}")
    if not choices:
        raise ValueError(f"select({name!r}): the list of choices is empty; give at least one")
    if temperature > 1e-5:
        raise ValueError(
            f"select({name!r}): temperature is {temperature}, but a select is decided, not drawn; leave it out"
        )
    return Select(SelectSpec(name, tuple(choices), choices_method, temperature))


def image(source: str | bytes | Path | Any) -> Image:
    """An image: a path, encoded bytes, or a PIL image (kept as PNG)."""
    if isinstance(source, (str, Path)):
        return Image(ImageSpec(Path(source).read_bytes()))
    if isinstance(source, bytes):
        return Image(ImageSpec(source))
    if hasattr(source, "save"):
        buffer = io.BytesIO()
        source.save(buffer, format="PNG")
        return Image(ImageSpec(buffer.getvalue()))
    raise TypeError(f"image({type(source).__name__}): give a path, bytes or a PIL image")


def video(source: str | bytes | Path | Sequence[Any], num_frames: int) -> Row:
    """A video as `num_frames` images in order, from a path, bytes or a list of frames. See `lang/frames.py` for errors."""
    from sglc.lang.frames import frames_of

    return Row(tuple(Image(ImageSpec(frame)) for frame in frames_of(source, num_frames)))


def _message(role: str) -> Callable[..., Row]:
    def make(expr: Any = None) -> Row:
        inner = () if expr is None else _flat(expr)
        return Row((Role(role, "begin"), *inner, Role(role, "end")))

    make.__name__ = role
    make.__doc__ = f"A whole {role} message around text and pieces."
    return make


def _edge(role: str, edge: Literal["begin", "end"]) -> Callable[[], Role]:
    def make() -> Role:
        return Role(role, edge)

    make.__name__ = f"{role}_{edge}"
    make.__doc__ = f"The {edge} of a {role} message."
    return make


system, user, assistant = (_message(r) for r in ("system", "user", "assistant"))
system_begin, user_begin, assistant_begin = (_edge(r, "begin") for r in ("system", "user", "assistant"))
system_end, user_end, assistant_end = (_edge(r, "end") for r in ("system", "user", "assistant"))
