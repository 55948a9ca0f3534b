"""The only things that cross between the scheduler and the model runner: integers and sampling fields.

The scheduler gives every running request a seat, a small integer; the runner keeps what it needs by
seat (page rows, sampling state), so that a step's message is short. With tensor parallelism rank 0
sends the same `Batch` to every rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from runtime.api import LogprobOptions, SamplingParams, TokenLogprob

# Ids, and the indices of those that are forced if the ones before them are right.
Guesses = tuple[tuple[int, ...], tuple[int, ...]]


class Admission(msgspec.Struct, frozen=True):
    """A request takes a seat (again, after it was retracted).

    tokens  all ids known now: the caller's prompt, then outputs kept over a retraction
    prompt  how many of them are the caller's prompt
    pages   pages of the cached prefix, shared with the cache, in order; the row starts with them
    max_new outputs at most, kept ones included
    alone   what it writes is not for others to guess from, nor the other way round
    seed    of the request's random stream; token k of the output is drawn from (seed, k) alone
    """

    seat: int
    tokens: list[int]
    prompt: int
    pages: list[int]
    sampling: SamplingParams
    seed: int
    logprobs: LogprobOptions | None = None
    max_new: int = 0
    alone: bool = False


class Slice(msgspec.Struct, frozen=True):
    """Compute positions [start, start + len(tokens)) of one seat.

    tokens   their ids. Empty: one position, whose id is the token sampled last for this seat (decode)
    pages    pages appended to the seat's row before this batch, so that the new positions have a place
    guesses  only behind tokens, with `sample`: ids that may follow them. Their positions are computed as well and a token is drawn
             for each place; what is drawn behind the first wrong guess is dropped
    sure     indices of guesses that are forced if those before them are right: nothing is drawn for their places
    steps    only without tokens: positions computed one after another, each for the token drawn before it
    pool     the last position's vector (embedding or scores) is wanted
    sample   draw the next token from the last position (with `steps`, from each)
    output   index of the first drawn token in the request's output
    scores   first position whose next-token log-probability is wanted (prompt log-probabilities); -1: none
    """

    seat: int
    start: int
    tokens: list[int]
    pages: list[int]
    sample: bool
    output: int = 0
    scores: int = -1
    steps: int = 1
    pool: bool = False
    guesses: tuple[int, ...] = ()
    sure: tuple[int, ...] = ()

    @property
    def draws(self) -> list[int]:
        """How many guesses precede each draw."""
        last = len(self.guesses)
        return [k for k in range(last + 1) if k == last or k not in self.sure]

    @property
    def count(self) -> int:
        """Positions."""
        return len(self.tokens) + len(self.guesses) if self.tokens else self.steps

    @property
    def ids(self) -> list[int]:
        """Of its positions; empty where the id is the token sampled last."""
        return [*self.tokens, *self.guesses] if self.guesses else self.tokens


class Batch(msgspec.Struct, frozen=True):
    """One forward pass, or a turn of several: all slices are then without tokens. Seats in `released` are free before
    `admitted` are seated.

    ahead  the next batch is likely to be made before this one's tokens are known, which it cannot be for whoever guesses: nobody
           should, nor is there time to learn for it
    """

    step: int
    slices: list[Slice]
    admitted: list[Admission] = []
    released: list[int] = []
    ahead: bool = False

    @property
    def tokens(self) -> int:
        return sum(s.count for s in self.slices)

    @property
    def steps(self) -> int:
        """Forward passes that it takes."""
        return max((s.steps for s in self.slices), default=1)

    def singles(self) -> Iterator[Batch]:
        """The forward passes, one batch each."""
        yield msgspec.structs.replace(self, slices=[msgspec.structs.replace(s, steps=1) for s in self.slices])
        for k in range(1, self.steps):
            yield Batch(
                self.step,
                [
                    Slice(s.seat, s.start + k, [], [], s.sample, s.output + k)
                    for s in self.slices
                    if s.steps > k
                ],
            )


class Sampled(msgspec.Struct, frozen=True):
    """What the model did with a Batch.

    tokens      `steps` ids for each slice with `sample`, in the batch's order; one more for each guess that was right
    logprobs    for each of these, if its request asked: the token's log-probability, then the top ones
    prompt      by seat: log-probabilities (and top ones) of the positions that `scores` asked for, in order: entry k is
                that of the token at position max(scores, start) + k + 1; absent past the last known token
    verified    by seat: guesses that were right, if any
    forced      by seat: tokens that its constraint lets follow alone on the one that was drawn; they are outputs too
    guesses     by seat: tokens that are likely behind all of these, and which are sure as a slice has it
    pooled      by seat, for slices with `pool`: its vector, as little-endian float32
    failed      seats whose logits were not finite; their tokens mean nothing
    """

    step: int
    tokens: list[int]
    logprobs: list[tuple[TokenLogprob, list[TokenLogprob]] | None] = []
    prompt: dict[int, list[tuple[TokenLogprob, list[TokenLogprob]]]] = {}
    failed: list[int] = []
    forced: dict[int, list[int]] = {}
    pooled: dict[int, bytes] = {}
    verified: dict[int, int] = {}
    guesses: dict[int, Guesses] = {}

    @classmethod
    def of_turn(cls, batch: Batch, steps: Sequence[Sampled]) -> Sampled:
        """Of the batch's `singles`."""
        drawn: dict[int, list[int]] = {s.seat: [] for s in batch.slices}
        for k, one in enumerate(steps):
            seats = [s.seat for s in batch.slices if s.steps > k]
            for seat, token in zip(seats, one.tokens, strict=True):
                drawn[seat].append(token)
        failed = sorted({seat for one in steps for seat in one.failed})
        return cls(batch.step, [t for s in batch.slices for t in drawn[s.seat]], failed=failed)


def draws(slices: Sequence[Slice]) -> list[Slice]:
    """One slice for each token that is drawn in a pass: of those that guess, each with the guesses before its draw."""
    drawn = [s for s in slices if s.sample]
    if not any(s.guesses for s in drawn):
        return drawn
    return [
        msgspec.structs.replace(s, guesses=s.guesses[:k], output=s.output + k) if s.guesses else s
        for s in drawn
        for k in s.draws
    ]


def verified(
    slices: Sequence[Slice], drawn: Sequence[int]
) -> tuple[list[tuple[Slice, int, int]], dict[int, int]]:
    """What `drawn`, the tokens of the `draws` of a pass, come to.

    A draw stands if all guesses before it are right: then it was made from what the model would have seen without guessing.
    Returns (slice, token, index of its draw; -1 where none was needed) for each output, and by seat how many guesses were right.
    """
    out: list[tuple[Slice, int, int]] = []
    right: dict[int, int] = {}
    at = 0
    for s in slices:
        if not s.sample:
            continue
        index = at
        for k in range(len(s.guesses) + 1):
            if k < len(s.guesses) and k in s.sure:
                out.append((s, s.guesses[k], -1))
                continue
            out.append((s, drawn[index], index))
            if k == len(s.guesses) or drawn[index] != s.guesses[k]:
                if k:
                    right[s.seat] = k
                break
            index += 1
        at += len(s.draws) if s.guesses else 1
    return out, right
