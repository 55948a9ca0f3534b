"""The text side of a request: messages of the engine loop become Deltas."""

from __future__ import annotations

import sys
from array import array

from runtime.api import Delta, Embed, Embedded, Finish, Generate, TokenLogprob, Usage
from runtime.engine.messages import Output
from runtime.tokenizer.detokenizer import TextStream
from runtime.tokenizer.tokenizer import Tokenizer

Top = tuple[TokenLogprob, ...]


class Answer:
    """One sample of one call: detokenises, finds stop strings, adds up what a caller without streaming gets."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        request: Generate | Embed,
        id: str,
        index: int,
        prompt: list[int],
        interval: int = 1,
    ) -> None:
        """`interval`: tokens between two Deltas of a stream, after the first."""
        self.request = request
        self.id = id
        self.index = index
        self.prompt = prompt
        self.stream = TextStream(tokenizer, request.sampling)
        self.done = False
        self.eager = request.stream or bool(request.sampling.stop)  # each token can have a consequence
        self._tokenizer = tokenizer
        self._interval = interval
        self._next = 0  # tokens that there must be before there is something to say
        self._forced = 0
        self._text: list[str] = []
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._tops: list[Top] = []
        self._input: tuple[TokenLogprob, ...] | None = None
        self._input_tops: tuple[Top | None, ...] | None = None

    def feed(self, out: Output) -> tuple[Delta | None, bool]:
        """The next Delta, if there is something to say, and whether the engine must be told to stop."""
        if out.vector is not None:
            self.done = True
            return self._embedded(out.vector, out.cached), False
        if out.prompt_scores is not None:
            self._take_prompt_scores(out.prompt_scores)
        before = self.stream.tokens
        piece = self.stream.push(out.tokens, out.finish)
        stopped = piece.finish is not None and out.finish is None
        taken = self.stream.tokens - before
        self._forced += max(
            0, out.forced - (len(out.tokens) - taken)
        )  # what a stop string cut off is not counted
        if out.logprobs:
            counted = out.logprobs[:taken] if out.tokens else out.logprobs
            self._logprobs += [self._named(own) for own, _ in counted]
            self._tops += [tuple(self._named(t) for t in top) for _, top in counted]
        self._text.append(piece.text)
        self._ids += piece.ids
        if piece.finish is not None:
            self.done = True
            return self._delta(piece.ids_text, out.cached, piece.finish), stopped
        ids_alone = self._ids and not self._tokenizer.has_text
        if not self.request.stream or not (any(self._text) or self._logprobs or ids_alone):
            return None, False
        if self.stream.tokens < self._next:
            return None, False
        self._next = self.stream.tokens + self._interval
        return self._delta(piece.ids_text, out.cached), False

    def fail(self, code: str, message: str) -> Delta:
        self.done = True
        finish = Finish(type="error", matched=code, message=message)
        return Delta(id=self.request.id, index=self.index, finish=finish, usage=self._usage(0))

    def _embedded(self, vector: bytes, cached: int) -> Embedded:
        numbers = array("f", vector)
        if sys.byteorder == "big":
            numbers.byteswap()
        usage, end = self._usage(cached), Finish(type="length", length=0)
        return Embedded(id=self.request.id, vector=tuple(numbers), finish=end, usage=usage)

    def _named(self, t: TokenLogprob) -> TokenLogprob:
        options = self.request.logprobs
        if options is None or not options.text:
            return t
        return TokenLogprob(t.logprob, t.id, self._tokenizer.token_text(t.id))

    def _take_prompt_scores(self, scores: list[tuple[TokenLogprob, list[TokenLogprob]]]) -> None:
        assert self.request.logprobs is not None
        start = self.request.logprobs.start
        own = [self._named(t) for t, _ in scores]
        tops: list[Top | None] = [tuple(self._named(t) for t in top) for _, top in scores]
        if start == 0:  # nothing precedes the first token, so it has no probability
            own.insert(0, self._named(TokenLogprob(None, self.prompt[0])))
            tops.insert(0, None)
        self._input = tuple(own)
        self._input_tops = tuple(tops) if self.request.logprobs.top else None

    def _delta(self, ids_text: int, cached: int, finish: Finish | None = None) -> Delta:
        delta = Delta(
            id=self.request.id,
            index=self.index,
            text="".join(self._text),
            ids=tuple(self._ids),
            ids_text=ids_text,
            output_logprobs=tuple(self._logprobs),
            output_top_logprobs=tuple(self._tops)
            if self.request.logprobs and self.request.logprobs.top
            else (),
            input_logprobs=self._input,
            input_top_logprobs=self._input_tops,
            finish=finish,
            usage=self._usage(cached),
        )
        self._text, self._ids, self._logprobs, self._tops = [], [], [], []
        self._input = self._input_tops = None
        return delta

    def _usage(self, cached: int) -> Usage:
        return Usage(
            prompt_tokens=len(self.prompt),
            completion_tokens=self.stream.tokens,
            cached_tokens=cached,
            forced_tokens=self._forced,
        )
