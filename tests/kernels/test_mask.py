"""Constraints on the device say what the host's matchers say, at every step of random walks, whatever shares the batch."""

from __future__ import annotations

import random
from functools import cached_property

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grammar.compile import compile_constraint
from grammar.token_fsm import TokenFsm
from grammar.vocabulary import Vocabulary
from runtime.api import Constraint, LogprobOptions, SamplingParams
from runtime.batch import Admission
from runtime.constrain.cache import ConstraintCache
from runtime.constrain.compiler import ConstraintCompiler
from runtime.constrain.device import DeviceSeats, DeviceTables, fits, packed
from runtime.constrain.jump import Cuts
from runtime.constrain.matcher import Matcher
from runtime.kernels.mask import FIELDS, advance, follow_reference, mask, mask_bits

WORDS = [b"ab", b"abc", b"true", b"10", "日本".encode(), "日".encode()]
VOCABULARY = Vocabulary.of(
    [*(bytes([b]) for b in range(256)), *WORDS, b"</s>", b"<end>"], eos=[256 + len(WORDS), 257 + len(WORDS)]
)
EOS = VOCABULARY.eos[0]
WIDTH = len(VOCABULARY) + 9  # a model's vocabulary is padded
PATTERNS = ["ab{2,6}(cd)?", "[ab]{3}|10*", "(日本|日)+", r"\w{2,5}( true)?", ".*"]


class Compiler(ConstraintCompiler):
    """One whose vocabulary is known already."""

    @cached_property
    def _cache(self) -> ConstraintCache:
        return ConstraintCache(VOCABULARY, cuts=self.cuts)


COMPILER = Compiler("nowhere", VOCABULARY.eos)


def seats_of(device: torch.device, count: int = 9, max_bytes: int = 1 << 20) -> DeviceSeats:
    return DeviceSeats(COMPILER, WIDTH, str(device), count, DeviceTables(device, max_bytes))


def admission(seat: int, pattern: str | None, max_new: int, outputs: list[int] | None = None) -> Admission:
    constraint = None if pattern is None else Constraint("regex", pattern)
    tokens = [5, 6, *(outputs or ())]
    return Admission(seat, tokens, 2, [], SamplingParams(constraint=constraint), 0, None, max_new)


def fsm_of(pattern: str) -> TokenFsm:
    found = compile_constraint("regex", pattern, VOCABULARY).automaton
    assert isinstance(found, TokenFsm)
    return found


def allowed(seats: DeviceSeats, rows: torch.Tensor, dtype: torch.dtype = torch.float32) -> np.ndarray:
    logits = torch.zeros(len(rows), WIDTH, dtype=dtype, device=rows.device)
    seats.mask(logits, rows)
    return (logits == 0).cpu().numpy()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from([*PATTERNS, None]), min_size=1, max_size=4), st.randoms(use_true_random=False)
)
def test_walks_are_those_of_matchers(patterns: list[str | None], rng: random.Random) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seats = seats_of(device)
    order = rng.sample(range(8), len(patterns))
    rows = torch.tensor(order, device=device)
    places: list[Matcher | None] = []
    for seat, pattern in zip(order, patterns, strict=True):
        budget = rng.randint(3, 12)
        seats.seat(admission(seat, pattern, budget))
        places.append(None if pattern is None else COMPILER.matcher(Constraint("regex", pattern), budget))
    seats.tell(lambda values: torch.from_numpy(values.copy()).to(device))
    for _ in range(12):
        found = allowed(seats, rows)
        tokens = []
        for row, place in zip(found, places, strict=True):
            wanted = np.ones(WIDTH, np.bool_)
            if place is not None:
                wanted[:] = False
                if place.left:  # nothing is drawn past the budget
                    wanted[: len(VOCABULARY)] = place.mask_bool()
            assert (row == wanted).all()
            tokens.append(rng.choice(np.flatnonzero(wanted).tolist() or [EOS]))
        seats.take(torch.tensor(tokens, device=device), rows)
        for place, token in zip(places, tokens, strict=True):
            if place is not None and not place.ended and place.left:
                place.advance(token)
            elif place is not None and place.left:  # end tokens go on to the budget
                place.used += 1


