"""What callers send and what they get back, as plain immutable structs.

The prompt of a call is a tuple of segments, not one string: text is tokenised at the engine, each
maximal run of it as a whole, and token ids that a model generated before are sent back as they were,
never tokenised again. So a program's prompt is the same tokens whichever way it is executed.

Called by everything: backends build these, the server decodes its bodies into these, the engine
answers with `Delta`s. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import msgspec

from runtime.errors import InvalidRequest


class TextSegment(msgspec.Struct, frozen=True, tag="text"):
    """Text that is not tokenised yet."""

    text: str


class TokenSegment(msgspec.Struct, frozen=True, tag="tokens"):
    """Token ids as generated; `text` is what they decode to at this place."""

    ids: tuple[int, ...]
    text: str


class ImageSegment(msgspec.Struct, frozen=True, tag="image"):
    """One image: encoded bytes (PNG, JPEG, ...), shown to the model where the segment stands."""

    data: bytes


Segment = TextSegment | TokenSegment | ImageSegment
Prompt = tuple[Segment, ...]


def render(prompt: Sequence[Segment]) -> str:
    """The text of a prompt, images left out: what a backend that takes only text is sent."""
    return "".join(s.text for s in prompt if not isinstance(s, ImageSegment))


def merge_text(prompt: Sequence[Segment]) -> Prompt:
    """Join neighbouring text segments and drop empty ones, so that each run is tokenised as a whole."""
    merged: list[Segment] = []
    for segment in prompt:
        if isinstance(segment, TextSegment):
            if not segment.text:
                continue
            if merged and isinstance(merged[-1], TextSegment):
                merged[-1] = TextSegment(merged[-1].text + segment.text)
                continue
        elif isinstance(segment, TokenSegment) and not segment.ids:
            if segment.text:
                merged.append(TextSegment(segment.text))
            continue
        merged.append(segment)
    return tuple(merged)


class Constraint(msgspec.Struct, frozen=True):
    """What the output must match: a regex, a JSON schema (as JSON text), an EBNF grammar, free text with constrained parts (JSON
    text, see grammar/structural_tag.py), or one of some texts (a JSON array)."""

    kind: Literal["regex", "json_schema", "ebnf", "structural_tag", "choices"]
    source: str

    @property
    def compact(self) -> Constraint:
        """The same with its JSON written in one way, so that what was compiled for it is found again."""
        if self.kind not in ("json_schema", "structural_tag"):
            return self
        try:
            return Constraint(self.kind, msgspec.json.encode(msgspec.json.decode(self.source)).decode())
        except (msgspec.MsgspecError, RecursionError):
            return self  # refused where it is compiled, with its place


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are chosen and when generation ends.

    max_new_tokens  None: until the context is full
    temperature     below 1e-6: greedy
    top_k           -1: all
    seed            None: a fresh one for each request
    n               samples of one prompt
    """

    max_new_tokens: int | None = 128
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    no_stop_trim: bool = False
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    n: int = 1
    constraint: Constraint | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature < 1e-6 or self.top_k == 1

    def check(self) -> None:
        """Raise InvalidRequest, naming the field, its value and what it may be, if a value is out of range."""
        rules: list[tuple[str, bool, str]] = [
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k == -1 or 1 <= self.top_k < 2**31, "-1 (all) or at least 1 (31 bits)"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "between -2 and 2"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "between -2 and 2"),
            ("repetition_penalty", 0 < self.repetition_penalty <= 2, "above 0 and at most 2"),
            (
                "max_new_tokens",
                self.max_new_tokens is None or 0 <= self.max_new_tokens < 2**31,
                "at least 0 (31 bits), or null",
            ),
            ("min_new_tokens", 0 <= self.min_new_tokens < 2**31, "at least 0 (31 bits)"),
            ("n", 1 <= self.n <= 128, "between 1 and 128"),
            ("stop", all(self.stop), "strings that are not empty"),
            ("logit_bias", all(-1e6 <= b <= 1e6 for b in self.logit_bias.values()), "between -1e6 and 1e6"),
            ("seed", self.seed is None or -(2**63) <= self.seed < 2**63, "a 64-bit integer, or null"),
        ]
        for name, good, allowed in rules:
            value = getattr(self, name)
            if not good or (isinstance(value, float) and not math.isfinite(value)):
                raise InvalidRequest(f"{name} is {value!r} but must be {allowed}", param=name)
        if self.max_new_tokens is not None and self.min_new_tokens > max(self.max_new_tokens, 0) > 0:
            raise InvalidRequest(
                f"min_new_tokens is {self.min_new_tokens} but max_new_tokens is {self.max_new_tokens}; "
                "raise the one or lower the other",
                param="min_new_tokens",
            )


