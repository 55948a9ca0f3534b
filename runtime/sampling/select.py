"""Which sampler runs: chosen by device and what is installed, and said in one line when an engine starts."""

from __future__ import annotations

import logging

import torch

from runtime.errors import Unsupported
from runtime.kernels.available import missing
from runtime.sampling.sampler import Sampler, by_torch, by_triton

log = logging.getLogger("runtime.sampling")
BACKENDS = ("auto", "triton", "flashinfer", "torch")
_SAME = {"pytorch": "torch"}  # names that other servers of the field have for it


def select_sampler(name: str, device: torch.device) -> Sampler:
    """The sampler called `name` for this device. Raises Unsupported, naming what the backend lacks here."""
    name = _SAME.get(name, name)
    if name not in BACKENDS:
        raise Unsupported(f"sampling backend {name!r} does not exist; use one of {', '.join(BACKENDS)}")
    if name == "auto":
        chosen, why = _best(device)
    else:
        chosen, why = name, "asked for"
        reasons = why_not(name, device)
        if reasons:
            raise Unsupported(f"sampling backend {name!r} cannot run here: {'; '.join(reasons)}; use 'auto'")
    log.info("sampling: %s on %s (%s)", chosen, device, why)
    if chosen == "torch":
        return by_torch
    if chosen == "triton":
        return by_triton
    from runtime.sampling.flashinfer import FlashInferSampler

    return FlashInferSampler(device)


def _best(device: torch.device) -> tuple[str, str]:
    if device.type == "cpu":
        return "torch", "a CPU"
    reasons = why_not("triton", device)
    return ("triton", "a GPU") if not reasons else ("torch", f"no triton: {'; '.join(reasons)}")


def why_not(name: str, device: torch.device) -> list[str]:
    """What this device and installation lack for the backend; empty if it can run."""
    if name == "torch":
        return []
    needed = ("flashinfer", "triton") if name == "flashinfer" else ("triton",)  # it only cuts, triton draws
    return list(dict.fromkeys(reason for package in needed for reason in missing(package, device)))
