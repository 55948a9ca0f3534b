"""A model's layers by products of clusters that share norms, against float64; on a CPU their threads are emulated."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from runtime.kernels.activation import gated_reference
from runtime.kernels.cluster_linear import ClusterForm, ClusterLinear
from runtime.kernels.norm import rms_norm_reference
from runtime.kernels.tuning import LinearTiles
from runtime.kv.store import KVStore
from runtime.models import clustered, fused
from runtime.models.decoder import Decoder
from runtime.models.fused import FusedDecoder
from runtime.models.spec import ArchSpec, AttnSpec, LayerSpec, MlpSpec, NormSpec, RopeSpec
from tests.kernels import emulated
from tests.kernels.paged_case import error
from tests.kernels.test_cluster_linear import builder

BF16 = torch.bfloat16
HEADS, KV, DIM, HIDDEN = 4, 2, 16, 72
ROPE = RopeSpec(DIM, tuple(0.5**i for i in range(DIM // 2)))
PLAIN = LayerSpec(AttnSpec(HEADS, KV, DIM, 0.25, ROPE, qkv_bias=True), MlpSpec(104), NormSpec(1e-2))
GEMMA = replace(PLAIN, norm=NormSpec(1e-3, offset=1.0), mlp=MlpSpec(104, "gelu_pytorch_tanh"))
MODELS = {"qwen": PLAIN, "gemma": GEMMA}


def model(name: str, on: torch.device) -> Decoder:
    layer = MODELS[name]
    made = Decoder(ArchSpec(name, 80, HIDDEN, 96, (layer,) * 2, layer.norm), BF16)
    for p in made.parameters():
        p.requires_grad_(False)
        p.normal_(std=p.shape[-1] ** -0.5 if p.dim() > 1 else 0.5)
    return made.to(on)


def tiles(device: torch.device, rows: int, n: int, k: int, dtype: torch.dtype, gated: bool) -> LinearTiles:
    """Clusters for 5 to 40 rows; those up to 20 in other tiles."""
    if rows not in range(5, 41):
        return LinearTiles("tiled")
    if gated:
        return LinearTiles("cluster", block_n=80)
    return LinearTiles("cluster", block_n=32 if rows <= 20 else 64, splits=8 if k == 104 else 2)


def attended(qkv: Tensor, kind: torch.dtype) -> Tensor:
    """In place of attention: [tokens, heads, dim]."""
    q, k, v = qkv.to(kind).unflatten(1, (-1, DIM)).split((HEADS, KV, KV), dim=1)
    return torch.tanh(q + k.repeat_interleave(2, 1)) * v.repeat_interleave(2, 1)


class Attention:
    inputs: Any = None

    def ready(self, rows: int, dtype: torch.dtype) -> None:
        assert dtype == BF16

    def run_packed(self, qkv: Tensor, turning: Any, index: int, spec: AttnSpec) -> Tensor:
        return attended(qkv, torch.float32).to(qkv.dtype)


def reference(m: Decoder, ids: Tensor) -> Tensor:
    """float64 [tokens, hidden]"""

    def times(y: Tensor, layer: Any) -> Tensor:
        wide: Tensor = y @ layer.weight.double().t()
        return wide if layer.bias is None else wide + layer.bias.double()

    def norm(y: Tensor, of: Any) -> Tensor:
        return rms_norm_reference(y, of.weight.double(), of.spec.eps, of.spec.offset)

    x = m.embedding(ids).double()
    for layer in m.layers:
        at: Any = layer
        y = attended(times(norm(x, at.attn_norm), at.attention.qkv), torch.float64).flatten(1)
        x = x + times(y, at.attention.out)
        gate = fused._GATES[at.spec.mlp.activation]
        x = x + times(gated_reference(times(norm(x, at.mlp_norm), at.mlp.up), gate), at.mlp.down)
    return norm(x, m.norm)


def decoder(
    m: Decoder, device: torch.device, libraries: Path, monkeypatch: pytest.MonkeyPatch
) -> FusedDecoder:
    def make(device: torch.device, form: ClusterForm) -> ClusterLinear:
        build = None if device.type == "cuda" else builder(libraries, form, 5)
        return ClusterLinear(device, form, build=build)

    monkeypatch.setattr(clustered, "linear_tiles", tiles)
    monkeypatch.setattr(fused, "clustered_steps", partial(clustered.clustered_steps, make=make))
    return FusedDecoder(m, KVStore(m.spec, 8, 16, BF16, str(device)), step=None)


@pytest.mark.parametrize("name", list(MODELS))
def test_layers(name: str, device: torch.device, libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emulated.skip_without_compiler(device)
    m = model(name, device)
    layers = decoder(m, device, libraries, monkeypatch)
    assert layers.form == "fused kernels, none for norms of 5 to 40 rows"
    plain = FusedDecoder(m, layers.store, step=None)
    monkeypatch.setattr(plain, "_clustered", None)
    called: list[tuple[int, bool]] = []
    run = clustered.ClusteredSteps.__call__

    def watched(self: Any, x: Tensor, attend: Any, chosen: Tensor | None = None) -> Tensor:
        called.append((len(x), chosen is None))
        return run(self, x, attend, chosen)

    monkeypatch.setattr(clustered.ClusteredSteps, "__call__", watched)
    impl: Any = Attention()
    for rows in (4, 5, 20, 33, 40, 41) if name == "qwen" else (33,):
        ids = torch.randint(0, 80, (rows,), device=device)
        at = torch.arange(rows, device=device)
        wanted = reference(m, ids)
        usual = error(plain(ids, at, impl), wanted)
        found = layers(ids, at, impl)
        assert error(found, wanted) < max(1.3 * usual, 0.01)
        for chosen in ([2], [3, 0], []) if rows in (5, 33) else ():
            some = torch.tensor(chosen, dtype=torch.int64, device=device)
            few = layers(ids, at, impl, rows=some)
            assert few.shape == (len(chosen), HIDDEN)
            assert torch.allclose(few.float(), found[some].float(), atol=0.05)
    some = {n: 3 * (n in (5, 33)) for n in ((5, 20, 33, 40) if name == "qwen" else (33,))}
    assert called == [(n, i == 0) for n, count in some.items() for i in range(count + 1)]


def test_tables_and_shapes_decide(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    m = model("qwen", torch.device("cpu"))
    layer: Any = m.layers[0]
    assert clustered.layer_forms(layer, "silu", 8, torch.device("cpu")) is None
    monkeypatch.setattr(clustered, "linear_tiles", tiles)
    found = clustered.layer_forms(layer, "silu", 8, torch.device("cpu"))
    assert found is not None
    assert (found.qkv.normed, found.up.normed) == (found.down.parts, found.out.parts) == (3, 3)
    assert found.first == replace(found.qkv, normed=0)
    assert clustered.layer_forms(layer, "silu", 4, torch.device("cpu")) is None
    for changed in ({"splits": 1}, {"block_n": 48}, {"kind": "library"}):
        other = lambda *a, changed=changed: replace(tiles(*a), **changed)  # noqa: E731
        monkeypatch.setattr(clustered, "linear_tiles", other)
        assert clustered.layer_forms(layer, "silu", 8, torch.device("cpu")) is None
    monkeypatch.setattr(clustered, "linear_tiles", tiles)
    wide = SimpleNamespace(attention=layer.attention.float(), mlp=layer.mlp, spec=layer.spec)
    assert clustered.layer_forms(wide, "silu", 8, torch.device("cpu")) is None  # type: ignore[arg-type]


def test_nobody_compiles_them(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    m = model("qwen", device)
    monkeypatch.setattr(clustered, "linear_tiles", tiles)
    monkeypatch.setattr(fused, "clustered_steps", partial(clustered.clustered_steps, make=lambda *_: None))
    layers = FusedDecoder(m, KVStore(m.spec, 8, 16, BF16, str(device)), step=None)
    assert layers.form == "fused kernels"
