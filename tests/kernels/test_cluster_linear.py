"""Products of few rows by cuda/cluster_linear.cu, against float64; on a CPU its threads are emulated (emulator/device.h)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from runtime.kernels import cluster_linear, tuning
from runtime.kernels.activation import ACTIVATIONS
from runtime.kernels.cluster_linear import ADDING, COLUMNS, ROWS, SPLITS, ClusterForm, ClusterLinear, Half
from runtime.kernels.hopper_linear import Launch
from runtime.kernels.norm import rms_norm_reference
from runtime.kernels.nvrtc import MOST_SHARED
from runtime.kernels.skinny import skinny_linear, skinny_linear_reference
from runtime.kernels.tensor_map import Maps
from runtime.kernels.tuning import LinearTiles, linear_tiles
from runtime.models.fused import cluster_forms
from tests.kernels import emulated
from tests.kernels.paged_case import error

BF16 = torch.bfloat16
Make = Callable[..., ClusterLinear]


def builder(
    libraries: Path, form: ClusterForm, seed: int
) -> Callable[[Mapping[str, int]], tuple[Launch, Maps]]:
    """A kernel whose threads take turns as `seed` has it."""

    def build(macros: Mapping[str, int]) -> tuple[Launch, Maps]:
        library = emulated.library(libraries, macros, "cluster_linear")

        def launch(arguments: ctypes.Structure, early: bool) -> None:
            if not library.run(ctypes.byref(arguments), form.programs, ctypes.c_uint(seed)):
                raise RuntimeError("the kernel's threads wait for each other, or its copies are not aligned")

        return launch, emulated.described

    return build


@pytest.fixture
def make(libraries: Path, device: torch.device) -> Make:
    """A `ClusterLinear` on this device."""
    emulated.skip_without_compiler(device)

    def made(form: ClusterForm, seed: int = 1) -> ClusterLinear:
        if device.type == "cuda":
            return ClusterLinear(device, form)
        return ClusterLinear(device, form, build=builder(libraries, form, seed))

    return made


def check(linear: ClusterLinear, rows: int, *, bias: bool = False, strided: bool = False) -> None:
    form, device = linear.form, linear.device
    tall = form.n * (2 if form.gated else 1)
    x = torch.randn(rows, form.k + 64 * strided).to(BF16).to(device)[:, : form.k]
    w = (torch.randn(tall, form.k) * form.k**-0.5).to(BF16).to(device)
    b = torch.randn(tall).to(BF16).to(device) if bias else None
    found = linear(x, w, bias=b)
    wanted = skinny_linear_reference(x, w, bias=b, gated=form.gated)
    assert error(found, wanted) < 3e-3
    assert torch.equal(found, linear(x, w, bias=b, early=True)), "the same bits each time"


@pytest.mark.parametrize("gated", [None, *ACTIVATIONS])
@pytest.mark.parametrize("split", SPLITS)
def test_products(make: Make, split: int, gated: str | None) -> None:
    check(make(ClusterForm(136, 328, gated, 64, split)), 40, bias=gated != "gelu")


@pytest.mark.parametrize("gated", [None, "silu"])
@pytest.mark.parametrize("columns", COLUMNS)
def test_columns(make: Make, columns: int, gated: str | None) -> None:
    check(make(ClusterForm(104, 200, gated, columns, 2)), 64)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, ROWS),
    n=st.integers(1, 30),
    k=st.integers(1, 200),
    gated=st.sampled_from([None, "silu"]),
    columns=st.sampled_from([32, 80]),
    split=st.sampled_from(SPLITS),
    seed=st.integers(0, 99),
    strided=st.booleans(),
    bias=st.booleans(),
)
@example(1, 1, 1, "silu", 32, 8, 3, False, True)  # most programs of a cluster have nothing to multiply
@example(64, 10, 400, None, 80, 1, 4, True, False)  # stages are used again
def test_random_sizes(
    make: Make,
    rows: int,
    n: int,
    k: int,
    gated: str | None,
    columns: int,
    split: int,
    seed: int,
    strided: bool,
    bias: bool,
) -> None:
    form = ClusterForm(8 * n, 8 * k, gated, columns, split)
    check(make(form, seed), rows, strided=strided, bias=bias)


def check_halves(first: ClusterLinear, second: ClusterLinear, rows: int, *, bias: bool = False) -> None:
    """A product that adds to a residual, and one of the residual's norm, between which the norm is shared."""
    device, n, k = first.device, first.form.n, first.form.k
    tall = second.form.n * (2 if second.form.gated else 1)
    weight, y, x = (torch.randn(*size).to(BF16).to(device) for size in ((n,), (rows, k), (rows, n)))
    w = (torch.randn(n, k) * k**-0.5).to(BF16).to(device)
    v = (torch.randn(tall, n) * n**-0.5).to(BF16).to(device)
    b, c = (torch.randn(size).to(BF16).to(device) if bias else None for size in (n, tall))
    eps, offset = 0.01, 0.5
    total = x.double() + skinny_linear_reference(
        y.double(), w.double(), bias=None if b is None else b.double()
    )
    normed = rms_norm_reference(total, weight.double(), eps, offset)
    wide = None if c is None else c.double()
    wanted = skinny_linear_reference(normed, v.double(), bias=wide, gated=second.form.gated)
    squares = torch.full((first.form.parts, ROWS), float("nan"), device=device)
    found = []
    for early in (False, True):
        residual = x.clone()
        scaled = first(y, w, bias=b, early=early, half=Half(squares, 0.0, residual, weight, offset))
        assert error(residual, total) < 4e-3  # each number is rounded once, by a 512th at most
        assert error(scaled, residual.double() * (weight.double() + offset)) < 4e-3
        assert torch.allclose(
            squares[:, :rows].sum(0).double(), residual.double().square().sum(1), rtol=1e-5, atol=1e-5
        )
        found.append((second(scaled, v, bias=c, early=early, half=Half(squares, eps)), residual, scaled))
    most = wanted  # of a few numbers that cancel each other, what they are without their signs
    if second.form.gated is None:
        most = skinny_linear_reference(
            normed.abs(), v.double().abs(), bias=None if wide is None else wide.abs()
        )
    assert float((found[0][0].double() - wanted).norm() / most.norm()) < 6e-3
    assert all(map(torch.equal, *found)), "the same bits each time"


