"""What a batch that has landed means for a request: which tokens it has got, and whether it ends."""

from __future__ import annotations

import msgspec

from runtime.api import Finish, TokenLogprob
from runtime.batch import Guesses, Sampled, Slice
from runtime.kv.cache import PrefixCache
from runtime.request import Request, Scores

_NO_GUESSES: Guesses = ((), ())


class Event(msgspec.Struct):
    """What became of a request in a step. `tokens` are new outputs, `forced` of them without a pass of their own (not drawn, or
    drawn behind a guess); `prompt_scores` come once, when complete."""

    request: Request
    tokens: list[int]
    logprobs: list[tuple[TokenLogprob, list[TokenLogprob]]] = []
    prompt_scores: Scores | None = None
    finish: Finish | None = None
    forced: int = 0
    vector: bytes | None = None


def decoded(request: Request, piece: Slice, drawn: list[int]) -> Event:
    """`landed` for what most of a batch is: requests that want tokens and nothing else, in a decode step."""
    outputs, ending = _accepted(request, drawn)
    kept = len(outputs)
    request.landed = piece.start + kept
    request.pending -= piece.steps
    request.told += kept
    return Event(request, outputs, [], None, ending)


def landed(
    request: Request,
    piece: Slice,
    drawn: list[int],
    logprob: tuple[TokenLogprob, list[TokenLogprob]] | None,
    sampled: Sampled,
    cache: PrefixCache,
) -> Event | None:
    """Record what a slice did; None if there is nothing to tell. What a prompt has computed goes into the cache."""
    scores = None
    if piece.tokens or piece.scores >= 0:
        request.landed = piece.start + (len(piece.tokens) or piece.count)
        if piece.scores >= 0:
            request.prompt_scores += sampled.prompt.get(piece.seat, [])
        if request.logprobs and not request.scored and request.landed == len(request.tokens):
            request.scored = True
            scores = request.prompt_scores
        cache.publish(request)
        if not piece.sample:
            if request.max_new == 0 and request.landed == request.prompt:
                ending = Finish(type="length", length=0)
                vector = sampled.pooled.get(piece.seat) if piece.pool else None
                return Event(request, [], prompt_scores=scores, finish=ending, vector=vector)
            return Event(request, [], prompt_scores=scores) if scores is not None else None
    request.pending -= piece.steps
    logprobs = [logprob] if logprob else []
    if request.max_new == 0:  # only the distribution of the first token was wanted
        return Event(request, [], logprobs, scores, Finish(type="length", length=0))
    outputs = drawn
    if sampled.forced and (forced := sampled.forced.get(piece.seat)):
        outputs = [*drawn, *forced]
    outputs, end = _accepted(request, outputs)
    guesses, sure = sampled.guesses.get(piece.seat, _NO_GUESSES)
    if piece.guesses:  # behind those that were drawn lies another text
        right = sampled.verified.get(piece.seat, 0)
        request.landed = request.scheduled = min(request.landed + right, len(request.tokens) - 1)
    if len(outputs) > len(drawn) or guesses or piece.guesses:
        # A decode step would go on from what was drawn last, not from the last token; one that is in flight is void.
        request.outputs_here = 0
        request.pending = 0
        request.scheduled = min(request.scheduled, len(request.tokens) - 1)
    request.guesses, request.sure = guesses, sure
    if not piece.tokens:  # what was computed behind an end is not what anybody would compute again
        request.landed = piece.start + min(len(outputs), piece.steps)
    own = 1 if piece.guesses else len(drawn)
    forced_now = request.forced + max(0, len(outputs) - own)
    if forced_now or request.told + len(outputs) != request.outputs:
        outputs = request.tokens[request.prompt + request.told :]
    request.told, request.forced = request.outputs, 0
    return Event(request, outputs, logprobs, scores, end, forced_now)


def _accepted(request: Request, outputs: list[int]) -> tuple[list[int], Finish | None]:
    """Append outputs up to the one that ends the request: these, and the end."""
    tokens, ends = request.tokens, request.ends
    room = request.max_new - (len(tokens) - request.prompt)
    ending: Finish | None = None
    if len(outputs) >= room:
        outputs = outputs[:room]
        ending = Finish(type="length", length=request.max_new)
    if ends and not ends.isdisjoint(outputs):
        i, token = next((i, token) for i, token in enumerate(outputs) if token in ends)
        if i + 1 < room:
            outputs = outputs[: i + 1]
            ending = Finish(type="stop", matched=token)
    tokens += outputs
    request.outputs_here += len(outputs)
    return outputs, ending
