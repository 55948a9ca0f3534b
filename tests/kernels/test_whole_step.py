"""All layers of a step in one launch, against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from runtime.attention.base import PagedInputs
from runtime.attention.triton import TritonAttention
from runtime.kernels.step_layers import StepLayer, StepSpec, why_not
from runtime.kernels.tuning import StepTiles
from runtime.kernels.whole_step import WholeStep, whole_step_reference
from runtime.kv.store import KVStore
from runtime.models.decoder import Decoder
from runtime.models.fused import FusedDecoder
from runtime.models.spec import ArchSpec, AttnSpec, LayerSpec, MlpSpec, NormSpec, RopeSpec
from tests.kernels.paged_case import cache, error

PLAIN = StepSpec(4, 2, 16, 64, 96, "silu", 0.25, None, False, 1e-5, 0.0, 0.0, 0.0, 16)
TILES = StepTiles(warps=4, block=4096, splits=4, block_n=16)
BF16, FP16 = torch.bfloat16, torch.float16
# of the residual stream after two layers; the reference rounds nothing but what it stores
TOLERANCE = {FP16: 4e-3, BF16: 3e-2}


def layer(
    spec: StepSpec, pools: tuple[Tensor, Tensor], more: frozenset[str], window: int | None
) -> StepLayer:
    dtype = pools[0].dtype
    hidden, dim = spec.hidden, spec.dim
    wide = (spec.heads + 2 * spec.kv_heads) * dim

    def random(*shape: int) -> Tensor:
        return (torch.randn(shape) * shape[-1] ** -0.5).to(dtype).to(pools[0].device)

    def scale(size: int) -> Tensor:
        return (1 + 0.2 * torch.randn(size)).to(dtype).to(pools[0].device)

    angles = torch.outer(torch.arange(128.0), 0.5 ** torch.arange(dim // (4 if "part" in more else 2)))
    return StepLayer(
        scale(hidden), random(wide, hidden), random(wide) if "bias" in more else None,
        scale(dim) if "heads" in more else None, scale(dim) if "heads" in more else None,
        angles.cos().to(pools[0].device), angles.sin().to(pools[0].device), *pools,
        random(hidden, spec.heads * dim), random(hidden) if "out bias" in more else None,
        scale(hidden), random(2 * spec.inner, hidden), random(hidden, spec.inner), window,
    )  # fmt: skip


CASES: dict[str, tuple[StepSpec, dict[str, int], int, set[str], list[int | None]]] = {
    # what is asked, tiles, length, which tensors there are, window of each layer
    "many blocks of rows": (PLAIN, {"block": 512}, 40, set(), [None, None]),
    "page 1, windows": (replace(PLAIN, page_size=1), {}, 77, set(), [20, 7]),
    "page 64, biases": (replace(PLAIN, page_size=64), {}, 33, {"bias", "out bias"}, [None, None]),
    "first token": (PLAIN, {}, 1, set(), [None, None]),
    "long parts": (PLAIN, {"splits": 2}, 100, set(), [None, None]),
    "normed heads, offsets": (
        replace(PLAIN, qk_eps=1e-6, offset=1.0, qk_offset=1.0, gate="gelu_tanh"), {}, 33, {"heads"}, [None, None],
    ),
    "softcap, interleaved in part": (
        replace(PLAIN, softcap=2.0, gate="gelu", interleaved=True), {}, 50, {"part"}, [None, None],
    ),
    "group of 7, odd widths": (
        StepSpec(7, 1, 24, 72, 88, "silu", 0.2, None, False, 1e-5, 0.0, 0.0, 0.0, 16),
        {"splits": 8}, 90, {"bias"}, [None, None],
    ),
}  # fmt: skip


def case(name: str, dtype: torch.dtype, device: torch.device) -> tuple[StepSpec, list[StepLayer], Tensor, StepTiles, tuple[Tensor, ...]]:  # fmt: skip
    spec, tiles, length, more, windows = CASES[name]
    torch.manual_seed(5)
    c = cache([length, 3], spec.page_size, spec.kv_heads, spec.dim, dtype, device)
    pools = [(c.k.clone(), c.v.clone()) for _ in windows]
    layers = [layer(spec, p, frozenset(more), w) for p, w in zip(pools, windows, strict=True)]
    last = (1 + 0.2 * torch.randn(spec.hidden)).to(dtype).to(device)
    page = c.table[c.seats[0].long(), (length - 1) // spec.page_size].long()
    slots = (page * spec.page_size + (length - 1) % spec.page_size)[None]
    for k, v in pools:  # the new token's place holds nothing yet
        k[slots], v[slots] = float("nan"), float("nan")
    return spec, layers, last, replace(TILES, **tiles), (c.table, c.seats[:1], c.lengths[:1], slots)


def copied(layers: list[StepLayer]) -> list[StepLayer]:
    return [replace(x, pool_k=x.pool_k.clone(), pool_v=x.pool_v.clone()) for x in layers]


def check(step: WholeStep, theirs: list[StepLayer], at: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    """A step gives and stores what the reference does, and touches no other slot."""
    x = torch.randn(1, step.spec.hidden).to(dtype).to(at[0].device)
    wanted = whole_step_reference(x, theirs, step.last_norm, step.spec, *at)
    assert error(step(x, *at), wanted) < TOLERANCE[dtype]
    for mine, other in zip(step.layers, theirs, strict=True):
        for pool, right in ((mine.pool_k, other.pool_k), (mine.pool_v, other.pool_v)):
            assert error(pool[at[3]], right[at[3]]) < TOLERANCE[dtype]
            same = pool.eq(right) | (pool.isnan() & right.isnan())
            same[at[3]] = True
            assert same.all()


@pytest.mark.parametrize(("name", "dtype"), [*((name, FP16) for name in CASES), ("page 1, windows", BF16)])
def test_against_float64(name: str, dtype: torch.dtype, device: torch.device) -> None:
    spec, layers, last, tiles, at = case(name, dtype, device)
    check(WholeStep(layers, last, spec, tiles), copied(layers), at, dtype)


def test_a_padding_row_stores_nothing(device: torch.device) -> None:
    spec, layers, last, tiles, at = case("long parts", BF16, device)
    table, seats, lengths, slots = at
    before = copied(layers)
    step = WholeStep(layers, last, spec, tiles)
    x = torch.randn(1, spec.hidden).to(BF16).to(device)
    assert step(x, table, seats, torch.zeros_like(lengths), torch.full_like(slots, -1)).isfinite().all()
    for mine, other in zip(layers, before, strict=True):
        assert torch.equal(mine.pool_k.nan_to_num(9), other.pool_k.nan_to_num(9))
        assert torch.equal(mine.pool_v.nan_to_num(9), other.pool_v.nan_to_num(9))
    check(step, before, at, BF16)  # the launch before left its counters as it had found them


MODEL = LayerSpec(
    AttnSpec(4, 2, 16, 0.25, RopeSpec(16, tuple(0.5**i for i in range(8)))), MlpSpec(48), NormSpec(1e-5)
)


@pytest.mark.parametrize(
    "layer",
    [
        replace(MODEL, attention=replace(MODEL.attention, qkv_bias=True, window=9)),
        replace(MODEL, attention=replace(MODEL.attention, qk_norm="head", norm=NormSpec(1e-6))),
        replace(MODEL, norm=NormSpec(1e-5, offset=1.0), mlp=MlpSpec(48, "gelu_pytorch_tanh")),
    ],
    ids=["window and biases", "normed heads", "offset norms"],
)
def test_the_fused_decoder_runs_it(layer: LayerSpec, device: torch.device) -> None:
    torch.manual_seed(3)
    spec = ArchSpec("tiny", 97, 32, 96, (layer, replace(layer)), layer.norm)
    model = Decoder(spec, FP16)
    for p in model.parameters():
        p.requires_grad_(False)
        p.copy_(1 + torch.rand_like(p) if p.dim() == 1 else torch.randn_like(p) * 0.3)
    model = model.to(device)
    store = KVStore(spec, 6, 16, FP16, str(device))
    store.k.normal_()
    store.v.normal_()
    before = store.k.clone(), store.v.clone()
    table = torch.tensor([[4, 1, 3]], dtype=torch.int32, device=device)
    seats, lengths = (torch.tensor([n], dtype=torch.int32, device=device) for n in (0, 37))
    starts = torch.arange(2, dtype=torch.int32, device=device)
    slots = torch.tensor([3 * 16 + 4], device=device)
    at = PagedInputs(table, seats, lengths, starts, slots, max_new=1, max_length=48, decodes=1)
    found = []
    for step in (None, TILES):
        store.k.copy_(before[0])
        store.v.copy_(before[1])
        attention = TritonAttention(store)
        attention.plan(at)
        fused = FusedDecoder(model, store, step)
        assert ("one launch" in fused.form) == (step is not None)
        hidden = fused(torch.tensor([5], device=device), torch.tensor([36], device=device), attention)
        found.append((hidden, store.k.clone(), store.v.clone()))
    for mine, theirs in zip(*found, strict=True):
        assert error(mine, theirs) < TOLERANCE[FP16]


def test_the_fused_decoder_tells_what_it_cannot_run(device: torch.device) -> None:
    layers = (MODEL, replace(MODEL, attention=replace(MODEL.attention, scale=0.5)))
    model = Decoder(ArchSpec("tiny", 97, 32, 96, layers, MODEL.norm), FP16).to(device)
    store = KVStore(model.spec, 6, 16, FP16, str(device))
    with pytest.raises(ValueError, match="its layers differ in more than windows and rotations"):
        FusedDecoder(model, store, TILES)
    wide = Decoder(ArchSpec("tiny", 97, 32, 96, (MODEL, MODEL), MODEL.norm), torch.float32).to(device)
    with pytest.raises(ValueError, match=r"its type is torch\.float32, not one of two bytes"):
        FusedDecoder(wide, KVStore(wide.spec, 6, 16, torch.float32, str(device)), TILES)
    assert FusedDecoder(wide, KVStore(wide.spec, 6, 16, torch.float32, str(device))) is not None


def test_refusals(device: torch.device) -> None:
    spec, layers, last, tiles, at = case("first token", BF16, device)
    assert why_not(spec, layers, BF16) is None
    assert why_not(spec, layers, torch.float32) == "its type is torch.float32, not one of two bytes"
    odd = replace(spec, inner=95)
    assert why_not(odd, layers, BF16) == "its widths (64, 95, 16) are not even"
    other = replace(layers[1], qkv_bias=last)
    assert why_not(spec, [layers[0], other], BF16) == "its layers differ in their shapes"
    moved = replace(layers[1], down=torch.zeros(spec.inner, spec.hidden, dtype=BF16, device=device).T)
    assert (
        why_not(spec, [layers[0], moved], BF16) == "its tensors are not contiguous or not aligned to 16 bytes"
    )
    eighth = replace(layers[0], pool_k=layers[0].pool_k.to(torch.float8_e4m3fn))
    with pytest.raises(ValueError, match=r"its keys and values are stored as torch\.float8_e4m3fn"):
        WholeStep([eighth], last, spec, tiles)
    with pytest.raises(ValueError, match=r"x must be contiguous \(1, 64\) of torch.bfloat16, got \(2, 64\)"):
        WholeStep(layers, last, spec, tiles)(torch.zeros(2, 64, dtype=BF16, device=device), *at)
