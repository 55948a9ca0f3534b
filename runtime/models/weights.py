"""From the names and shapes of a checkpoint to ours.

A rule maps a pattern of names to one of ours; `N` stands for a layer's number, `E` for an expert's, a final `*` for
weight or bias, an empty target drops the tensor. Parts of a packed parameter (`qkv.q`, `up.gate`) are written to
their rows of it. Every parameter must arrive exactly once and every tensor must be placed or dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from runtime.errors import ModelError
from runtime.models.shards import Shards


class Placer:
    """Writes tensors of a checkpoint into the parameters of a decoder."""

    def __init__(
        self, model: nn.Module, rules: Mapping[str, str], source: str, shards: Shards | None = None
    ) -> None:
        self._shards = shards
        self.source = source
        self._parameters = dict(model.named_parameters())
        self._parts: dict[str, dict[str, tuple[int, int]]] = {
            name: module.parts for name, module in model.named_modules() if hasattr(module, "parts")
        }
        self._rules = [(re.compile(_pattern(p)), target) for p, target in rules.items()]
        self._filled: dict[str, int] = {}
        self._unknown: list[str] = []

    def place(self, name: str, tensor: Any) -> None:
        """Write one tensor, or a slice of a safetensors file, of which only this rank's part is read then.

        Raises ModelError if its shape is not the parameter's.
        """
        for pattern, target in self._rules:
            if match := pattern.fullmatch(name):
                if target:
                    groups = match.groupdict()
                    ours = target.replace("N", groups.get("N") or "N").replace("E", groups.get("E") or "E")
                    ours = ours[:-1] + groups["rest"] if ours.endswith("*") else ours
                    self._write(name, ours, tensor)
                return
        self._unknown.append(name)

    def _write(self, name: str, ours: str, tensor: Any) -> None:
        cut = None if self._shards is None else self._shards.cut(ours)
        path, kind = ours.rsplit(".", 1)
        rows: tuple[int, int] | None = None
        if ours not in self._parameters:
            parent, _, part = path.rpartition(".")
            if part not in self._parts.get(parent, {}) or f"{parent}.{kind}" not in self._parameters:
                self._unknown.append(name)
                return
            rows = self._parts[parent][part]
            ours = f"{parent}.{kind}"
        parameter = self._parameters[ours].data
        view = parameter if rows is None else parameter[rows[0] : rows[1]]
        wanted = list(view.shape)
        if cut is not None:
            wanted[cut.dim] = cut.full
        shape = list(tensor.shape) if isinstance(tensor, Tensor) else tensor.get_shape()
        if wanted != shape:
            raise ModelError(
                f"{self.source}: tensor {name!r} has shape {shape} but config.json asks for {wanted}"
            )
        here = [slice(None)] * len(shape)
        if cut is not None:
            here[cut.dim] = slice(cut.start, cut.start + view.shape[cut.dim])
        view.copy_(tensor[tuple(here)])
        self._filled[ours] = self._filled.get(ours, 0) + view.numel()

    def finish(self) -> None:
        """Raise ModelError unless everything arrived once and nothing was left over."""
        missing = [n for n, p in self._parameters.items() if self._filled.get(n, 0) < p.numel()]
        twice = [n for n, p in self._parameters.items() if self._filled.get(n, 0) > p.numel()]
        complaints = [
            f"{what}: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
            for what, names in (("missing", missing), ("placed twice", twice), ("not known", self._unknown))
            if names
        ]
        if complaints:
            raise ModelError(f"{self.source}: the tensors do not fit config.json; {'; '.join(complaints)}")


def _pattern(rule: str) -> str:
    text = re.escape(rule).replace(r"\.N\.", r"\.(?P<N>\d+)\.").replace(r"\.E\.", r"\.(?P<E>\d+)\.")
    return text[:-2] + r"(?P<rest>\w+)" if text.endswith(r"\*") else text


def randomise(parameters: Iterable[Tensor], seed: int = 0) -> None:
    """Weights of plausible size, for measuring speed without a checkpoint (load format `dummy`)."""
    for i, p in enumerate(parameters):
        generator = torch.Generator(p.device).manual_seed(seed + i)
        if p.dim() < 2:
            p.data.fill_(1.0)
        else:
            p.data.normal_(0.0, 0.02, generator=generator)
