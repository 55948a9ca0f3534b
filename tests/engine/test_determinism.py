"""One request in batches of many sizes has one output, bit for bit. 1,000 times: benchmarks/determinism.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sglc as sgl
from benchmarks.determinism import outputs
from runtime.kernels.cpu.build import Variant
from runtime.layers.linear import product


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """The embedded model's kernels, so that none of its engines begins without them and goes on with them."""
    Variant("uint16", 32).build()


@pytest.mark.parametrize("options", [{}, {"disable_radix_cache": True}], ids=["cache", "no cache"])
def test_an_output_does_not_depend_on_its_batch(options: dict[str, Any]) -> None:
    with sgl.Engine(threads=1, **options) as engine:
        alone = outputs(engine, 1, tokens=8)
        assert len(alone + outputs(engine, 30, tokens=8)) == 1


def test_a_row_of_a_product_does_not_depend_on_the_others() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more MKL cuts some numbers of rows into too few for each
    try:
        x, w = torch.randn(40, 256), torch.randn(96, 256)
        whole = product(x, w)
        assert all(torch.equal(product(x[:rows], w), whole[:rows]) for rows in range(1, 40))
    finally:
        torch.set_num_threads(threads)
