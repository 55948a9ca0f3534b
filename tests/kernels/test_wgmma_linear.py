"""Products of many rows by cuda/wgmma_linear.cu, against float64; on a CPU its threads are emulated (emulator/device.h)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from runtime.kernels import wgmma_linear
from runtime.kernels.activation import ACTIVATIONS
from runtime.kernels.hopper_linear import Launch, why_not
from runtime.kernels.skinny import skinny_linear, skinny_linear_reference
from runtime.kernels.tensor_map import Maps
from runtime.kernels.tuning import LinearTiles
from runtime.kernels.wgmma_linear import TILES, PairTiles, WgmmaLinear, best_tiles
from tests.kernels import emulated
from tests.kernels.paged_case import error

BF16 = torch.bfloat16
Make = Callable[..., WgmmaLinear]


def builder(libraries: Path, programs: int, seed: int) -> Callable[[Mapping[str, int]], tuple[Launch, Maps]]:
    """Kernels whose threads take turns as `seed` has it."""

    def build(macros: Mapping[str, int]) -> tuple[Launch, Maps]:
        library = emulated.library(libraries, macros, "wgmma_linear")

        def launch(arguments: ctypes.Structure, early: bool) -> None:
            if not library.run(ctypes.byref(arguments), programs, ctypes.c_uint(seed)):
                raise RuntimeError("the kernel's threads wait for each other, or its copies are not aligned")

        return launch, emulated.described

    return build


@pytest.fixture
def make(libraries: Path, device: torch.device) -> Make:
    """A `WgmmaLinear` on this device."""
    emulated.skip_without_compiler(device)

    def made(
        tiles: PairTiles = TILES[0], gated: str | None = None, programs: int = 4, seed: int = 1
    ) -> WgmmaLinear:
        if device.type == "cuda":
            return WgmmaLinear(device, tiles, gated)
        build = builder(libraries, programs, seed)
        return WgmmaLinear(device, tiles, gated, build=build, programs=programs)

    return made


def check(linear: WgmmaLinear, rows: int, n: int, k: int, *, strided: bool = False) -> None:
    device = linear.device
    x = torch.randn(rows, k + 64 * strided).to(BF16).to(device)[:, :k]
    w = (torch.randn(n * (2 if linear.gated else 1), k) * k**-0.5).to(BF16).to(device)
    found = linear(x, w)
    wanted = skinny_linear_reference(x, w, gated=linear.gated)
    assert error(found, wanted) < 3e-3
    assert torch.equal(found, linear(x, w, early=True))


@pytest.mark.parametrize(
    ("tiles", "gated"),
    [(t, g) for t in TILES for g in (None, *ACTIVATIONS) if g in (None, "silu") or t == TILES[0]],
)
def test_products(make: Make, tiles: PairTiles, gated: str | None) -> None:
    check(make(tiles, gated), 300, 264, 136)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 700),
    n=st.integers(1, 70),
    k=st.integers(1, 50),
    gated=st.sampled_from([None, "silu"]),
    tiles=st.sampled_from(TILES),
    seed=st.integers(0, 99),
    strided=st.booleans(),
)
@example(rows=256, n=32, k=40, gated=None, tiles=TILES[0], seed=0, strided=False)
@example(rows=257, n=33, k=8, gated="silu", tiles=TILES[1], seed=1, strided=True)
@example(rows=1, n=1, k=1, gated="silu", tiles=TILES[2], seed=2, strided=False)
def test_random_sizes(
    make: Make, rows: int, n: int, k: int, gated: str | None, tiles: PairTiles, seed: int, strided: bool
) -> None:
    check(make(tiles, gated, seed=seed), rows, 8 * n, 8 * k, strided=strided)


def test_many_tiles_of_few_programs(make: Make) -> None:
    check(make(programs=2), 2300, 300 // 8 * 8, 64)


@pytest.mark.parametrize(
    ("rows", "tiles"),
    [
        (128, TILES[3]),
        (256, TILES[2]),
        (384, TILES[3]),
        (512, TILES[2]),
        (640, TILES[3]),
        (832, TILES[1]),
        (8192, TILES[0]),
    ],
)
def test_tiles_fill_an_h200(rows: int, tiles: PairTiles) -> None:
    """Those that were the quickest of Llama-3.1-8B's gate and up there (benchmarks/gpu/wgmma_linear.py)."""
    assert best_tiles(rows, 14336, True, 132) == tiles


def test_a_layer_takes_them_where_they_run(
    make: Make, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    linears = {tiles: make(tiles, "silu") for tiles in TILES}
    monkeypatch.setattr(wgmma_linear, "_linears", lambda device, gated: linears if gated == "silu" else None)
    x = torch.randn(300, 136).to(BF16).to(device)
    w = (torch.randn(528, 136) * 136**-0.5).to(BF16).to(device)
    own = LinearTiles("wgmma")
    assert torch.equal(skinny_linear(x, w, gated="silu", tiles=own), linears[TILES[0]](x, w))
    for gated in ("silu", "gelu"):  # nobody compiles the latter here
        wanted = skinny_linear_reference(x, w, gated=gated)
        assert error(skinny_linear(x, w, gated=gated, tiles=own), wanted) < 1e-2
    wide = skinny_linear(x.float(), w.float(), gated="silu", tiles=own)
    assert error(wide, skinny_linear_reference(x.float(), w.float(), gated="silu")) < 1e-5


def test_no_rows(make: Make, device: torch.device) -> None:
    x = torch.empty(0, 64, dtype=BF16, device=device)
    assert make()(x, torch.zeros(16, 64, dtype=BF16, device=device)).shape == (0, 16)


def test_what_does_not_fit_is_named(make: Make, device: torch.device) -> None:
    x = torch.zeros(4, 64, dtype=BF16, device=device)
    with pytest.raises(ValueError, match="does not fit"):
        make()(x, torch.zeros(16, 32, dtype=BF16, device=device))
    with pytest.raises(ValueError, match="multiples of 8"):
        make()(x, torch.zeros(12, 64, dtype=BF16, device=device))
    with pytest.raises(ValueError, match=r"float32, not torch\.bfloat16"):
        make()(x.float(), torch.zeros(16, 64, device=device))
    assert why_not(16, 64, BF16) is None