@pytest.mark.parametrize("columns", ADDING)
@pytest.mark.parametrize("split", SPLITS[1:])
def test_halves_of_a_norm(make: Make, split: int, columns: int) -> None:
    form = ClusterForm(136, 200, None, columns, split, adds=True)
    gated = None if split == 4 else "silu"
    check_halves(
        make(form),
        make(ClusterForm(72, 136, gated, 48, split // 2, normed=form.parts)),
        50,
        bias=columns == 64,
    )


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, ROWS),
    n=st.integers(1, 30),
    m=st.integers(1, 20),
    k=st.integers(1, 60),
    seed=st.integers(0, 99),
    bias=st.booleans(),
)
def test_halves_of_random_sizes(make: Make, rows: int, n: int, m: int, k: int, seed: int, bias: bool) -> None:
    form = ClusterForm(8 * n, 8 * k, None, 32, 8, adds=True)
    check_halves(
        make(form, seed),
        make(ClusterForm(8 * m, 8 * n, None, 64, 2, normed=form.parts), seed),
        rows,
        bias=bias,
    )


def test_halves_that_do_not_fit_are_named(make: Make, device: torch.device) -> None:
    for wrong in (
        {"split": 1},
        {"columns": 48},
        {"gated": "silu"},
    ):
        with pytest.raises(ValueError, match="a product that adds has no gate, 2 programs at least"):
            ClusterForm(**{"n": 64, "k": 64, "gated": None, "columns": 32, "split": 2, "adds": True, **wrong})  # type: ignore[arg-type]
    x, w = torch.zeros(4, 64, dtype=BF16, device=device), torch.zeros(64, 64, dtype=BF16, device=device)
    squares = torch.zeros(2, ROWS, device=device)
    plain, adds, normed = (
        make(ClusterForm(64, 64, None, 32, 2, adds=adds, normed=normed))
        for adds, normed in ((False, 0), (True, 0), (False, 2))
    )
    with pytest.raises(ValueError, match="half a norm belongs to a product that adds or is normed"):
        plain(x, w, half=Half(squares))
    for linear in (adds, normed):
        with pytest.raises(ValueError, match="half a norm belongs to a product that adds or is normed"):
            linear(x, w)
        with pytest.raises(ValueError, match=r"squares \(1, 64\) torch\.float32, not \(2, 64\)"):
            linear(x, w, half=Half(squares[:1], 0.0, x, w[0]))
        with pytest.raises(ValueError, match="squares are not contiguous"):
            linear(x, w, half=Half(torch.zeros(ROWS, 2, device=device).t(), 0.0, x, w[0]))
    odd = torch.zeros(65, dtype=BF16, device=device)[1:]
    wrong_halves = [Half(squares), Half(squares, 0.0, x[:3], w[0]), Half(squares, 0.0, x, w[0].float())]
    for half in (*wrong_halves, Half(squares, 0.0, x, odd)):
        with pytest.raises(ValueError, match=r"residual or weight .*, not contiguous"):
            adds(x, w, half=half)


