"""Multi-head latent attention in torch, around what the implementations do with the rows that are kept.

A row is a token's latent, then its rotated key. Single tokens are attended absorbed: the query is multiplied into the space
of the latents and the result out of it, so that what is kept is read as it is. A prompt has queries enough to make every
head's keys and values first, which then cost less to attend. Source: DeepSeek-V2, arXiv 2405.04434.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from runtime.attention.base import PagedInputs
from runtime.models.spec import AttnSpec, MlaSpec

# Not cuDNN, which builds a plan for every new length.
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def absorbed(q: Tensor, up: Tensor, spec: AttnSpec) -> tuple[Tensor, Tensor]:
    """Queries [tokens, heads, nope + rope] against rows: [tokens, heads, kv_rank] and, for the rotated keys, [tokens, heads, rope]."""
    m = _mla(spec)
    plain, turned = q.split((m.nope, m.rope), dim=-1)
    return torch.einsum("thd,hdr->thr", plain, up[:, : m.nope]), turned


def heads_of(latents: Tensor, up: Tensor, spec: AttnSpec) -> Tensor:
    """Means of latents [tokens, heads, kv_rank] as the heads' means of values [tokens, heads, value]."""
    return torch.einsum("thr,hvr->thv", latents, up[:, _mla(spec).nope :])


def attend_prompt(q: Tensor, rows: Tensor, start: int, up: Tensor, spec: AttnSpec) -> Tensor:
    """New tokens of one request to all of its rows so far.

    q      [tokens, heads, nope + rope], at positions start, start + 1, ...
    rows   [start + tokens, kv_rank + rope], in q's dtype

    Returns [tokens, heads, value].
    """
    m = _mla(spec)
    heads, length = q.shape[1], len(rows)
    latents, turned = rows.split((m.kv_rank, m.rope), dim=-1)
    made = F.linear(latents, up.flatten(0, 1)).unflatten(1, (heads, -1))
    plain, v = made.split((m.nope, m.value), dim=-1)
    k = torch.cat((plain, turned[:, None].expand(-1, heads, -1)), dim=-1)
    mask = None
    if start:
        at = torch.arange(length, device=q.device)
        mask = at <= at[start:, None]
    with sdpa_kernel(_KERNELS) if q.is_cuda else nullcontext():
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            k.transpose(0, 1)[None],
            v.transpose(0, 1)[None],
            attn_mask=mask,
            is_causal=not start,
            scale=spec.scale,
        )
    return out[0].transpose(0, 1)


def attend_prompts(
    q: Tensor, pool: Tensor, inputs: PagedInputs, slots: list[Tensor], up: Tensor, spec: AttnSpec, out: Tensor
) -> None:
    """`attend_prompt` for every prompt of a batch, from the `slots` of `pool` [slots, 1, kv_rank + rope] into its rows of `out`."""
    for (first, count, start), own in zip(inputs.prompts, slots, strict=True):
        rows = slice(first, first + count)
        kept = pool[own, 0].to(q.dtype)
        out[rows] = attend_prompt(q[rows], kept, start, up, spec)


def prompt_slots(inputs: PagedInputs, page_size: int) -> list[Tensor]:
    """Of each prompt the slots int64 [tokens before it + its tokens], without waiting for the device."""
    seats = inputs.seats[inputs.decodes :].long()
    assert len(seats) == len(inputs.prompts), (
        "every row of a request that is not one token belongs to a prompt"
    )
    offsets = torch.arange(page_size, device=seats.device)
    found = []
    for seat, (_, count, start) in zip(seats.split(1), inputs.prompts, strict=True):
        pages = inputs.table.index_select(0, seat)[0, : -(-(start + count) // page_size)].long()
        found.append((pages[:, None] * page_size + offsets).flatten()[: start + count])
    return found


def _mla(spec: AttnSpec) -> MlaSpec:
    assert spec.mla is not None, "a layer with latents"
    return spec.mla
