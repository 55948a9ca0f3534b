"""Tokens of JSON answers that take no pass of the model's own: forced ones, and those that are guessed and verified.

    python -m benchmarks.constraints.guessed --corpus FOLDER [-n 150]

The valid texts of a corpus of schemas, compact, as a tokenizer of 131,072 tokens writes them: each is walked once, as an engine writes it.
Forced tokens are appended; likely ones are guessed, at most 8 behind each drawn token, and those that are right need no pass. What is
guessed is the rest of a forced text, and what the texts of this schema before it went on with: nothing is known of the
first one's. Needs the harness `cdbench` on the path, with its vocabularies.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cdbench import corpus, vocab

from benchmarks.constraints.adapter import Sglc
from grammar.constraint_errors import ConstraintError
from runtime.constrain.guess import Jumps
from runtime.constrain.matcher import Matcher
from runtime.constrain.recall import Recall

_RESULTS = Path(__file__).parents[1] / "results" / "guessed_tokens.json"
MOST = 8


@dataclass
class Counts:
    """Tokens of texts, how many were forced, guessed (without those that are forced behind a guess) and right, and passes."""

    tokens: int = 0
    forced: int = 0
    guessed: int = 0
    right: int = 0
    passes: int = 0

    @property
    def share(self) -> float:
        return 1 - self.passes / max(1, self.tokens)


def walk(jumps: Jumps, matcher: Matcher, ids: list[int], most: int, counts: Counts) -> bool:
    """One text, as an engine writes it; False, and nothing is counted, if it is not what is forced."""
    at, own = 0, Counts(len(ids))
    while at < len(ids):
        forced = jumps.forced(matcher)
        if forced != ids[at : at + len(forced)]:
            return False
        at += len(forced)
        own.forced += len(forced)
        guesses, sure = jumps.likely(matcher, most)
        right = 0
        while right < len(guesses) and at + right < len(ids) and ids[at + right] == guesses[right]:
            right += 1
        own.guessed += len(guesses) - len(sure)
        own.right += right
        taken = ids[at : at + right + 1]  # what is drawn behind the right ones comes with them
        own.passes += len(taken) > 0
        for token in taken:
            state = matcher.state
            matcher.advance(token)
            jumps.took(state, token)
        at += len(taken)
    for name, value in asdict(own).items():
        setattr(counts, name, getattr(counts, name) + value)
    return True


def measured(schemas: list[dict[str, Any]], words: Any, objects: str, guesses: str) -> dict[str, Any]:
    adapter = Sglc(objects=objects)
    adapter.setup(words)
    every, first = Counts(), Counts()
    texts = refused = 0
    for job in schemas:
        try:
            automaton = adapter.compile("json_schema", job["schema"]).automaton
        except ConstraintError:
            continue
        if automaton is None:
            continue
        recall = Recall() if guesses == "learnt" else None
        fresh = True
        for test in job["tests"]:
            if not test["valid"]:
                continue
            ids = list(words.encode(json.dumps(test["data"], ensure_ascii=False, separators=(",", ":"))))
            jumps, counts = Jumps(adapter.jump(automaton), [], recall), Counts()
            try:
                good = walk(jumps, Matcher(automaton), ids, MOST if guesses else 0, counts)
            except ValueError:  # of another order, or with what this reading of objects refuses
                good = False
            if not good:
                refused += 1
                continue
            texts += 1
            for into in (every, first) if fresh else (every,):
                for name, value in asdict(counts).items():
                    setattr(into, name, getattr(into, name) + value)
            fresh = False
    return {
        "objects": objects,
        "guesses": guesses or "none",
        "texts": texts,
        "not_written_so": refused,
        **asdict(every),
        "share": round(every.share, 3),
        "share_of_first_texts": round(first.share, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True, help="folder of schemas with instances")
    parser.add_argument("-n", type=int, default=150, help="schemas")
    parser.add_argument("--out", type=Path, default=_RESULTS)
    args = parser.parse_args()
    words, schemas = vocab.load("tekken"), corpus.sample(args.corpus, args.n)
    rows = []
    for objects in ("strict", "closed", "open"):
        for guesses in ("", "rest", "learnt"):
            rows.append(measured(schemas, words, objects, guesses))
            print(json.dumps(rows[-1]), flush=True)
    args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