def test_a_place_is_taken_up_where_outputs_were_kept_and_left_to_the_next(device: torch.device) -> None:
    seats = seats_of(device)
    rows = torch.tensor([3, 1], device=device)
    seats.seat(admission(3, "ab{2,6}(cd)?", 12, list(b"abb")))
    seats.seat(admission(1, "[ab]{3}|10*", 12))
    seats.tell(lambda values: torch.from_numpy(values.copy()).to(device))
    first = allowed(seats, rows)
    assert set(np.flatnonzero(first[0])) == {*b"bc", *VOCABULARY.eos}
    seats.release(3)
    seats.seat(admission(3, None, 12))
    seats.tell(lambda values: torch.from_numpy(values.copy()).to(device))
    second = allowed(seats, rows)
    assert second[0].all() and (second[1] == first[1]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_that_may_stay_are_untouched_and_broken_ones_are_seen(
    dtype: torch.dtype, device: torch.device
) -> None:
    seats = seats_of(device)
    seats.seat(admission(0, "[ab]{3}|10*", 12))
    seats.tell(lambda values: torch.from_numpy(values.copy()).to(device))
    logits = torch.randn(2, WIDTH + 3, device=device).to(dtype)[:, :WIDTH]
    logits[0, 7], logits[0, 8] = float("nan"), float("inf")
    before = logits.clone()
    seats.mask(logits, torch.tensor([0, 4], device=device))
    assert torch.equal(logits[1], before[1])
    kept = [ord("a"), ord("b"), ord("1"), VOCABULARY.ids_of[b"ab"][0], VOCABULARY.ids_of[b"10"][0]]
    assert torch.equal(logits[0, kept], before[0, kept])
    assert logits[0, 7].isnan() and logits[0, 8] == float("inf")
    kept += [7, 8]
    assert all(logits[0, i] == float("-inf") for i in range(WIDTH) if i not in kept)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_kernels_follow_the_reference(pattern: str, device: torch.device) -> None:
    fsm = fsm_of(pattern)
    table = torch.from_numpy(packed(fsm)).to(device)
    states, classes = fsm.next.shape
    every = torch.arange(WIDTH, device=device)
    for state in range(states + 1):
        for left in (1, 2, 50):
            place = torch.tensor(
                [[table.data_ptr(), classes + 1, states + 1, len(fsm.class_of), state, left]], device=device
            )
            wanted = follow_reference(table, place[0], every)
            logits = torch.zeros(1, WIDTH, device=device)
            mask(logits, torch.zeros(1, dtype=torch.int64, device=device), place)
            assert torch.equal(logits[0] == 0, wanted >= 0)
            for token in every[wanted >= 0][:3].tolist():
                moved = place.clone()
                advance(
                    torch.tensor([token], device=device),
                    torch.zeros(1, dtype=torch.int64, device=device),
                    moved,
                )
                assert moved[0, 4:].tolist() == [int(wanted[token]), left - 1]


def test_what_lives_on_the_device(device: torch.device) -> None:
    seats = seats_of(device)
    assert fits(fsm_of("[ab]{3}"))
    assert seats.unforced(Constraint("regex", "[ab]{3}"), None)
    assert not seats.unforced(Constraint("regex", "[ab]{3}"), LogprobOptions())
    assert not seats.unforced(Constraint("json_schema", '{"type": "string"}'), None)
    cuts = Cuts(lambda text: list(text.encode()))
    jumping = DeviceSeats(Compiler("nowhere", VOCABULARY.eos, cuts=cuts), WIDTH, str(device), 4)
    assert jumping.unforced(Constraint("regex", "a long beginning: (yes|no)"), None)
    assert not jumping.unforced(Constraint("regex", "(yes|no), and a long end"), None)


def test_tables_leave_when_nobody_uses_them(device: torch.device) -> None:
    one, two = fsm_of("[ab]{3}"), fsm_of("[cd]{4}")
    tables = DeviceTables(device, packed(one).nbytes + packed(two).nbytes - 1)
    assert tables.take(one) is not None
    assert tables.take(two) is None, "no room while the first is used"
    assert tables.take(one) is not None
    tables.leave(one)
    tables.leave(one)
    assert tables.take(two) is not None and tables.nbytes == packed(two).nbytes


def test_no_more_automata_are_kept_alive_than_are_used_or_asked_for(device: torch.device) -> None:
    tables = DeviceTables(device, most=3)
    used, *others = [COMPILER.get(Constraint("regex", f"[a-c]{{2,5}}{i}")) for i in range(8)]
    assert isinstance(used, TokenFsm) and tables.take(used) is not None
    for fsm in others:
        assert isinstance(fsm, TokenFsm) and tables.take(fsm) is not None
        tables.leave(fsm)
        assert len(tables._tables) <= 3 and id(used) in tables._tables
    assert tables.nbytes == sum(data.numel() * data.element_size() for _, data in tables._tables.values())


def test_without_room_a_seat_is_the_hosts(device: torch.device) -> None:
    seats = seats_of(device, max_bytes=10)
    seats.seat(admission(2, "[ab]{3}", 9))
    assert seats.has(2) and not seats.has_any([2])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 100), st.integers(1, 4), st.randoms(use_true_random=False))
def test_masks_that_the_host_made(width: int, words: int, rng: random.Random) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = rng.sample(range(5), rng.randint(0, 4))
    bits = np.array([[rng.getrandbits(32) for _ in range(words)] for _ in rows], np.uint32).reshape(-1, words)
    logits = torch.zeros(5, width + 2, device=device)[:, :width]
    mask_bits(
        logits,
        torch.tensor(rows, dtype=torch.int32, device=device),
        torch.from_numpy(bits.view(np.int32)).to(device),
    )
    for row, found in enumerate((logits == 0).tolist()):
        if row in rows:
            mine = bits[rows.index(row)]
            assert found == [
                t < 32 * words and bool(mine[t // 32] >> np.uint32(t % 32) & 1) for t in range(width)
            ]
        else:
            assert all(found)


def test_shapes_are_checked(device: torch.device) -> None:
    places = torch.zeros(4, FIELDS, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match="2 rows need int64 seats"):
        mask(torch.zeros(2, 9, device=device), torch.zeros(3, dtype=torch.int64, device=device), places)
    with pytest.raises(ValueError, match="adjacent"):
        mask(torch.zeros(9, 2, device=device).T, torch.zeros(2, dtype=torch.int64, device=device), places)
    with pytest.raises(ValueError, match="rows and bits are int32"):
        rows = torch.zeros(2, dtype=torch.int32, device=device)
        mask_bits(torch.zeros(2, 9, device=device), rows, torch.zeros(3, 1, dtype=torch.int32, device=device))
    with pytest.raises(ValueError, match="places must be"):
        advance(
            torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64, device=device), places[:, :3]
        )
