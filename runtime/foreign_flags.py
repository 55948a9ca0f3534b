"""Flags of other servers of the field: those that ask for what is so anyway are taken, the others refused with a reason.

None is ignored: whoever moves a command line here learns of every part of it that would have no effect.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from runtime.errors import InvalidRequest


@dataclass(frozen=True)
class Foreign:
    """`same`: values that ask for what is so anyway ("" stands for a flag without a value); `reason`: why others are refused,
    and what to do."""

    reason: str
    same: frozenset[str] = frozenset()
    value: bool = True


def _value(reason: str, *same: str) -> Foreign:
    return Foreign(reason, frozenset(same))


def _switch(reason: str) -> Foreign:
    return Foreign(reason, value=False)


_SO = Foreign("", frozenset({""}), value=False)
_ONE = "the ranks of an engine are on one host and find each other by themselves; leave it out"
_LORA = "LoRA adapters are not supported; merge the adapter into the model"
_SPARSE = "double sparsity is not supported; leave it out"
_DP = "start several servers behind a load balancer instead"

FOREIGN: Mapping[str, Foreign] = MappingProxyType(
    {
        "--tokenizer-mode": _value("only the fast tokenizers are supported; convert the tokenizer", "auto"),
        "--trust-remote-code": _switch("code from model folders is never run; leave it out"),
        "--quantization": _value("weights are run in the precision that --dtype names; leave it out"),
        "--torchao-config": _value("torchao is not supported; leave it out", ""),
        "--max-prefill-tokens": _value(
            "set --chunked-prefill-size, which bounds the prompt tokens of a step"
        ),
        "--data-parallel-size": _value(_DP, "1"),
        "--dp-size": _value(_DP, "1"),
        "--dp": _value(_DP, "1"),
        "--load-balance-method": _value(_DP, "round_robin"),
        "--dist-init-addr": _value(_ONE),
        "--nccl-init-addr": _value(_ONE),
        "--nccl-init": _value(_ONE),
        "--nnodes": _value(_ONE, "1"),
        "--node-rank": _value(_ONE, "0"),
        "--constrained-json-whitespace-pattern": _value(
            "set --constrained-json-whitespace to compact or spaced"
        ),
        "--show-time-cost": _switch("times are in /metrics; leave it out"),
        "--file-storage-pth": _value("set --state-dir, which holds files and batches"),
        "--enable-cache-report": _SO,
        "--enable-double-sparsity": _switch(_SPARSE),
        "--ds-channel-config-path": _value(_SPARSE),
        "--ds-heavy-channel-num": _value(_SPARSE),
        "--ds-heavy-token-num": _value(_SPARSE),
        "--ds-heavy-channel-type": _value(_SPARSE),
        "--ds-sparse-decode-threshold": _value(_SPARSE),
        "--lora-paths": _value(_LORA),
        "--max-loras-per-batch": _value(_LORA),
        "--disable-flashinfer": _switch("set --attention-backend triton"),
        "--disable-flashinfer-sampling": _SO,
        "--disable-cuda-graph-padding": _switch("graphs are always padded; --disable-cuda-graph has none"),
        "--disable-disk-cache": _switch("compiled constraints are kept on disk; leave it out"),
        "--disable-custom-all-reduce": _SO,
        "--disable-mla": _switch("latent attention is always compressed; leave it out"),
        "--disable-penalizer": _switch("penalties cost nothing where no request asks for them; leave it out"),
        "--disable-nan-detection": _switch("broken logits always end their request with an error"),
        "--enable-overlap-schedule": _SO,
        "--enable-overlap-scheduler": _SO,
        "--enable-mixed-chunk": _SO,
        "--enable-torch-compile": _switch("the runtime has kernels of its own; leave it out"),
        "--max-torch-compile-bs": _value("the runtime has kernels of its own; leave it out"),
        "--enable-p2p-check": _value(_ONE),
        "--triton-attention-reduce-in-fp32": _SO,
    }
)


def own_options(options: Mapping[str, Any], *configs: type) -> dict[str, Any]:
    """Keyword arguments by the names of the fields of `configs`: aliases are replaced, foreign ones treated as `own_flags`
    does, names that are neither left to the caller."""
    names = {
        alias.strip("-").replace("-", "_"): f.name
        for config in configs
        for f in dataclasses.fields(config)
        for alias in (f.name, *f.metadata.get("aliases", ()))
    }
    out: dict[str, Any] = {}
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if name in names or flag not in FOREIGN:
            out[names.get(name, name)] = value
        elif value is not None and value is not False:
            own_flags([flag] if value is True else [f"{flag}={value}"], ())
    return out


def own_flags(arguments: Sequence[str], known: Collection[str]) -> list[str]:
    """The arguments without flags that ask for what is so anyway. Raises InvalidRequest for one that cannot be had.

    `known` are the flags of this version: what it has is not foreign.
    """
    out: list[str] = []
    at = 0
    while at < len(arguments):
        name, equals, value = arguments[at].partition("=")
        at += 1
        foreign = FOREIGN.get(name)
        if foreign is None or name in known:
            out.append(arguments[at - 1])
            continue
        if foreign.value and not equals and at < len(arguments) and not arguments[at].startswith("--"):
            value = arguments[at]
            at += 1
        if value not in foreign.same:
            given = f"{name} {value}".strip()
            raise InvalidRequest(f"{given} cannot be had here: {foreign.reason}")
    return out
