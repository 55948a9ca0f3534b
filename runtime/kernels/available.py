"""Whether Triton and FlashInfer can run here; whoever chooses between backends asks."""

from __future__ import annotations

import importlib.util
import os

import torch


def missing(package: str, device: torch.device) -> list[str]:
    """What this installation and device lack for `package`, triton or flashinfer; empty if it can run."""
    reasons = []
    if importlib.util.find_spec(package) is None:
        reasons.append(f"the package {package} is not installed")
    interpreted = package == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not interpreted:
        reasons.append(f"it needs a CUDA device, not {device}")
    elif device.type == "cuda" and torch.cuda.get_device_capability(device) < (7, 5):
        major, minor = torch.cuda.get_device_capability(device)
        reasons.append(f"it needs compute capability 7.5, this device has {major}.{minor}")
    return reasons
