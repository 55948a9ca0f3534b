"""The byte-level BPE of the embedded model, trained on its own corpus and, for the rest of English, on the
docstrings of Python's standard library. Digits are single tokens, so that sums can be learnt.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from stdlib.tiny.corpus import documents
from stdlib.tiny.corpus.document import CLOSE, END, OPEN, text_of

VOCABULARY = 8192
SPECIALS = (END, OPEN, CLOSE)
# Words with the blank before them, single digits, runs of signs, white space.
SPLIT = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def english() -> Iterator[str]:
    """Docstrings of modules that are cheap to import: plain technical English."""
    names = sorted(sys.stdlib_module_names - {"antigravity", "this", "idlelib", "turtledemo"})
    for name in names:
        if name.startswith("_"):
            continue
        try:
            module = importlib.import_module(name)
        except Exception:
            continue
        for thing in vars(module).values():
            if isinstance(doc := getattr(thing, "__doc__", None), str):
                yield doc


def train(seed: int = 0, sample: int = 20_000) -> Tokenizer:
    """A new tokenizer of VOCABULARY entries, or fewer if the text has too few words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    own = [text_of(d) for d in islice(documents(seed), sample)]
    tokenizer.train_from_iterator([*own, *english()], trainer)
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write tokenizer.json and tokenizer_config.json, as transformers reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": CLOSE,
        "pad_token": END,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
