"""How many KV pages fit."""

from __future__ import annotations

import os

import torch

from runtime.errors import ModelError
from runtime.kv.store import bytes_per_token
from runtime.models.spec import ArchSpec

CPU_SHARE = 0.25  # of the memory that is free; other programs run beside a quick start
CPU_TOKENS = 131_072


def resolve_kv_dtype(name: str, model: torch.dtype, device: str) -> torch.dtype:
    """Raises ModelError for a name that is not known, or that the device has no kernels for."""
    known = {"auto": model, "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
    if name not in known:
        raise ModelError(f"KV cache dtype {name!r} is not known; choose one of {', '.join(known)}")
    if name != "auto" and not device.startswith("cuda"):
        raise ModelError(f"KV memory in {name} needs a GPU; on {device} leave --kv-cache-dtype at auto")
    return known[name]


def free_bytes(device: str) -> int:
    """Memory that is free on the device."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 4 << 30


def plan_pages(
    spec: ArchSpec,
    *,
    dtype: torch.dtype,
    device: str,
    page_size: int,
    fraction: float,
    max_total_tokens: int | None,
) -> int:
    """Pages of the pool. On a GPU, `fraction` of the whole memory is for weights and pool together; the weights
    are loaded already. Raises ModelError if not even one short request fits."""
    each = bytes_per_token(spec, dtype)
    if device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info(device)
        tokens = int(free - total * (1 - fraction)) // each
    else:
        tokens = min(int(free_bytes(device) * CPU_SHARE) // each, max(CPU_TOKENS, spec.context))
    if max_total_tokens is not None:
        tokens = min(tokens, max_total_tokens) if device.startswith("cuda") else max_total_tokens
    if tokens < max(page_size, 16):
        raise ModelError(
            f"{max(tokens, 0)} tokens of KV memory fit on {device} ({each} bytes each); use a smaller model, "
            "a shorter --context-length or a higher --mem-fraction-static"
        )
    return max(1, tokens // page_size)
