"""The embedded model: a Llama of a few million parameters with its tokenizer, for a machine without a GPU or a network.

It knows what `corpus` teaches and nothing else; README.md has the measured table. Loading this package loads no torch.
"""

from __future__ import annotations

from pathlib import Path


def path() -> Path:
    """The folder of the weights, in the layout of a Hugging Face model."""
    return Path(__file__).parent / "weights"
