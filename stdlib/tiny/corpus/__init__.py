"""The text that the embedded model is trained on, made from templates and tables with a seed.

`documents(seed)` is endless and deterministic. What `evaluate` asks (phrasings, operand pairs) is named in
the topics as held out and is never made here.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from stdlib.tiny.corpus import advice, arithmetic, geography, judging, records, stories, tools
from stdlib.tiny.corpus.document import Document, Topic

# Shares of documents, not of tokens: a drill is long, a single question short.
MIXTURE: tuple[tuple[float, Topic], ...] = (
    (10, geography.single),
    (14, geography.conversation),
    (8, geography.few_shot),
    (6, geography.sentences),
    (3, geography.which_country),
    (2, geography.options),
    (16, arithmetic.drill),
    (8, arithmetic.asked),
    (7, tools.tool_use),
    (3, tools.tool_chat),
    (7, records.record),
    (3, records.extraction),
    (5, advice.tips),
    (2, advice.asked),
    (4, judging.judge),
    (2, judging.feeling),
    (3, stories.written),
    (2, stories.summarised),
    (1, stories.talk),
)


def documents(seed: int) -> Iterator[Document]:
    """Documents without end; equal seeds give equal documents."""
    rng = Random(seed)
    weights = [w for w, _ in MIXTURE]
    topics = [t for _, t in MIXTURE]
    while True:
        yield rng.choices(topics, weights)[0](rng)
