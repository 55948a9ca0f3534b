"""What a run took, counted at the backend."""

from __future__ import annotations

import sglc as sgl
from runtime.backends.metered import Metered
from runtime.backends.scripted import words

SHARED = "Once upon a time there was a fox who lived in a forest with many other animals, "


def test_calls_and_tokens_are_counted_once() -> None:
    @sgl.function
    def asks(s, q):  # type: ignore[no-untyped-def]
        s += SHARED + q + sgl.gen("many", n=3) + sgl.select("c", ["a", "b"])

    inner = sgl.Scripted()
    metered = Metered(inner)
    state = asks.run("x", backend=metered)
    state.sync()
    spent = metered.spent
    one, two = (len(words(c.prompt[0].text)) for c in (inner.calls[0], inner.calls[0]))
    assert spent.calls == 2 and spent.prompt_tokens >= one + two and spent.hit_rate == 0.0
    assert spent.completion_tokens == sum(len(words(t)) for t in state["many"])


def test_an_engine_tells_what_its_cache_had() -> None:
    @sgl.function
    def asks(s, q):  # type: ignore[no-untyped-def]
        s += SHARED + q + sgl.gen("a", max_tokens=2)

    with sgl.Engine() as engine:
        metered = Metered(engine)
        asks.run_batch([{"q": "a"}, {"q": "b"}], backend=metered)
    assert metered.spent.calls == 2 and 0.5 < metered.spent.hit_rate < 1
