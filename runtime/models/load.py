"""A model folder to a decoder that can run: configuration, then weights, straight to the device."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from runtime.config import find_folder
from runtime.errors import ModelError
from runtime.models.decoder import Decoder
from runtime.models.families import FAMILIES
from runtime.models.family import Family, embedding, find_family
from runtime.models.hf_config import HFConfig
from runtime.models.shards import Shards
from runtime.models.spec import ArchSpec
from runtime.models.weights import Placer, randomise
from runtime.parallel.group import Group

DTYPES = {
    "half": torch.float16,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float": torch.float32,
    "float32": torch.float32,
}


def read_spec(
    folder: Path, overrides: dict[str, Any] | None = None, *, is_embedding: bool = False
) -> tuple[ArchSpec, Family, HFConfig]:
    """The architecture in a folder; with `is_embedding` a model that generates is taken for its embeddings.

    Raises ModelError for what is unknown or unread in config.json.
    """
    config = HFConfig.load(folder, overrides)
    family = find_family(config, FAMILIES)
    spec = family.spec(config)
    if is_embedding and spec.task == "generate":
        spec = embedding(spec, config)
    config.check_all_read()
    return spec, family, config


FORMATS = ("auto", "safetensors", "dummy")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights, from the index if there is one."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelError(f"{index} is not an index of safetensors files: {error!r}") from None
        files = [folder / name for name in names]
        if any(Path(name).name != name for name in names):
            raise ModelError(f"{index} names files outside its folder")
    else:
        files = sorted(folder.glob("*.safetensors"))
    missing = [f for f in files if not f.exists()]
    if missing:
        raise ModelError(f"{missing[0]} is named by the index but does not exist")
    if not files:
        raise ModelError(f"{folder} holds no *.safetensors file; other weight formats are not loaded")
    return files


def resolve_dtype(dtype: str, device: str, config: HFConfig) -> torch.dtype:
    """`auto`: float32 on a CPU, where the result is that of the reference; the checkpoint's own on a GPU."""
    if dtype != "auto":
        if dtype not in DTYPES:
            raise ModelError(f"dtype {dtype!r} is not known; choose auto or one of {', '.join(DTYPES)}")
        return DTYPES[dtype]
    if device == "cpu":
        return torch.float32
    named = str(config.data.get("dtype") or config.data.get("torch_dtype") or "bfloat16")
    found = DTYPES.get(named, torch.bfloat16)
    return torch.float16 if found is torch.float32 else found


def load_model(
    model_path: str | Path,
    *,
    device: str = "cpu",
    dtype: str = "auto",
    load_format: str = "auto",
    overrides: dict[str, Any] | None = None,
    group: Group | None = None,
    is_embedding: bool = False,
) -> Decoder:
    """Build the decoder of a folder and fill it. `load_format="dummy"` takes random weights of the real shapes.

    With a `group` it is this rank's part, and only that is read.

    Raises ModelError, in one line, for anything wrong with the folder.
    """
    folder = find_folder(model_path)
    spec, family, config = read_spec(folder, overrides, is_embedding=is_embedding)
    shards = None if group is None else Shards(spec, group.rank, group.size)
    with torch.device(device):
        model = Decoder(spec, resolve_dtype(dtype, device, config), shards, group)
    model.requires_grad_(False)
    fill(model, family, folder, load_format)
    return model.eval()


def family_of_same(
    model: Decoder,
    folder: Path,
    overrides: dict[str, Any] | None = None,
    *,
    is_embedding: bool = False,
) -> Family:
    """How the weights in a folder are named. Raises ModelError if they are not those of a model like this one."""
    spec, family, _ = read_spec(folder, overrides, is_embedding=is_embedding)
    if spec != model.spec:
        names = [
            f.name for f in dataclasses.fields(spec) if getattr(spec, f.name) != getattr(model.spec, f.name)
        ]
        raise ModelError(
            f"{folder} has another architecture than the model that is served: they differ in {', '.join(names)}; "
            "start a server of its own for it"
        )
    return family


def fill(model: Decoder, family: Family, folder: Path, load_format: str = "auto") -> None:
    """Read every weight to its place; a rank reads its part of them alone. Raises ModelError; some are written then."""
    if load_format not in FORMATS:
        raise ModelError(f"load format {load_format!r} is not known; use one of {', '.join(FORMATS)}")
    if load_format == "dummy":
        randomise(model.parameters())
        return
    placer = Placer(model, family.weights, str(folder), model.shards)
    device = str(model.embedding.weight.device)
    for file in weight_files(folder):
        try:
            with safe_open(str(file), framework="pt", device=device) as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    if not (name == "lm_head.weight" and model.spec.tied):
                        whole = model.shards is None
                        placer.place(name, tensors.get_tensor(name) if whole else tensors.get_slice(name))
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{file} cannot be read as safetensors ({error}); it may be truncated: fetch it again"
            ) from None
    placer.finish()
