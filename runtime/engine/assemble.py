"""From options to what runs batches: model, KV memory, constraints, runner. Every rank of an engine makes the same."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

import torch

from runtime.attention.plain import PlainAttention
from runtime.attention.select import select_attention
from runtime.config import EngineConfig
from runtime.constrain.compiler import ConstraintCompiler
from runtime.constrain.jump import Cuts
from runtime.engine.device import device_runner
from runtime.engine.memory import plan_pages, resolve_kv_dtype
from runtime.engine.runner import ModelRunner
from runtime.errors import InvalidRequest
from runtime.kernels.cpu.path import choose
from runtime.kv.store import KVStore
from runtime.models.decoder import Decoder
from runtime.models.heads import head_of
from runtime.models.load import load_model
from runtime.parallel.group import Group
from runtime.sampling.sampler import Sampler
from runtime.sampling.select import select_sampler
from runtime.tokenizer.tokenizer import Tokenizer

log = logging.getLogger("runtime.engine")


@dataclass(frozen=True)
class Assembled:
    """A loaded engine without its scheduler. `pages` of the pool, the same on every rank; `ends`: ids that end any answer."""

    device: str
    model: Decoder
    pages: int
    context: int
    seats: int
    ends: tuple[int, ...]
    constraints: ConstraintCompiler | None
    runner: ModelRunner


def device_of(config: EngineConfig, rank: int = 0) -> str:
    """The device of a rank; InvalidRequest if there is none."""
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InvalidRequest(
            f"device {config.device!r} was asked for, but torch sees no CUDA device; use --device cpu"
        )
    if config.tensor_parallel_size > 1 and device.startswith("cuda"):
        there = torch.cuda.device_count()
        if there < config.tensor_parallel_size:
            raise InvalidRequest(
                f"--tensor-parallel-size {config.tensor_parallel_size} needs as many GPUs, and this machine has {there}"
            )
        return f"cuda:{rank}"
    return device


def assemble(config: EngineConfig, group: Group | None = None) -> Assembled:
    """Load what the options name; with a `group`, this rank's part of it."""
    device = device_of(config, 0 if group is None else group.rank)
    if device == "cpu" and config.threads:
        torch.set_num_threads(config.threads)
    sampler = select_sampler(config.sampling_backend, torch.device(device))
    model = load_model(
        config.folder,
        device=device,
        dtype=config.dtype,
        load_format=config.load_format,
        overrides=config.overrides,
        group=group,
        is_embedding=config.is_embedding,
    )
    spec = model.spec
    context = min(config.context_length or spec.context, spec.context)
    tokenizer = None if config.skip_tokenizer_init else Tokenizer(config.tokenizer_path or config.folder)
    ends = spec.eos if tokenizer is None else tokenizer.ends
    kv_dtype = resolve_kv_dtype(config.kv_cache_dtype, model.dtype, device)
    pages = plan_pages(
        spec,
        dtype=kv_dtype,
        device=device,
        page_size=config.page_size,
        fraction=config.mem_fraction_static,
        max_total_tokens=config.max_total_tokens,
    )
    if group is not None:
        pages = group.smallest(pages)
    store = KVStore(spec, pages, config.page_size, kv_dtype, device)
    constraints = None
    if tokenizer is not None and spec.task == "generate":
        constraints = ConstraintCompiler(
            config.tokenizer_path or config.folder,
            ends,
            whitespace=config.constrained_json_whitespace,
            objects=config.constrained_json_objects,
            tables=config.disable_regex_jump_forward and device.startswith("cuda"),  # they can live there
            cuts=None
            if config.disable_regex_jump_forward
            else Cuts(partial(tokenizer.encode, first=False), tokenizer.pieces),
            guesses=_guesses(config, device),
            learns=group is None,  # ranks must all expect the same, whenever each compiled a constraint
        )
        if device.startswith("cuda"):  # elsewhere it would take the core of a run that may need no constraint
            constraints.warm_up()
    seats = config.seats(device)
    runner = _runner(config, model, store, ends, constraints, seats, context, sampler)
    return Assembled(device, model, pages, context, seats, ends, constraints, runner)


def _guesses(config: EngineConfig, device: str) -> int:
    """Where a row more costs little of a step they are worth it; on a CPU it costs most of one."""
    if config.constrained_guesses is not None:
        return config.constrained_guesses
    return 8 if device.startswith("cuda") else 0


def _runner(
    config: EngineConfig,
    model: Decoder,
    store: KVStore,
    ends: tuple[int, ...],
    constraints: ConstraintCompiler | None,
    seats: int,
    context: int,
    sampler: Sampler,
) -> ModelRunner:
    """What runs batches on this device: compiled loops on a CPU, graphs and own kernels on a GPU."""
    head = head_of(model)
    if store.k.device.type == "cpu":
        if config.attention_backend not in ("auto", "torch"):
            raise InvalidRequest(
                f"attention backend {config.attention_backend!r} needs a GPU; on a CPU leave it at auto"
            )
        chosen, attention = choose(model, store)
        return ModelRunner(chosen, store, attention, ends, constraints, head, sampler=sampler)
    attention = select_attention(config.attention_backend, store, model.spec, model.dtype)
    if isinstance(attention, PlainAttention):
        return ModelRunner(model, store, attention, ends, constraints, head, sampler=sampler)
    return device_runner(
        model,
        store,
        attention,
        ends,
        constraints,
        head,
        seats=seats,
        context=context,
        largest_graph=0 if config.disable_cuda_graph else min(config.cuda_graph_max_bs or seats, seats),
        sampler=sampler,
    )
