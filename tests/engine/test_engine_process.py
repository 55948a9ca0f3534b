"""Where there may be a GPU an engine's loop runs in a process of its own; nothing else changes."""

from __future__ import annotations

import gc
import os
import weakref

import pytest

from runtime import Engine
from runtime.engine import engine as module
from runtime.engine.process import ProcessTransport
from runtime.engine.transport import ThreadTransport
from runtime.errors import ModelError

ASKED = {"temperature": 0, "max_new_tokens": 12}


def test_answers_are_the_same_and_the_process_ends_with_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(max_total_tokens=1024, device="cpu") as engine:
        assert isinstance(engine.async_engine.transport, ThreadTransport)
        wanted = engine.generate("The capital of France is", ASKED)["text"]
    monkeypatch.setattr(module, "_may_be_on_a_gpu", lambda config: True)
    with Engine(max_total_tokens=1024, device="cpu") as engine:
        transport = engine.async_engine.transport
        assert isinstance(transport, ProcessTransport)
        pid = transport.pid
        assert pid is not None and pid != os.getpid()
        assert engine.generate("The capital of France is", ASKED)["text"] == wanted
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_model_that_cannot_be_loaded_is_told_by_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    monkeypatch.setattr(module, "_may_be_on_a_gpu", lambda config: True)
    with pytest.raises(ModelError):
        Engine(str(tmp_path), device="cpu", skip_tokenizer_init=True)


@pytest.mark.parametrize(("device", "wanted"), [("cuda", True), ("cuda:1", True), ("cpu", False)])
def test_the_device_decides(device: str, wanted: bool) -> None:
    assert module._may_be_on_a_gpu(module.EngineConfig.of({"device": device})) is wanted


def test_a_loop_in_a_thread_leaves_no_model_behind() -> None:
    engine = Engine(max_total_tokens=1024, device="cpu")
    transport = engine.async_engine.transport
    assert isinstance(transport, ThreadTransport)
    thread = transport._thread
    assert thread is not None
    loop = weakref.ref(thread._args[0])  # type: ignore[attr-defined]
    gc.disable()  # what is freed is not freed by chance
    try:
        engine.shutdown()
        assert loop() is None
    finally:
        gc.enable()