class LogprobOptions(msgspec.Struct, frozen=True):
    """Which log-probabilities to return: of output tokens always; of prompt tokens from position `start`
    (-1: none); the `top` likeliest tokens at each position; with the text of each token if `text`."""

    start: int = -1
    top: int = 0
    text: bool = False

    def check(self) -> None:
        """Raise InvalidRequest, naming the field and its value, if a value is out of range."""
        if not 0 <= self.top <= 1024:
            raise InvalidRequest(f"top log-probabilities: {self.top} were asked for; ask for 0 to 1024")
        if not -1 <= self.start < 2**31:
            raise InvalidRequest(
                f"log-probabilities start at position {self.start}; give -1 (none of the prompt) or at least 0 (31 bits)"
            )


class Message(msgspec.Struct, frozen=True):
    """One message of a conversation, for backends that take conversations instead of text."""

    role: str
    content: str | list[dict[str, Any]]


class Generate(msgspec.Struct, frozen=True, kw_only=True):
    """One call: continue `prompt`.

    id        unique among running calls; the engine makes one if it is empty
    messages  the same prompt as a conversation, where there is one; only API backends read it
    stream    False: only the final Delta is wanted
    uses      how many later calls are known to extend this prompt (0: not known); a cache hint
    label     what a timeline calls it; nothing depends on it
    salt      only calls of the same salt share cached prefixes; what is written under one is nobody's to guess from
    """

    prompt: Prompt
    sampling: SamplingParams = SamplingParams()
    id: str = ""
    logprobs: LogprobOptions | None = None
    messages: tuple[Message, ...] | None = None
    stream: bool = False
    uses: int = 0
    priority: int = 0
    label: str = ""
    salt: str = ""


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """How likely is each of `choices` after `prompt`? `unconditional` also asks for their
    log-probabilities without the prompt."""

    prompt: Prompt
    choices: tuple[str, ...]
    unconditional: bool = False
    id: str = ""


class Embed(msgspec.Struct, frozen=True, kw_only=True):
    """One call: the vector of `prompt`, which is its embedding, or its scores if the model is a reward model.

    Runs as a `Generate` that wants no tokens; `salt` and `priority` are as there.
    """

    prompt: Prompt
    id: str = ""
    priority: int = 0
    salt: str = ""
    sampling: ClassVar[SamplingParams] = SamplingParams(max_new_tokens=0)
    logprobs: ClassVar[LogprobOptions | None] = None
    stream: ClassVar[bool] = False


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """`logprob` is None for a token that nothing precedes; `text` is None unless it was asked for."""

    logprob: float | None
    id: int
    text: str | None = None


class ChoiceScore(msgspec.Struct, frozen=True):
    """Log-probabilities of the tokens of one choice. The first may be the prompt's last token, where it
    is tokenised together with the choice (token healing)."""

    tokens: tuple[TokenLogprob, ...]
    unconditional: tuple[TokenLogprob, ...] | None = None

    @property
    def mean(self) -> float:
        """Mean over the tokens that have one; minus infinity for none."""
        values = [t.logprob for t in self.tokens if t.logprob is not None]
        return sum(values) / len(values) if values else float("-inf")


