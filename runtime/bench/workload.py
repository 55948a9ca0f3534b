"""What a benchmark asks for: prompts and lengths of answers. Equal seeds give equal requests."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.errors import InvalidRequest

_WORDS = (
    "the river keeps its own slow time and nobody in town can say when first a boat came down from north hills "
    "with salt wool paper or news of roads that were closed by snow while children ran along under open windows"
).split()


@dataclass(frozen=True)
class Asked:
    """One request: a prompt, as ids or as text, and the tokens that the answer shall have."""

    prompt: list[int] | str
    new: int


@dataclass(frozen=True)
class Workload:
    """Options of a benchmark's requests."""

    dataset: str = field(
        default="random",
        metadata={
            "help": "random, or a file of JSON lines: each has prompt (text or token ids) and may have max_tokens; or one in "
            "ShareGPT's form.",
            "aliases": ("--dataset-path",),
        },
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "random or sharegpt, as other benchmarks call them; the file tells."}
    )
    num_prompts: int = field(default=100, metadata={"help": "Requests, at each rate."})
    input_len: int = field(
        default=256, metadata={"help": "Tokens of a random prompt.", "aliases": ("--random-input-len",)}
    )
    output_len: int = field(
        default=64,
        metadata={
            "help": "Tokens of an answer.",
            "aliases": ("--random-output-len", "--sharegpt-output-len"),
        },
    )
    range_ratio: float = field(
        default=1.0,
        metadata={
            "help": "Lengths are drawn between this share of the full one and all of it; 1: all are full.",
            "aliases": ("--random-range-ratio",),
        },
    )
    prefix_len: int = field(
        default=0, metadata={"help": "Tokens before each random prompt that it shares with others."}
    )
    prefixes: int = field(default=1, metadata={"help": "Different shared prefixes."})
    seed: int = field(default=1, metadata={"help": "Of prompts, lengths and arrivals."})

    def check(self) -> None:
        """Raises InvalidRequest for what no request can be made of."""
        if self.dataset_name not in (None, "random", "sharegpt"):
            raise InvalidRequest(f"--dataset-name {self.dataset_name!r}: give random or sharegpt")
        if self.dataset_name == "sharegpt" and self.dataset == "random":
            raise InvalidRequest("--dataset-name sharegpt needs its file; name it with --dataset-path")
        if self.dataset_name == "random" and self.dataset != "random":
            raise InvalidRequest(
                f"--dataset-name is random, but --dataset names {self.dataset!r}; leave one out"
            )
        for name in ("num_prompts", "input_len", "output_len", "prefixes"):
            if (value := getattr(self, name)) < 1:
                raise InvalidRequest(f"--{name.replace('_', '-')} {value}: give at least 1")
        if self.prefix_len < 0:
            raise InvalidRequest(f"--prefix-len {self.prefix_len}: give 0 or more")
        if not 0 <= self.range_ratio <= 1:
            raise InvalidRequest(f"--range-ratio {self.range_ratio}: give a number from 0 to 1")

    def requests(self, vocabulary: int | None, salt: int = 0) -> list[Asked]:
        """Requests of token ids, or of words where the vocabulary is not known. Another `salt` gives other prompts."""
        self.check()
        rng = random.Random(f"{self.seed} {salt}")
        if self.dataset != "random":
            rows = read_rows(Path(self.dataset), self.output_len)
            return [rows[i % len(rows)] for i in range(self.num_prompts)]
        sizes = [
            (self._length(rng, self.input_len), self._length(rng, self.output_len))
            for _ in range(self.num_prompts)
        ]
        heads = [random_tokens(rng, self.prefix_len, vocabulary) for _ in range(self.prefixes)]
        found = []
        for i, (size, new) in enumerate(sizes):
            head, body = heads[i % self.prefixes], random_tokens(rng, size, vocabulary)
            ids = [t for t in (*head, *body) if isinstance(t, int)]
            prompt = ids or " ".join(str(t) for t in (*head, *body))
            found.append(Asked(prompt, new))
        if self.prefix_len:
            rng.shuffle(found)  # or each request would find what the one before it had just computed
        return found

    def _length(self, rng: random.Random, full: int) -> int:
        return rng.randint(max(1, round(full * self.range_ratio)), full)


def random_tokens(rng: random.Random, count: int, vocabulary: int | None) -> Sequence[int | str]:
    """Ids, past those that tend to be special; words without a vocabulary."""
    if vocabulary is None:
        return [rng.choice(_WORDS) for _ in range(count)]
    return [rng.randrange(min(1000, vocabulary // 2), vocabulary) for _ in range(count)]


def read_rows(file: Path, new: int) -> list[Asked]:
    """Requests of a file of JSON lines; `new` where a row does not say. Raises InvalidRequest with the line."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"--dataset {str(file)!r}: {error.strerror}; give random or a file") from None
    if text.lstrip().startswith("["):
        return _conversations(text, file, new)
    lines = text.splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except ValueError as error:
            raise InvalidRequest(f"{file}:{number}: not valid JSON: {error}") from None
        prompt = row.get("prompt") if isinstance(row, dict) else None
        ids = isinstance(prompt, list) and all(type(t) is int for t in prompt)
        if not prompt or not (isinstance(prompt, str) or ids):
            raise InvalidRequest(f"{file}:{number}: needs a prompt, a text or a list of token ids")
        count = row.get("max_tokens", new)
        if type(count) is not int or count < 1:
            raise InvalidRequest(f"{file}:{number}: max_tokens is {count!r}; give a number of at least 1")
        found.append(Asked(prompt, count))
    if not found:
        raise InvalidRequest(f"--dataset {str(file)!r} holds no requests")
    return found


def _conversations(text: str, file: Path, new: int) -> list[Asked]:
    """The first message of each conversation of a ShareGPT file that was answered."""
    try:
        rows: Any = json.loads(text)
        talks = [row.get("conversations") or row.get("conversation") or [] for row in rows]
        found = [Asked(talk[0]["value"], new) for talk in talks if len(talk) >= 2 and talk[0]["value"]]
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise InvalidRequest(f"--dataset {str(file)!r} is not in ShareGPT's form: {error!r}") from None
    if not found or not all(isinstance(a.prompt, str) for a in found):
        raise InvalidRequest(f"--dataset {str(file)!r} holds no conversations of texts")
    return found
