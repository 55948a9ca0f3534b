"""A mixture of experts: few of many MLPs for each token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runtime.layers.linear import Linear, Packed, product
from runtime.layers.mlp import Mlp
from runtime.layers.norm import activation
from runtime.models.spec import MlpSpec, MoeSpec
from runtime.parallel.group import Group

_AT_ONCE = 512  # tokens; products of more take longer than their launches


class Moe(nn.Module):
    """`MoeSpec` in torch. With a `group` each rank has some columns of every expert."""

    def __init__(self, hidden: int, spec: MoeSpec, dtype: torch.dtype, group: Group | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.group = group
        self.router = Linear(hidden, spec.experts, dtype)
        ups = {f"{part}{e}": spec.size for e in range(spec.experts) for part in ("gate", "up")}
        self.up = Packed(hidden, ups, dtype)
        self.down = Packed(spec.size, {str(e): hidden for e in range(spec.experts)}, dtype)
        self.shared = Mlp(hidden, MlpSpec(spec.shared, spec.activation), dtype) if spec.shared else None
        self.act = activation(spec.activation)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of x [tokens, hidden] the weights, float32, and numbers, int64, of each token's experts [tokens, top_k]."""
        s = self.spec
        scores = product(x.float(), self.router.weight.float()).softmax(-1)
        if s.groups > 1:
            best = scores.unflatten(1, (s.groups, -1)).amax(-1)
            kept = torch.zeros_like(best, dtype=torch.bool).scatter_(1, best.topk(s.top_groups).indices, True)
            scores = scores.unflatten(1, (s.groups, -1)).masked_fill(~kept[..., None], 0.0).flatten(1)
        weights, chosen = scores.topk(s.top_k)
        if s.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights * s.scaling, chosen

    def forward(self, x: Tensor) -> Tensor:
        """x [tokens, hidden]."""
        weights, chosen = self.route(x)
        made = self.at_once(x, chosen) if _waiting_is_dear(x) else self.one_by_one(x, chosen)
        # In the order of the scores, so that other tokens of the batch change nothing.
        y = (made * weights.unsqueeze(-1)).sum(1).to(x.dtype)
        if self.shared is not None:
            y = y + self.shared(x)
        return y if self.group is None else self.group.all_reduce(y)

    def one_by_one(self, x: Tensor, chosen: Tensor) -> Tensor:
        """What its experts make of each token, [tokens, top_k, hidden]: tokens in the order of their experts, two products
        for each expert that has some. The host must know how many, and waits for the device."""
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        given = x[order // self.spec.top_k]
        found = torch.empty_like(given)
        at = 0
        ups, downs = (layer.weight.unflatten(0, (self.spec.experts, -1)) for layer in (self.up, self.down))
        for expert, count in enumerate(flat.bincount(minlength=self.spec.experts).tolist()):
            if count:
                gate, up = product(given[at : at + count], ups[expert]).chunk(2, dim=-1)
                found[at : at + count] = product(self.act(gate) * up, downs[expert])
                at += count
        back = torch.empty_like(found)
        back[order] = found
        return back.unflatten(0, chosen.shape)

    def at_once(self, x: Tensor, chosen: Tensor) -> Tensor:
        """The same by all experts for all tokens, in two products. Nothing is waited for, so a graph can hold it."""
        experts = self.spec.experts
        gate, up = self.up(x).unflatten(1, (experts, 2, -1)).unbind(2)
        inner = (self.act(gate) * up).transpose(0, 1)
        made = inner @ self.down.weight.unflatten(0, (experts, -1)).mT  # [experts, tokens, hidden]
        return made[chosen, torch.arange(len(x), device=x.device)[:, None]]


def _waiting_is_dear(x: Tensor) -> bool:
    """Whether reading all experts takes less than launching the chosen ones: for decode steps on a GPU."""
    return x.is_cuda and (len(x) <= _AT_ONCE or torch.cuda.is_current_stream_capturing())