@pytest.mark.parametrize("k", [64, 896, 4864, 14336])
@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("split", SPLITS)
def test_stages_fit_a_multiprocessor(split: int, columns: int, k: int) -> None:
    macros = ClusterForm(896, k, None, columns, split).defines()
    steps = -(-k // 64 // split)
    assert macros["SHARED_BYTES"] <= MOST_SHARED
    assert 1 <= macros["W_STAGES"] <= steps
    assert min(steps, 3) <= macros["X_STAGES"] <= steps


def test_a_layer_takes_it_where_it_runs(
    make: Make, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms: list[ClusterForm] = []

    def linear(device: torch.device, form: ClusterForm) -> ClusterLinear | None:
        forms.append(form)
        return make(form) if form.gated != "gelu" else None

    monkeypatch.setattr(cluster_linear, "product_of", linear)
    tiles = LinearTiles("cluster", 64, 80, 64, splits=2)
    x, y = torch.randn(2, 40, 136).to(BF16).to(device)
    w = (torch.randn(272, 136) * 136**-0.5).to(BF16).to(device)
    b = torch.randn(272).to(BF16).to(device)
    assert torch.equal(
        skinny_linear(x, w, bias=b, gated="silu", tiles=tiles),
        make(ClusterForm(136, 136, "silu", 80, 2))(x, w, bias=b),
    )
    out = torch.empty_like(x)
    assert skinny_linear(x, w[:136], residual=y, out=out, tiles=tiles) is out
    assert error(out, skinny_linear_reference(x, w[:136], residual=y)) < 1e-2
    assert forms == [ClusterForm(136, 136, "silu", 80, 2), ClusterForm(136, 136, None, 80, 2)]
    for gated in ("silu", "gelu"):  # too many rows; nobody compiles the latter here
        many = torch.cat((x, y)) if gated == "silu" else x
        wanted = skinny_linear_reference(many, w, gated=gated)
        assert error(skinny_linear(many, w, gated=gated, tiles=tiles), wanted) < 1e-2


def test_kernels_of_a_model_are_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the tables of a Hopper card want for its layers' shapes, and none elsewhere."""

    def linear(n: int, k: int) -> SimpleNamespace:
        return SimpleNamespace(weight=torch.empty(n, k, device="meta"))

    layer: Any = SimpleNamespace(
        attention=SimpleNamespace(qkv=linear(1152, 896), out=linear(896, 896)),
        mlp=SimpleNamespace(up=linear(2 * 4864, 896), down=linear(896, 4864)),
        spec=SimpleNamespace(mlp=SimpleNamespace(activation="silu")),
    )
    device = torch.device("cpu")
    assert not list(cluster_forms(layer, device))
    monkeypatch.setattr(tuning, "_name", lambda device: "NVIDIA H200")
    found = set(cluster_forms(layer, device))
    assert {(f.n, f.k, f.gated) for f in found} == {
        (1152, 896, None), (896, 896, None), (896, 4864, None), (4864, 896, "silu"),
    }  # fmt: skip
    for form in found:
        tiles = linear_tiles(device, 64, form.n, form.k, BF16, form.gated is not None)
        assert (tiles.kind, tiles.block_n, tiles.splits) == ("cluster", form.columns, form.split)


def test_no_rows(make: Make, device: torch.device) -> None:
    x = torch.empty(0, 64, dtype=BF16, device=device)
    linear = make(ClusterForm(16, 64, None, 32, 1))
    assert linear(x, torch.zeros(16, 64, dtype=BF16, device=device)).shape == (0, 16)


def test_what_does_not_fit_is_named(make: Make, device: torch.device) -> None:
    linear = make(ClusterForm(16, 64, None, 32, 1))
    x, w = torch.zeros(4, 64, dtype=BF16, device=device), torch.zeros(16, 64, dtype=BF16, device=device)
    for wrong in (w[:, :32], w[:8]):
        with pytest.raises(ValueError, match="do not fit"):
            linear(x, wrong)
    with pytest.raises(ValueError, match="do not fit"):
        linear(x.new_zeros(65, 64), w)
    with pytest.raises(ValueError, match=r"bias \(8,\) does not fit"):
        linear(x, w, bias=w[0, :8])
    with pytest.raises(ValueError, match=r"float32, not torch\.bfloat16"):
        linear(x.float(), w)
    assert cluster_linear.linear_of(x, torch.zeros(12, 64, dtype=BF16, device=device), None, 32, 1) is None
