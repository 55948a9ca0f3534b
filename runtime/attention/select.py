"""Which attention runs: chosen by device, page size and model, and said in one line when an engine starts."""

from __future__ import annotations

import logging

import torch

from runtime.attention.base import AttentionImpl
from runtime.attention.plain import PlainAttention
from runtime.errors import Unsupported
from runtime.kernels.available import missing
from runtime.kv.store import KVStore
from runtime.models.spec import ArchSpec

log = logging.getLogger("runtime.attention")
BACKENDS = ("auto", "triton", "flashinfer", "torch")


def select_attention(
    name: str, store: KVStore, spec: ArchSpec, dtype: torch.dtype | None = None
) -> AttentionImpl:
    """The attention called `name` over this store, for queries of `dtype` (the store's if None).

    Raises Unsupported, naming what of the store and the model the backend cannot do.
    """
    if name not in BACKENDS:
        raise Unsupported(f"attention backend {name!r} does not exist; use one of {', '.join(BACKENDS)}")
    device = store.k.device
    if name == "auto":
        chosen, why = _best(store, spec)
    else:
        chosen, why = name, "asked for"
        reasons = why_not(name, store, spec)
        if reasons:
            raise Unsupported(f"attention backend {name!r} cannot run this: {'; '.join(reasons)}; use 'auto'")
    impl = _made(chosen, store, spec, dtype)
    log.info(
        "attention: %s on %s, page size %d, KV in %s (%s)",
        getattr(impl, "form", chosen), device, store.page_size, str(store.k.dtype).removeprefix("torch."), why,
    )  # fmt: skip
    return impl


def _made(name: str, store: KVStore, spec: ArchSpec, dtype: torch.dtype | None) -> AttentionImpl:
    if name == "torch":
        return PlainAttention(store)
    if name == "triton":
        from runtime.attention.triton import TritonAttention

        return TritonAttention(store, [layer.attention for layer in spec.layers])
    from runtime.attention.flashinfer import FlashInferAttention

    return FlashInferAttention(store, spec, dtype or store.k.dtype)


def _best(store: KVStore, spec: ArchSpec) -> tuple[str, str]:
    if store.k.device.type == "cpu":
        return "torch", "a CPU"
    for name in ("triton", "flashinfer"):
        reasons = why_not(name, store, spec)
        if not reasons:
            return name, "a GPU"
    return "torch", f"no triton: {'; '.join(why_not('triton', store, spec))}"


def why_not(name: str, store: KVStore, spec: ArchSpec) -> list[str]:
    """What of this store and model the backend does not support; empty if it can run them."""
    if name == "torch":
        return []
    reasons = missing(name, store.k.device)
    latents = {m for layer in spec.layers if (m := layer.attention.mla)}
    dims = {layer.attention.head_dim for layer in spec.layers if not layer.attention.mla}
    if name == "triton":
        reasons += [f"latents of {m.kv_rank} are larger than 512" for m in latents if m.kv_rank > 512]
        largest = 512
        reasons += [f"heads of {d} are larger than {largest}" for d in sorted(dims) if d > largest]
        return reasons
    reasons += [
        f"latents of {m.kv_rank} and {m.rope} are not of 512 and 64"
        for m in latents
        if (m.kv_rank, m.rope) != (512, 64)
    ]
    if latents and store.k.dtype.itemsize == 1:
        reasons.append("over latents it has no float8")
    known = (64, 128, 256)
    reasons += [f"heads of {d} are not one of {known}" for d in sorted(dims) if d not in known]
    if store.k.dtype == torch.float32:
        reasons.append("it has no float32")
    return reasons
