"""Every way through the engine on a GPU gives the tokens of the plain path on a CPU, in float32."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.api import SamplingParams
from runtime.config import EngineConfig
from runtime.engine import bundles
from runtime.engine.loop import EngineLoop
from runtime.engine.messages import Add, Output
from runtime.kernels import nvrtc
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


def together(prompts: list[list[int]], **more: Any) -> list[list[int]]:
    """Greedy tokens of requests that run at the same time, by the embedded model."""
    loop = EngineLoop(EngineConfig.of({"device": "cuda", "max_total_tokens": 16384, **more}))
    found: dict[str, list[int]] = {}
    try:
        for i, tokens in enumerate(prompts):
            found[str(i)] = []
            assert not loop.handle(
                Add(
                    str(i),
                    tokens,
                    SamplingParams(temperature=0.0, max_new_tokens=16, ignore_eos=True),
                    seed=0,
                )
            )
            if not i:  # its prompt is in the cache when the others come
                loop.step()
        left = set(found)
        while left:
            for message in loop.step():
                assert isinstance(message, Output), message
                found[message.id] += message.tokens
                left -= {message.id} if message.finish is not None else set()
    finally:
        loop.close()
    return list(found.values())


@pytest.mark.parametrize("page_size", [1, 16])
def test_rows_that_begin_alike_give_the_tokens_of_rows_that_do_not(
    page_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16, so a near tie may fall the other way: for one in ten at most."""
    torch.manual_seed(5)
    head = torch.randint(5, 8000, (700,)).tolist()
    prompts = [head + torch.randint(5, 8000, (1 + i,)).tolist() for i in range(40)]
    reason = nvrtc.why_not(torch.device("cuda"))
    if reason is not None:
        pytest.skip(reason)
    sharing: list[int] = []
    find = bundles.bundles

    def watched(*args: Any) -> Any:
        found = find(*args)
        sharing.append(0 if found is None else int((found[1] > 0).sum()))
        return found

    monkeypatch.setattr("runtime.engine.bundles.bundles", watched)
    monkeypatch.setattr("runtime.engine.bundles.WORTH", -(1 << 60))
    mine = together(prompts, page_size=page_size)
    assert max(sharing) > 30, "but for one that is left alone, perhaps"
    monkeypatch.setattr("runtime.engine.bundles.WORTH", 1 << 60)
    theirs = together(prompts, page_size=page_size)
    assert sum(a == b for a, b in zip(mine, theirs, strict=True)) >= 36
