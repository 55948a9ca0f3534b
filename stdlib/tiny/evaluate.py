"""Measure the embedded model: `python -m stdlib.tiny.evaluate`.

Everything asked here is held out: phrasings and leads that the topics name as held out, and operand pairs that
`arithmetic.held_out` keeps back. An answer counts only if it is the whole expected text, so a right word
in a wrong sentence is a miss; a fact may also be given bare, as one word. The model is seen through `Complete`
alone: our own engine, or transformers as the reference.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from stdlib.tiny import path
from stdlib.tiny.corpus import arithmetic, geography, judging, records, tools
from stdlib.tiny.corpus.document import CLOSE, SYSTEMS, Document, chat, plain, text_of
from stdlib.tiny.corpus.facts import COUNTRIES

# prompts, most new tokens -> what follows each, as far as an end token
Complete = Callable[[list[str], int], list[str]]


@dataclass(frozen=True)
class Case:
    """One prompt; `right` judges what the model writes after it."""

    prompt: str
    right: Callable[[str], bool]


@dataclass(frozen=True)
class Category:
    """`least` is the share that must be right, if one is demanded."""

    name: str
    cases: Callable[[Random], Iterator[Case]]
    max_tokens: int = 32
    least: float | None = None


@dataclass(frozen=True)
class Score:
    category: str
    right: int
    total: int
    least: float | None
    misses: tuple[tuple[str, str], ...]

    @property
    def share(self) -> float:
        return self.right / self.total


def _open(document: Document) -> str:
    """The document as a prompt: the last answer is left to the model."""
    last = max(i for i, part in enumerate(document) if part.learn)
    return text_of(document[:last])


def _says(*expected: str) -> Callable[[str], bool]:
    """The first line is one of the expected texts."""
    return lambda text: text.split(CLOSE)[0].strip().split("\n")[0].strip() in expected


def _forms(
    rng: Random, question: str, answer: str, before: list[tuple[str, str]] | None = None, bare: str = ""
) -> Iterator[Case]:
    """The question in a conversation and, if nothing went before, as `Q: A:`, where the fact alone will do."""
    system = rng.choice(SYSTEMS) if rng.random() < 0.5 else None
    yield Case(_open(chat([*(before or []), (question, answer)], system)), _says(answer))
    if before is None:
        yield Case(_open(plain([(question, answer)])), _says(answer, bare) if bare else _says(answer))


def facts(*names: str) -> Callable[[Random], Iterator[Case]]:
    """Each relation of each country, in held-out words."""

    def cases(rng: Random) -> Iterator[Case]:
        for r in (geography.BY_NAME[name] for name in names):
            for phrasing in r.held_out:
                for c in COUNTRIES:
                    bare = "" if r.name == "sights" else r.key(c)
                    yield from _forms(rng, geography.fill(phrasing, c), r.answer(c), bare=bare)

    return cases


def follow_ups(rng: Random) -> Iterator[Case]:
    """A capital asked for, then its sights, both in held-out words."""
    first, then = geography.BY_NAME["capital"], geography.BY_NAME["sights"]
    for phrasing, c in zip(cycle(first.held_out), COUNTRIES):
        for follow in then.follow_up_held_out:
            before = [(geography.fill(phrasing, c), first.answer(c))]
            yield from _forms(rng, follow, then.answer(c), before)


def sums(sign: str) -> Callable[[Random], Iterator[Case]]:
    def cases(rng: Random) -> Iterator[Case]:
        pairs = [
            (a, b)
            for a in range(10, 100)
            for b in range(10, 100)
            if arithmetic.held_out(a, sign, b) and (sign == "+" or a >= b)
        ]
        for a, b in rng.sample(pairs, len(pairs)):
            e, v = f"{a} {sign} {b}", arithmetic.value(a, sign, b)
            yield Case(f"{e} =", _says(str(v)))
            yield from _forms(rng, rng.choice(arithmetic.HELD_OUT_PHRASINGS).format(e=e), f"{e} = {v}")

    return cases


def _tool_cases(rng: Random, right: Callable[[int, str], tuple[str, str]]) -> Iterator[Case]:
    """`right` gives, for a tool and its argument, what stands after the lead and what must follow."""
    pairs = [
        (a, s, b)
        for a in range(10, 100)
        for b in range(10, 100)
        for s in "+-"
        if (s == "+" or a >= b) and arithmetic.held_out(a, s, b)
    ]
    for lead in tools.HELD_OUT_LEADS:
        for c in COUNTRIES:
            for name, words in tools.KEYWORDS.items():
                question = geography.fill(rng.choice(geography.BY_NAME[name].held_out), c)
                after, expected = right(1, geography.fill(words, c))
                yield Case(lead.format(q=question) + after, _says(expected))
                a, sign, b = rng.choice(pairs)
                question = rng.choice(arithmetic.HELD_OUT_PHRASINGS).format(e=f"{a} {sign} {b}")
                after, expected = right(0, f"{a} {sign} {b}")
                yield Case(lead.format(q=question) + after, _says(expected))


def _first_clause(right: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda text: right(text.split(".")[0])


def tool_choice(rng: Random) -> Iterator[Case]:
    for case in _tool_cases(rng, lambda tool, argument: ("", tools.TOOLS[tool])):
        yield Case(case.prompt, _first_clause(case.right))


def tool_argument(rng: Random) -> Iterator[Case]:
    heads = tuple(f". {head}" for head in tools.HEADS)
    yield from _tool_cases(rng, lambda tool, arg: (f" {tools.TOOLS[tool]}{heads[tool]}", f"{arg}."))


def _valid(name: str, keys: tuple[str, ...]) -> Callable[[str], bool]:
    def right(text: str) -> bool:
        try:
            record = json.loads(text.split(CLOSE)[0].strip().split("\n")[0])
        except ValueError:
            return False
        return isinstance(record, dict) and tuple(record) == keys and record["name"] == name

    return right


def valid_records(rng: Random) -> Iterator[Case]:
    """Every key in its place and the name that was asked for, without a constraint."""
    keys = {
        records.person: records.PERSON_KEYS,
        records.city: records.CITY_KEYS,
        records.character: records.CHARACTER_KEYS,
    }
    while True:
        for subject, wanted in keys.items():
            what, fields = subject(rng, kept=True)
            lead = rng.choice(records.HELD_OUT_LEADS).format(what=what)
            right = _valid(str(fields["name"]), wanted)
            yield Case(lead, right)
            yield Case(_open(chat([(lead.strip(), "")])), right)


def marks(rng: Random) -> Iterator[Case]:
    while True:
        text, given = judging.essay(rng)
        name = rng.choice(list(given))
        yield Case(f"Essay: {text}\nScore for {name} (1-10):", _says(str(given[name])))


CATEGORIES = (
    Category("capitals", facts("capital"), least=0.95),
    Category("currencies", facts("currency"), least=0.90),
    Category("languages", facts("language"), least=0.90),
    Category("continents", facts("continent"), least=0.90),
    Category("sights", facts("sights"), least=0.90),
    Category("sights after the capital", follow_ups),
    Category("addition", sums("+"), least=0.90),
    Category("subtraction", sums("-"), least=0.90),
    Category("choice of a tool", tool_choice, 8, least=0.90),
    Category("argument of a tool", tool_argument),
    Category("valid records, no constraint", valid_records, 64, least=0.80),
    Category("marks of essays", marks, 4),
)


def engine_complete(folder: Path) -> Complete:
    """Greedy answers from our own engine."""
    import sglc as sgl

    engine = sgl.Engine(str(folder))

    def complete(prompts: list[str], max_tokens: int) -> list[str]:
        return [r["text"] for r in engine.generate(prompts, {"temperature": 0, "max_new_tokens": max_tokens})]

    return complete


def transformers_complete(folder: Path, batch: int = 64) -> Complete:
    """Greedy answers from the weights, rounded to bfloat16 as they are stored and run in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def complete(prompts: list[str], max_tokens: int) -> list[str]:
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        texts = [""] * len(prompts)
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            inputs = tokenizer(
                [prompts[i] for i in chosen], return_tensors="pt", padding=True, return_token_type_ids=False
            )
            with torch.inference_mode():
                ids = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
            for i, row in zip(chosen, ids[:, inputs["input_ids"].shape[1] :]):
                texts[i] = str(tokenizer.decode(row, skip_special_tokens=True))
        return texts

    return complete


