"""Every way through the engine on a GPU gives the tokens of the plain path on a CPU, in float32."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.engine.loop import EngineLoop
from tests.tiny_loop import KINDS, answers, folder, options

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PATHS: dict[str, dict[str, Any]] = {
    "triton": {},
    "triton, pages of 16": {"page_size": 16},
    "triton, pages of 64": {"page_size": 64},
    "no graphs": {"disable_cuda_graph": True},
    "graphs up to 2": {"cuda_graph_max_bs": 2},
    "one step a turn": {"num_continuous_decode_steps": 1},
    "four steps a turn": {"num_continuous_decode_steps": 4, "page_size": 16},
    "one batch in flight": {"disable_overlap_schedule": True},
    "torch": {"attention_backend": "torch"},
    "torch, pages of 16": {"attention_backend": "torch", "page_size": 16},
    "whole prompts": {"chunked_prefill_size": 256},
    "no cache": {"disable_radix_cache": True},
    "drawn by torch": {"sampling_backend": "torch"},
}
if importlib.util.find_spec("flashinfer") is not None:
    PATHS["cut by flashinfer"] = {"sampling_backend": "flashinfer"}
RANKS: dict[str, dict[str, Any]] = {
    name: PATHS[name] for name in ("triton, pages of 16", "no graphs", "four steps a turn")
}


def check(path: str, wanted: dict[str, list[int]], **more: Any) -> None:
    loop = EngineLoop(options(path, "cuda", max_total_tokens=512, **more))
    try:
        assert answers(loop) == wanted
        assert answers(loop) == wanted, "and with a warm cache"
    finally:
        loop.close()


@pytest.mark.parametrize("kind", KINDS)
def test_every_path_gives_the_tokens_of_the_cpu(kind: str, tmp_path: Path) -> None:
    path = folder(tmp_path, kind)
    wanted = answers(EngineLoop(options(path)))
    for name, more in PATHS.items():
        try:
            check(path, wanted, **more)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("name", RANKS)
def test_two_ranks_on_every_path(name: str, tmp_path: Path) -> None:
    path = folder(tmp_path, "llama")
    check(path, answers(EngineLoop(options(path))), tensor_parallel_size=2, **RANKS[name])
