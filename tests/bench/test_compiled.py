"""What a run compiled, by Triton's own hooks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from runtime.bench.compiled import Compiled

knobs = pytest.importorskip("triton").knobs


def test_variants_are_counted_and_other_hooks_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(knobs.runtime, "jit_cache_hook", lambda **facts: seen.append(facts["fn"].name))
    before = knobs.runtime.jit_cache_hook, knobs.runtime.jit_post_compile_hook
    with Compiled() as made:
        for name in ("_decode", "_tiled", "_decode"):
            facts = {"fn": SimpleNamespace(name=name), "key": "", "already_compiled": False}
            assert not knobs.runtime.jit_cache_hook(**facts)  # true would keep Triton from compiling
            knobs.runtime.jit_post_compile_hook(**facts)
    assert (knobs.runtime.jit_cache_hook, knobs.runtime.jit_post_compile_hook) == before
    assert {name: m.count for name, m in made.kernels.items()} == {"_decode": 2, "_tiled": 1}
    assert made.summary()["variants"] == 3
    assert seen == ["_decode", "_tiled", "_decode"]