def measure(complete: Complete, count: int, seed: int) -> list[Score]:
    """At most `count` cases of each category, drawn with the seed."""
    scores = []
    for category in CATEGORIES:
        rng = Random(seed)
        cases = [case for case, _ in zip(category.cases(rng), range(8 * count))]
        cases = rng.sample(cases, min(count, len(cases)))
        texts = complete([case.prompt for case in cases], category.max_tokens)
        misses = tuple((c.prompt, t) for c, t in zip(cases, texts) if not c.right(t))
        scores.append(Score(category.name, len(cases) - len(misses), len(cases), category.least, misses))
    return scores


def main(
    weights: Annotated[Path | None, typer.Option(help="Folder of the weights [the package's own].")] = None,
    count: Annotated[int, typer.Option(help="Most prompts of a category.")] = 300,
    seed: Annotated[int, typer.Option(help="Which prompts are drawn.")] = 0,
    reference: Annotated[
        bool, typer.Option("--reference", help="Run on transformers instead of our engine.")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    misses: Annotated[int, typer.Option(help="Show so many wrong answers of each category.")] = 0,
) -> None:
    """Measure the embedded model on phrasings and operands that it was not trained on."""
    complete = transformers_complete if reference else engine_complete
    scores = measure(complete(weights or path()), count, seed)
    if as_json:
        print(
            json.dumps(
                {s.category: {"right": s.right, "of": s.total, "demanded": s.least} for s in scores}, indent=2
            )
        )
    elif markdown:
        print("| what | right | of | share | demanded |\n| --- | ---: | ---: | ---: | ---: |")
        for s in scores:
            print(
                f"| {s.category} | {s.right} | {s.total} | {s.share:.1%} | {f'{s.least:.0%}' if s.least else ''} |"
            )
    else:
        table = Table("what", "right", "of", "share", "demanded")
        for s in scores:
            table.add_row(
                s.category, str(s.right), str(s.total), f"{s.share:.1%}", f"{s.least:.0%}" if s.least else ""
            )
        Console().print(table)
    for s in scores:
        for prompt, text in s.misses[:misses]:
            print(f"--- {s.category}\n{prompt[-300:]!r}\n-> {text[:150]!r}")


if __name__ == "__main__":
    typer.run(main)
