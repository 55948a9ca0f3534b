"""Are the masks right? Every token of a real vocabulary is tried byte by byte at the states of many walks.

    python -m benchmarks.constraints.brute_force --corpus FOLDER [--vocab tekken|spm32k] [-n 100] [--states 6] [--order any]

Needs the harness `cdbench` on the path for its vocabularies, patterns and schema corpus. Prints a line for
each difference and a summary; ends with status 1 if there was one.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from typing import Any

import numpy as np
from cdbench import corpus, patterns
from cdbench import vocab as vocabularies

from grammar.automaton import TokenAutomaton
from grammar.compile import Options, compile_constraint
from grammar.constraint_errors import ConstraintError
from grammar.vocabulary import Vocabulary


def states_of_walk(automaton: TokenAutomaton, tokens: list[int]) -> list[int]:
    found, state = [0], 0
    for token in tokens:
        state = automaton.step(state, token)
        if state < 0:
            break
        found.append(state)
    return list(dict.fromkeys(found))


def differences(automaton: TokenAutomaton, state: int) -> int:
    vocabulary = automaton.vocabulary
    mask = np.unpackbits(automaton.allowed(state).view(np.uint8), bitorder="little").astype(bool)
    wrong = 0
    for token, data in enumerate(vocabulary.tokens):
        if token in vocabulary.eos:
            expected = automaton.can_end(state)
        else:
            expected = bool(data) and automaton.advance_bytes(state, data) >= 0
        wrong += expected != mask[token]
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--vocab", default="tekken")
    parser.add_argument("-n", type=int, default=100)
    parser.add_argument("--states", type=int, default=6)
    parser.add_argument("--order", choices=("declared", "any"), default="declared")
    options = parser.parse_args()
    vocab = vocabularies.load(options.vocab)
    vocabulary = Vocabulary.of(vocab.tokens, [vocab.eos], vocab.specials)
    asked = Options(any_order=options.order == "any")
    rng = random.Random(7)
    jobs: list[tuple[str, str, Any, list[str]]] = [("regex", i, r, ok) for i, r, ok, _ in patterns.PATTERNS]
    for schema in corpus.sample(options.corpus, options.n):
        texts = [json.dumps(t["data"], ensure_ascii=False, separators=(",", ":")) for t in schema["tests"]]
        jobs.append(("json_schema", schema["id"], schema["schema"], texts))
    checked = wrong = constraints = 0
    for kind, name, source, texts in jobs:
        try:
            automaton = compile_constraint(kind, source, vocabulary, options=asked).automaton  # type: ignore[arg-type]
        except ConstraintError:
            continue
        assert automaton is not None
        constraints += 1
        states = list(dict.fromkeys(s for t in texts for s in states_of_walk(automaton, vocab.encode(t))))
        for state in rng.sample(states, min(options.states, len(states))):
            found = differences(automaton, state)
            checked += 1
            if found:
                wrong += 1
                print(f"{name}: {found} tokens differ in state {state}")
    print(
        f"{constraints} constraints, {checked} states x {len(vocabulary)} tokens of {options.vocab}: {wrong} states differ"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
