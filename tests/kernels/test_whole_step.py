"""All layers of a step in one launch, against float64; on a CPU its threads are emulated (emulator/device.h)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from runtime.attention.base import PagedInputs
from runtime.attention.triton import TritonAttention
from runtime.kernels import nvrtc
from runtime.kernels.step_layers import StepLayer, StepRanks, StepSpec, box_bytes
from runtime.kernels.whole_step import Arguments, Launch, WholeStep, whole_step_reference, why_not
from runtime.kv.store import KVStore
from runtime.models.decoder import Decoder
from runtime.models.fused import FusedDecoder, step_parts, whole_step
from runtime.models.spec import ArchSpec, AttnSpec, LayerSpec, MlpSpec, NormSpec, RopeSpec
from tests.kernels import emulated
from tests.kernels.paged_case import cache, error

PLAIN = StepSpec(4, 2, 32, 64, 96, "silu", 0.25, None, False, 1e-5, 0.0, 0.0, 0.0, 16)
BF16, FP16 = torch.bfloat16, torch.float16
# of the residual stream after two layers; the reference rounds nothing but what it stores
TOLERANCE = 2e-2
At = tuple[Tensor, Tensor, Tensor, Tensor]
Make = Callable[..., WholeStep]


@pytest.fixture
def make(libraries: Path, device: torch.device) -> Make:
    """A `WholeStep` on this device."""
    emulated.skip_without_compiler(device)

    def build(macros: Mapping[str, int]) -> Launch:
        library = emulated.library(libraries, macros)
        return lambda arguments: emulated.run(library, [arguments], seed=macros["ROWS"])

    def made(layers: list[StepLayer], last: Tensor, spec: StepSpec, rows: int) -> WholeStep:
        if device.type == "cuda":
            return WholeStep(layers, last, spec, rows=rows)
        programs = max(3, -(-spec.wide // 256) + 1)
        return WholeStep(layers, last, spec, rows=rows, build=build, programs=programs)

    return made


def layer(
    spec: StepSpec, pools: tuple[Tensor, Tensor], more: frozenset[str], window: int | None
) -> StepLayer:
    dtype, device = pools[0].dtype, pools[0].device
    hidden, dim = spec.hidden, spec.dim

    def random(*shape: int) -> Tensor:
        return (torch.randn(shape) * shape[-1] ** -0.5).to(dtype).to(device)

    def scale(size: int) -> Tensor:
        return (1 + 0.2 * torch.randn(size)).to(dtype).to(device)

    angles = torch.outer(torch.arange(1024.0), 0.5 ** torch.arange(dim // (4 if "part" in more else 2)))
    return StepLayer(
        scale(hidden), random(spec.wide, hidden), random(spec.wide) if "bias" in more else None,
        scale(dim) if "heads" in more else None, scale(dim) if "heads" in more else None,
        angles.cos().to(device), angles.sin().to(device), *pools,
        random(hidden, spec.heads * dim), random(hidden) if "out bias" in more else None,
        scale(hidden), random(2 * spec.inner, hidden), random(hidden, spec.inner), window,
    )  # fmt: skip


CASES: dict[str, tuple[StepSpec, list[int], set[str], list[int | None]]] = {
    # what is asked, lengths, which tensors there are, window of each layer
    "one row": (PLAIN, [40], set(), [None, None]),
    "first tokens": (PLAIN, [1, 2, 1], set(), [None, None]),
    "contexts in parts": (replace(PLAIN, page_size=64), [700, 129, 3, 128], set(), [None, None]),
    "page 1, windows": (replace(PLAIN, page_size=1), [77, 300, 20, 5], set(), [None, 20]),
    "biases": (replace(PLAIN, inner=128), [33, 1, 200], {"bias", "out bias"}, [None, None]),
    "normed heads, offsets": (
        replace(PLAIN, qk_eps=1e-6, offset=1.0, qk_offset=1.0, gate="gelu_tanh"), [33, 18], {"heads"}, [None, None],
    ),
    "normed heads": (replace(PLAIN, dim=64, qk_eps=1e-6), [33, 190], {"heads"}, [None, None]),
    "softcap, interleaved in part": (
        replace(PLAIN, softcap=2.0, gate="gelu", interleaved=True), [50, 9], {"part"}, [None, None],
    ),
    "group of 7, heads of 96": (
        StepSpec(7, 1, 96, 96, 160, "silu", 0.1, None, False, 1e-5, 0.0, 0.0, 0.0, 16), [90, 1000], {"bias"}, [None],
    ),
    "group of 12, heads of 128": (
        StepSpec(12, 1, 128, 64, 96, "silu", 0.1, None, False, 1e-5, 0.0, 0.0, 0.0, 16), [90, 260, 4], set(), [None],
    ),
    "columns of several stages": (replace(PLAIN, hidden=224, inner=2112), [40, 7, 180], set(), [None, None]),
    "16 rows": (PLAIN, [5 + 13 * i for i in range(13)], set(), [None, None]),
    "32 rows, matrix rows of several turns": (
        replace(PLAIN, hidden=256, inner=160), [3 + 9 * i for i in range(27)], {"bias"}, [None],
    ),
}  # fmt: skip


def case(name: str, device: torch.device) -> tuple[StepSpec, list[StepLayer], Tensor, At]:
    spec, lengths, more, windows = CASES[name]
    torch.manual_seed(5)
    c = cache(lengths, spec.page_size, spec.kv_heads, spec.dim, BF16, device)
    pools = [(c.k.clone(), c.v.clone()) for _ in windows]
    layers = [layer(spec, p, frozenset(more), w) for p, w in zip(pools, windows, strict=True)]
    last = (1 + 0.2 * torch.randn(spec.hidden)).to(BF16).to(device)
    at = c.lengths.long() - 1
    slots = c.table[c.seats.long(), at // spec.page_size].long() * spec.page_size + at % spec.page_size
    for k, v in pools:  # the new tokens' places hold nothing yet
        k[slots], v[slots] = float("nan"), float("nan")
    return spec, layers, last, (c.table, c.seats, c.lengths, slots)


def copied(layers: list[StepLayer]) -> list[StepLayer]:
    return [replace(x, pool_k=x.pool_k.clone(), pool_v=x.pool_v.clone()) for x in layers]


def check(step: WholeStep, theirs: list[StepLayer], at: At) -> None:
    """A step gives and stores what the reference does, and touches no other slot."""
    rows = len(at[1])
    x = torch.randn(rows, step.spec.hidden).to(BF16).to(at[0].device)
    wanted = whole_step_reference(x, theirs, step.last_norm, step.spec, *at)
    found = step(x, *at)
    assert max(error(mine, other) for mine, other in zip(found, wanted, strict=True)) < TOLERANCE
    for mine, other in zip(step.layers, theirs, strict=True):
        for pool, right in ((mine.pool_k, other.pool_k), (mine.pool_v, other.pool_v)):
            assert error(pool[at[3]], right[at[3]]) < TOLERANCE
            same = pool.eq(right) | (pool.isnan() & right.isnan())
            same[at[3]] = True
            assert same.all()


@pytest.mark.parametrize("name", CASES)
def test_against_float64(name: str, device: torch.device, make: Make) -> None:
    spec, layers, last, at = case(name, device)
    check(make(layers, last, spec, len(at[1])), copied(layers), at)


def test_a_row_is_the_same_beside_any_others(device: torch.device, make: Make) -> None:
    spec, layers, last, at = case("biases", device)
    step = make(layers, last, spec, 3)
    x = torch.randn(3, spec.hidden).to(BF16).to(device)
    together = step(x, *at)
    again = step(x, *at)
    assert torch.equal(together, again), "launches differ"
    table, seats, lengths, slots = at
    alone = torch.cat([step(x[i : i + 1], table, seats[i : i + 1], lengths[i : i + 1], slots[i : i + 1]) for i in range(3)])  # fmt: skip
    assert error(alone, together) < TOLERANCE / 2


def test_padding_rows_store_nothing(device: torch.device, make: Make) -> None:
    spec, layers, last, at = case("contexts in parts", device)
    table, seats, lengths, slots = at
    before = copied(layers)
    step = make(layers, last, spec, 4)
    x = torch.randn(4, spec.hidden).to(BF16).to(device)
    assert step(x, table, seats, torch.zeros_like(lengths), torch.full_like(slots, -1)).isfinite().all()
    for mine, other in zip(layers, before, strict=True):
        assert torch.equal(mine.pool_k.nan_to_num(9), other.pool_k.nan_to_num(9))
        assert torch.equal(mine.pool_v.nan_to_num(9), other.pool_v.nan_to_num(9))
    check(step, before, at)  # the launch before left its counters as it had found them


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.one_of(st.integers(0, 20), st.integers(0, 700)), min_size=1, max_size=16),
    seed=st.integers(0, 2**31),
)
def test_any_batch_in_any_order_of_threads(lengths: list[int], seed: int, libraries: Path) -> None:
    """Padding rows among the others; contexts in one part, in many, around a window."""
    emulated.skip_without_compiler()
    spec = replace(PLAIN, page_size=4)
    torch.manual_seed(seed)
    c = cache(lengths, spec.page_size, spec.kv_heads, spec.dim, BF16, torch.device("cpu"))
    layers = [layer(spec, (c.k.clone(), c.v.clone()), frozenset(), window) for window in (None, 150)]
    at = (c.lengths.long() - 1).clamp(min=0)
    slots = c.table[c.seats.long(), at // spec.page_size].long() * spec.page_size + at % spec.page_size
    real = c.lengths > 0

    def build(macros: Mapping[str, int]) -> Launch:
        library = emulated.library(libraries, macros)
        return lambda arguments: emulated.run(library, [arguments], seed)

    step = WholeStep(layers, layers[0].attn_norm, spec, rows=len(lengths), build=build, programs=3)
    theirs = copied(layers)
    x = torch.randn(len(lengths), spec.hidden).to(BF16)
    found = step(x, c.table, c.seats, c.lengths, torch.where(real, slots, -1))
    assert found.isfinite().all()
    if real.any():
        wanted = whole_step_reference(
            x[real], theirs, step.last_norm, spec, c.table, c.seats[real], c.lengths[real], slots[real]
        )
        assert error(found[real], wanted) < TOLERANCE


def test_two_ranks_add_their_sums(libraries: Path) -> None:
    """Each has half of the heads and of the inner columns; both end with the same bits."""
    emulated.skip_without_compiler()
    device = torch.device("cpu")
    spec, layers, last, at = case("biases", device)
    half = replace(spec, heads=2, kv_heads=1, inner=spec.inner // 2)
    rows, programs, dim = len(at[1]), 3, spec.dim
    size = box_bytes(spec.hidden, 8, programs, 2)
    boxes = [torch.zeros(size // 8, dtype=torch.int64) for _ in range(2)]
    places = torch.tensor([b.data_ptr() for b in boxes])
    launched: list[Arguments] = []
    steps, parts = [], []
    for rank in range(2):

        def cut(x: StepLayer, rank: int = rank) -> StepLayer:
            q, k, v = x.qkv.split((4 * dim, 2 * dim, 2 * dim))
            qb, kb, vb = x.qkv_bias.split((4 * dim, 2 * dim, 2 * dim))  # type: ignore[union-attr]
            gate, up = x.up.chunk(2)
            return replace(
                x,
                qkv=torch.cat([p.chunk(2)[rank] for p in (q, k, v)]),
                qkv_bias=torch.cat([p.chunk(2)[rank] for p in (qb, kb, vb)]),
                out=x.out.chunk(2, 1)[rank].contiguous(),
                up=torch.cat([p.chunk(2)[rank] for p in (gate, up)]),
                down=x.down.chunk(2, 1)[rank].contiguous(),
                pool_k=x.pool_k.chunk(2, 1)[rank].contiguous(),
                pool_v=x.pool_v.chunk(2, 1)[rank].contiguous(),
            )

        mine = [cut(x) for x in layers]
        ranks = StepRanks(rank, places, torch.zeros(2, dtype=torch.int32), 1000000)

        def build(macros: Mapping[str, int]) -> Launch:
            def launch(arguments: Arguments) -> None:
                launched.append(arguments)
                if len(launched) == 2:
                    emulated.run(emulated.library(libraries, macros), launched, seed=3)
                    launched.clear()

            return launch

        steps.append(WholeStep(mine, last, half, rows=rows, ranks=ranks, build=build, programs=programs))
        parts.append(mine)
    for _ in range(2):
        x = torch.randn(rows, spec.hidden).to(BF16)
        wanted = whole_step_reference(x, copied(layers), last, spec, *at)
        found = [step(x, *at) for step in steps]
        assert torch.equal(*found)
        assert error(found[0], wanted) < TOLERANCE


def test_a_rank_that_does_not_answer_makes_rows_that_are_no_numbers(libraries: Path) -> None:
    emulated.skip_without_compiler()
    spec, layers, last, at = case("one row", torch.device("cpu"))
    boxes = [torch.zeros(box_bytes(spec.hidden, 8, 3, 2) // 8, dtype=torch.int64) for _ in range(2)]
    state = torch.zeros(2, dtype=torch.int32)
    ranks = StepRanks(0, torch.tensor([b.data_ptr() for b in boxes]), state, looks=50)

    def build(macros: Mapping[str, int]) -> Launch:
        return lambda arguments: emulated.run(emulated.library(libraries, macros), [arguments], seed=1)

    step = WholeStep(layers, last, spec, rows=1, ranks=ranks, build=build, programs=3)
    assert step(torch.randn(1, spec.hidden).to(BF16), *at).isnan().all()
    assert state[1] == 1


MODEL = LayerSpec(
    AttnSpec(4, 2, 32, 0.25, RopeSpec(32, tuple(0.5**i for i in range(16)))), MlpSpec(96), NormSpec(1e-5)
)


@pytest.mark.parametrize(
    "layer",
    [
        replace(MODEL, attention=replace(MODEL.attention, qkv_bias=True, window=9)),
        replace(MODEL, attention=replace(MODEL.attention, qk_norm="head", norm=NormSpec(1e-6))),
        replace(MODEL, norm=NormSpec(1e-5, offset=1.0), mlp=MlpSpec(96, "gelu_pytorch_tanh")),
    ],
    ids=["window and biases", "normed heads", "offset norms"],
)
def test_the_fused_decoder_runs_it(layer: LayerSpec, device: torch.device, make: Make) -> None:
    torch.manual_seed(3)
    spec = ArchSpec("tiny", 97, 64, 96, (layer, replace(layer)), layer.norm)
    model = Decoder(spec, BF16)
    for p in model.parameters():
        p.requires_grad_(False)
        p.copy_(0.8 + 0.4 * torch.rand_like(p) if p.dim() == 1 else torch.randn_like(p) * 0.1)
    model = model.to(device)
    store = KVStore(spec, 6, 16, BF16, str(device))
    store.k.normal_()
    store.v.normal_()
    before = store.k.clone(), store.v.clone()
    table = torch.tensor([[4, 1, 3], [0, 2, 5]], dtype=torch.int32, device=device)
    seats, lengths = (torch.tensor(n, dtype=torch.int32, device=device) for n in ([1, 0], [20, 37]))
    starts = torch.arange(3, dtype=torch.int32, device=device)
    slots = torch.tensor([2 * 16 + 3, 3 * 16 + 4], device=device)
    parts = step_parts(model, store)
    assert not isinstance(parts, str)
    whole = make(parts[1], model.norm.weight.data, parts[0], 2)
    found = []
    launches: list[int] = []
    launch = whole.launch
    whole.launch = lambda rows: launches.append(rows) or launch(rows)  # type: ignore[method-assign, func-returns-value]
    for step, apart in ((None, True), (whole, False), (whole, True)):
        assert not launches, "rows of one request must see each other's keys"
        store.k.copy_(before[0])
        store.v.copy_(before[1])
        attention = TritonAttention(store)
        attention.plan(
            PagedInputs(
                table, seats, lengths, starts, slots, max_new=1, max_length=48, decodes=2, apart=apart
            )
        )
        fused = FusedDecoder(model, store, step)
        assert ("one launch" in fused.form) == (step is not None)
        ids, positions = torch.tensor([5, 7], device=device), torch.tensor([19, 36], device=device)
        found.append((fused(ids, positions, attention), store.k.clone(), store.v.clone()))
    assert launches == [2]
    for other in found[1:]:
        for mine, theirs in zip(other, found[0], strict=True):
            assert error(mine, theirs) < 6e-2  # the interpreter truncates to bfloat16


def test_models_that_one_launch_cannot_run(device: torch.device) -> None:
    layers = (MODEL, replace(MODEL, attention=replace(MODEL.attention, scale=0.5)))
    model = Decoder(ArchSpec("tiny", 97, 64, 96, layers, MODEL.norm), BF16).to(device)
    store = KVStore(model.spec, 6, 16, BF16, str(device))
    with pytest.raises(ValueError, match="its layers differ in more than windows and rotations"):
        whole_step(model, store, 8)
    wide = Decoder(ArchSpec("tiny", 97, 64, 96, (MODEL, MODEL), MODEL.norm), torch.float32).to(device)
    with pytest.raises(ValueError, match=r"its type is torch\.float32, not torch\.bfloat16"):
        whole_step(wide, KVStore(wide.spec, 6, 16, torch.float32, str(device)), 8)
    assert FusedDecoder(wide, KVStore(wide.spec, 6, 16, torch.float32, str(device))) is not None


def test_a_compiler_that_fails_is_told_with_what_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(source: str, macros: Mapping[str, int]) -> bytes:
        raise nvrtc.CudaError(f"compiling {source}: no room")

    monkeypatch.setattr(nvrtc, "why_not", lambda device: None)
    monkeypatch.setattr(nvrtc, "compiled", fails)
    spec, layers, last, _ = case("one row", torch.device("cpu"))
    step = WholeStep(layers, last, spec, rows=1, programs=3)
    with pytest.raises(
        nvrtc.CudaError, match=r"compiling whole_step\.cu: no room; --attention-backend torch"
    ):
        step.launch(1)


def test_refusals(device: torch.device, make: Make) -> None:
    spec, layers, last, at = case("first tokens", device)
    assert why_not(spec, layers, BF16, 132) is None
    assert why_not(spec, layers, FP16, 132) == "its type is torch.float16, not torch.bfloat16"
    assert why_not(replace(spec, inner=95), layers, BF16, 132) == "its widths (64, 95) are no multiples of 32"
    assert (
        why_not(replace(spec, dim=80), layers, BF16, 132)
        == "its heads have 80 numbers, not 32, 64, 96 or 128"
    )
    assert why_not(replace(spec, heads=1200), layers, BF16, 4) == "600 of its heads share a key"
    wide = replace(spec, heads=16, kv_heads=8)
    assert why_not(wide, layers, BF16, 3) == "its widths (64, 1024) are more than 3 programs hold"
    several = [replace(layers[0], window=5), replace(layers[1], window=6)]
    assert why_not(spec, several, BF16, 132) == "its layers have several windows"
    other = replace(layers[1], qkv_bias=last)
    assert why_not(spec, [layers[0], other], BF16, 132) == "its layers differ in their shapes"
    moved = replace(layers[1], down=torch.zeros(spec.inner, spec.hidden, dtype=BF16, device=device).T)
    assert (
        why_not(spec, [layers[0], moved], BF16, 132)
        == "its tensors are not contiguous or not aligned to 16 bytes"
    )
    eighth = replace(layers[0], pool_k=layers[0].pool_k.to(torch.float8_e4m3fn))
    with pytest.raises(ValueError, match=r"its keys and values are stored as torch\.float8_e4m3fn"):
        make([eighth], last, spec, 8)
    table, seats, lengths, slots = at
    step = make(layers, last, spec, 8)
    with pytest.raises(ValueError, match=r"contiguous \[up to 8, 64\] of torch.bfloat16, got \(9, 64\)"):
        step(torch.zeros(9, 64, dtype=BF16, device=device), *at)
    with pytest.raises(ValueError, match="2 rows need as many seats, lengths and slots"):
        step(torch.zeros(2, 64, dtype=BF16, device=device), table, seats, lengths[:2], slots[:2])