class ScoreResult(msgspec.Struct, frozen=True):
    choices: tuple[ChoiceScore, ...]
    prompt_tokens: int = 0
    cached_tokens: int = 0


class Finish(msgspec.Struct, frozen=True):
    """Why generation ended; `matched` is the stop string or the stop token's id."""

    type: Literal["stop", "length", "abort", "error"]
    matched: int | str | None = None
    length: int | None = None
    message: str | None = None


class Usage(msgspec.Struct, frozen=True):
    """Token counts; `completion_tokens` includes the stop or end token."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    forced_tokens: int = 0


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """The next piece of an answer.

    text      new text; with what came before it forms a prefix of the final text (stop strings and
              incomplete characters are held back)
    ids       new token ids that `text` decodes from as far as they are intact: ids of text that a stop
              string cut are left out, and that text comes without ids. Empty from text-only backends
    ids_text  characters of the whole text so far that the whole ids so far stand for; what follows is
              to be tokenised again
    finish    set in the last Delta of a sample, which also has `usage`
    usage     of the sample so far; earlier Deltas may have it too
    """

    id: str
    index: int = 0
    text: str = ""
    ids: tuple[int, ...] = ()
    ids_text: int = 0
    output_logprobs: tuple[TokenLogprob, ...] = ()
    output_top_logprobs: tuple[tuple[TokenLogprob, ...], ...] = ()
    input_logprobs: tuple[TokenLogprob, ...] | None = None
    input_top_logprobs: tuple[tuple[TokenLogprob, ...] | None, ...] | None = None
    finish: Finish | None = None
    usage: Usage | None = None


class Embedded(Delta, frozen=True, kw_only=True):
    """The one Delta of an `Embed` call that went well."""

    vector: tuple[float, ...]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A finished sample: its Deltas added up."""

    id: str
    index: int = 0
    text: str = ""
    ids: tuple[int, ...] = ()
    ids_text: int = 0
    finish: Finish
    usage: Usage = Usage()
    output_logprobs: tuple[TokenLogprob, ...] = ()
    output_top_logprobs: tuple[tuple[TokenLogprob, ...], ...] = ()
    input_logprobs: tuple[TokenLogprob, ...] | None = None
    input_top_logprobs: tuple[tuple[TokenLogprob, ...] | None, ...] | None = None

    def segments(self) -> Prompt:
        """What a prompt that goes on after this answer holds: the intact ids, then the rest as text."""
        return answer_segments(self.text, self.ids, self.ids_text)


def answer_segments(text: str, ids: tuple[int, ...], ids_text: int) -> Prompt:
    """An answer as part of a prompt: the intact ids, which stand for `text[:ids_text]`, then the rest as text."""
    if not ids:
        return (TextSegment(text),) if text else ()
    intact = TokenSegment(ids, text[:ids_text])
    rest = text[ids_text:]
    return (intact, TextSegment(rest)) if rest else (intact,)


def collect(deltas: Sequence[Delta]) -> Result:
    """Add up the Deltas of one sample, the last of which has `finish`."""
    last = deltas[-1]
    if last.finish is None:
        raise ValueError(f"collect: the last of {len(deltas)} deltas of {last.id!r} has no finish reason")
    return Result(
        id=last.id,
        index=last.index,
        text="".join(d.text for d in deltas),
        ids=tuple(i for d in deltas for i in d.ids),
        ids_text=last.ids_text,
        finish=last.finish,
        usage=last.usage or Usage(),
        output_logprobs=tuple(t for d in deltas for t in d.output_logprobs),
        output_top_logprobs=tuple(t for d in deltas for t in d.output_top_logprobs),
        input_logprobs=next((d.input_logprobs for d in deltas if d.input_logprobs is not None), None),
        input_top_logprobs=next(
            (d.input_top_logprobs for d in deltas if d.input_top_logprobs is not None), None
        ),
    )
