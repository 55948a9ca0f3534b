"""The field names of the native API: sampling parameters in, meta info out."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from runtime.api import Constraint, Delta, Embedded, LogprobOptions, SamplingParams, TokenLogprob
from runtime.errors import InvalidRequest

_CONSTRAINTS: tuple[Literal["regex", "json_schema", "ebnf", "structural_tag"], ...] = (
    "regex",
    "json_schema",
    "ebnf",
    "structural_tag",
)


def sampling_params(fields: Mapping[str, Any]) -> SamplingParams:
    """SamplingParams from a caller's dict. Raises InvalidRequest that names the field and its near miss."""
    given = {k: v for k, v in fields.items() if v is not None or k in ("max_new_tokens", "seed")}
    constraints: list[Constraint] = []
    for kind in _CONSTRAINTS:
        source = given.pop(kind, None)
        if source is not None and not isinstance(source, str):
            raise InvalidRequest(
                f"{kind} is a {type(source).__name__} but must be text; write it as a JSON string", param=kind
            )
        constraints += [] if source is None else [Constraint(kind, source).compact]
    if len(constraints) > 1:
        raise InvalidRequest(f"{constraints[0].kind} and {constraints[1].kind} cannot be given together")
    known = [*(k for k in SamplingParams.__struct_fields__ if k != "constraint"), *_CONSTRAINTS]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise InvalidRequest(f"sampling parameter {name!r} is not known{hint}", param=name)
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]]
    if constraints:
        given["constraint"] = constraints[0]
    try:
        params = msgspec.convert(given, SamplingParams, strict=True, str_keys=True)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"sampling parameters: {error}", param="sampling_params") from None
    params.check()
    return params


def sampling_schema() -> dict[str, Any]:
    """JSON schema of what `sampling_params` takes."""
    (_,), parts = msgspec.json.schema_components([SamplingParams])
    fields = {k: v for k, v in parts["SamplingParams"]["properties"].items() if k != "constraint"}
    fields["stop"] = {"anyOf": [{"type": "string"}, fields["stop"]]}
    fields |= {k: {"type": ["string", "null"], "default": None} for k in _CONSTRAINTS}
    return {"properties": fields, "additionalProperties": False}


def logprob_options(wanted: bool, start: int | None, top: int | None, text: bool) -> LogprobOptions | None:
    """LogprobOptions from a caller's fields, None if none are wanted. Raises InvalidRequest for bad values."""
    if not wanted:
        return None
    options = LogprobOptions(start=-1 if start is None else start, top=top or 0, text=text)
    options.check()
    return options


def _triples(tokens: tuple[TokenLogprob, ...] | None) -> list[list[Any]]:
    return [[t.logprob, t.id, t.text] for t in tokens or ()]


def finish_reason(delta: Delta) -> dict[str, Any] | None:
    f = delta.finish
    if f is None:
        return None
    if f.type == "stop":
        return {"type": "stop", "matched": f.matched}
    return {"type": f.type, "length": f.length} if f.type == "length" else {"type": f.type}


def said(delta: Delta, has_text: bool) -> dict[str, Any]:
    """The answer itself: its text, or its ids from an engine without a tokenizer."""
    return {"text": delta.text} if has_text else {"token_ids": list(delta.ids)}


def encoded(answer: Embedded, id: str, index: int) -> dict[str, Any]:
    """What /encode and /judge answer for one prompt."""
    assert answer.usage is not None
    counts = {"prompt_tokens": answer.usage.prompt_tokens, "cached_tokens": answer.usage.cached_tokens}
    return {"embedding": list(answer.vector), "meta_info": {"id": id, **counts}, "index": index}


def meta_info(delta: Delta, id: str) -> dict[str, Any]:
    """What the native API tells beside the text."""
    out: dict[str, Any] = {"id": id, "finish_reason": finish_reason(delta)}
    if delta.usage is not None:
        u = delta.usage
        out |= {
            "prompt_tokens": u.prompt_tokens,
            "completion_tokens": u.completion_tokens,
            "completion_tokens_wo_jump_forward": u.completion_tokens - u.forced_tokens,
            "cached_tokens": u.cached_tokens,
        }
    if delta.output_logprobs or delta.input_logprobs is not None:
        counted = [t.logprob for t in delta.input_logprobs or () if t.logprob is not None]
        out["input_token_logprobs"] = _triples(delta.input_logprobs)
        out["output_token_logprobs"] = _triples(delta.output_logprobs)
        out["normalized_prompt_logprob"] = sum(counted) / len(counted) if counted else None
        if delta.output_top_logprobs or delta.input_top_logprobs:
            out["input_top_logprobs"] = [
                None if t is None else _triples(t) for t in delta.input_top_logprobs or ()
            ]
            out["output_top_logprobs"] = [_triples(t) for t in delta.output_top_logprobs]
    return out
