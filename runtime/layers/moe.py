"""A mixture of experts: few of many MLPs for each token."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.layers.linear import Linear, Packed
from runtime.layers.mlp import Mlp
from runtime.layers.norm import activation
from runtime.models.spec import MlpSpec, MoeSpec
from runtime.parallel.group import Group


class Moe(nn.Module):
    """`MoeSpec` in torch: tokens in the order of their experts, two products for each expert that has some.

    How many tokens an expert has must be known on the host: on a GPU every call waits for the device.
    With a `group` each rank has some columns of every expert.
    """

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
        scores = F.linear(x.float(), self.router.weight.float()).softmax(-1)
        if s.groups > 1:
            best = scores.unflatten(1, (s.groups, -1)).amax(-1)
            kept = torch.zeros_like(best, dtype=torch.bool).scatter_(1, best.topk(s.top_groups).indices, True)
            scores = scores.masked_fill(~kept.repeat_interleave(s.experts // s.groups, dim=1), 0.0)
        weights, chosen = scores.topk(s.top_k)
        if s.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights * s.scaling, chosen

    def forward(self, x: Tensor) -> Tensor:
        """x [tokens, hidden]."""
        weights, chosen = self.route(x)
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        given = x[order // self.spec.top_k]
        found = torch.empty_like(given)
        at = 0
        ups, downs = (layer.weight.unflatten(0, (self.spec.experts, -1)) for layer in (self.up, self.down))
        for expert, count in enumerate(flat.bincount(minlength=self.spec.experts).tolist()):
            if count:
                gate, up = F.linear(given[at : at + count], ups[expert]).chunk(2, dim=-1)
                found[at : at + count] = F.linear(self.act(gate) * up, downs[expert])
                at += count
        back = torch.empty_like(found)
        back[order] = (
            found  # summed in the order of the scores, so that other tokens of the batch change nothing
        )
        y = (back.unflatten(0, chosen.shape) * weights.unsqueeze(-1)).sum(1).to(x.dtype)
        if self.shared is not None:
            y = y + self.shared(x)
        return y if self.group is None else self.group.all_reduce(y)
