"""Steps of 17 to 64 rows where a layer's matrices are small: four products and attention, and no launch for a norm.

The products are those of kernels/cluster_linear.py: one that adds to the residual does half of the norm behind it, the next product
the other half. Sums are those of plain layers up to their order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor

from runtime.kernels.cluster_linear import ADDING, ROWS, ClusterForm, ClusterLinear, Half, product_of
from runtime.kernels.hopper_linear import why_not
from runtime.kernels.norm import rms_norm
from runtime.kernels.skinny import RowNorm
from runtime.kernels.tensor_map import takes
from runtime.kernels.tuning import early_starts, linear_tiles
from runtime.models.decoder import Layer


class LayerForms(NamedTuple):
    """Products of a layer; `first` is that of q, k and v behind a norm of its own, as the first layer has it."""

    first: ClusterForm
    qkv: ClusterForm
    out: ClusterForm
    up: ClusterForm
    down: ClusterForm


class LayerProducts(NamedTuple):
    """What computes them."""

    first: ClusterLinear
    qkv: ClusterLinear
    out: ClusterLinear
    up: ClusterLinear
    down: ClusterLinear


def layer_forms(layer: Layer, gate: str, rows: int, device: torch.device) -> LayerForms | None:
    """How so many rows go through the layer's products, all of them by clusters; None if the tables want one otherwise.

    gate  one of ACTIVATIONS, of the MLP
    """
    found = []
    for linear, gated in linears(layer, gate):
        n, k = linear.weight.shape
        n = n // 2 if gated else n
        tiles = linear_tiles(device, rows, n, k, torch.bfloat16, gated is not None)
        if (
            tiles.kind != "cluster"
            or why_not(n, k, linear.weight.dtype) is not None
            or not takes(linear.weight)
        ):
            return None
        found.append(ClusterForm(n, k, gated, tiles.block_n, tiles.splits))
    first, out, up, down = found
    if any(form.split == 1 or form.columns not in ADDING for form in (out, down)):
        return None
    return LayerForms(
        first,
        replace(first, normed=down.parts),
        replace(out, adds=True),
        replace(up, normed=out.parts),
        replace(down, adds=True),
    )


def linears(layer: Layer, gate: str) -> tuple[tuple[Any, str | None], ...]:
    """Its products, in their order, each with the gate that it has or None."""
    attention: Any = layer.attention
    mlp: Any = layer.mlp
    return (attention.qkv, None), (attention.out, None), (mlp.up, gate), (mlp.down, None)


class ClusteredSteps:
    """A model's layers over some numbers of rows."""

    def __init__(
        self,
        layers: Sequence[Layer],
        norms: Sequence[tuple[RowNorm, RowNorm]],
        last: RowNorm,
        products: Mapping[int, Sequence[LayerProducts]],
        device: torch.device,
    ) -> None:
        """
        norms     of each layer, before attention and before the MLP; `last` follows them all
        products  of each layer, by rows
        """
        self._layers, self._norms, self._last, self._products = layers, norms, last, products
        parts = {x.form.parts for of_layers in products.values() for p in of_layers for x in (p.out, p.down)}
        # Who writes them waits for the launch before, which has read what they held.
        self._squares = {n: torch.zeros(n, ROWS, device=device) for n in parts}

    @property
    def rows(self) -> range:
        """From the fewest to the most."""
        return range(min(self._products), max(self._products) + 1)

    def runs(self, rows: int) -> bool:
        return rows in self._products

    def __call__(
        self, x: Tensor, attend: Callable[[Tensor, Layer], Tensor], chosen: Tensor | None = None
    ) -> Tensor:
        """The norm behind the layers of x [rows, hidden], which is written over; of rows `chosen` int64 alone, if not None: the last
        layer then computes no others.

        attend  q, k and v of a layer, packed, -> [rows, heads * dim]
        """
        norm = self._norms[0][0]
        h, half = rms_norm(x, norm.weight, norm.eps, norm.offset), None
        for i, (layer, product) in enumerate(zip(self._layers, self._products[len(x)], strict=True)):
            attention: Any = layer.attention
            mlp: Any = layer.mlp
            after = self._norms[i + 1][0] if i + 1 < len(self._layers) else self._last
            y = attend(_times(product.first if half is None else product.qkv, h, attention.qkv, half), layer)
            if chosen is not None and layer is self._layers[-1]:
                y, x = y[chosen], x[chosen]
            h, half = self._added(product.out, y, attention.out, x, self._norms[i][1])
            h = _times(product.up, h, mlp.up, half)
            h, half = self._added(product.down, h, mlp.down, x, after)
        return rms_norm(x, self._last.weight, self._last.eps, self._last.offset)

    def _added(
        self, product: ClusterLinear, y: Tensor, layer: Any, x: Tensor, norm: RowNorm
    ) -> tuple[Tensor, Half]:
        """Add layer(y) to the residual `x` in place; the sum times the norm's weight, and what the rest of the norm needs."""
        squares = self._squares[product.form.parts]
        h = _times(product, y, layer, Half(squares, residual=x, weight=norm.weight, offset=norm.offset))
        return h, Half(squares, norm.eps)


def _times(product: ClusterLinear, x: Tensor, layer: Any, half: Half | None) -> Tensor:
    return product(x, layer.weight, bias=layer.bias, early=early_starts(x.device, len(x)), half=half)


def clustered_steps(
    layers: Sequence[Layer],
    gates: Sequence[str],
    norms: Sequence[tuple[RowNorm, RowNorm]],
    last: RowNorm,
    device: torch.device,
    make: Callable[[torch.device, ClusterForm], ClusterLinear | None] = product_of,
) -> ClusteredSteps | None:
    """Steps of the rows for which the tables want clusters everywhere; None if there are no such, or nobody compiles the kernels.

    gates  of each layer's MLP
    make   what multiplies by a form on a device
    """
    found: dict[int, list[LayerProducts]] = {}
    known: dict[tuple[LayerForms, ...], list[LayerProducts]] = {}
    for rows in range(1, ROWS + 1):
        forms = (layer_forms(layer, gate, rows, device) for layer, gate in zip(layers, gates, strict=True))
        wanted = tuple(f for f in takewhile(lambda f: f is not None, forms) if f is not None)
        if len(wanted) < len(layers):
            continue
        if wanted not in known:
            made = [[make(device, form) for form in f] for f in wanted]
            if any(product is None for of_layer in made for product in of_layer):
                return None
            known[wanted] = [LayerProducts(*of_layer) for of_layer in made]  # type: ignore[arg-type]
        found[rows] = known[wanted]
    return ClusteredSteps(layers, norms, last, found, device) if found else None
