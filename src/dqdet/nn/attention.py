"""Multi-head attention on PyTorch's fused kernel, with self-attention inside groups of queries."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dqdet.nn.init import xavier_
from dqdet.types import Sight, Sights


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    *,
    padding: Tensor | None = None,
    bias: Tensor | None = None,
    groups: Sights | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention over projected inputs.

    Args:
        query: ``[B, Q, heads * d]``; key: ``[B, K, heads * d]``; value: ``[B, K, heads * v]``.
        heads: number of heads; the channels of a head are adjacent.
        padding: ``[B, K]`` bool, True = ignored key.
        bias: ``[B, heads or 1, Q, K]``, added to the logits; not together with several groups.
        groups: sizes that sum to Q = K; a query then sees its own group only, or what its group's ``Sight`` says. This
            is the one place where the queries of an image see each other.
        dropout: probability of dropping an attention weight.

    Returns:
        ``[B, Q, heads * v]``.
    """
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    mask = None if bias is None else bias.to(query.dtype)
    if padding is not None:
        ignored = padding[:, None, None]  # [B, 1, 1, K]
        mask = ~ignored if mask is None else mask.masked_fill(ignored, -torch.inf)
    sights = [group if isinstance(group, Sight) else Sight(group) for group in groups or ()]
    if len(sights) <= 1:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    else:
        of_groups, start = [], 0
        for sight in sights:
            own = slice(start, start := start + sight.size)
            seen_key, seen_value = (
                torch.cat([x[:, :, : sight.first], x[:, :, own]], 2) if sight.first else x[:, :, own]
                for x in (key, value)
            )
            seen = visible(sight, query.device) if sight.copies > 1 else None
            of_groups.append(
                F.scaled_dot_product_attention(
                    query[:, :, own], seen_key, seen_value, attn_mask=seen, dropout_p=dropout
                )
            )
        mixed = torch.cat(of_groups, 2)
    mixed = mixed.transpose(1, 2)  # [B, Q, heads, v]
    if torch.compiler.is_exporting():  # or the layout that this kernel leaves in memory would be part of the program
        mixed = mixed.clone(memory_format=torch.contiguous_format)
    return mixed.flatten(2)


def visible(sight: Sight, device: torch.device) -> Tensor:
    """Which of the ``first`` queries and of its own each query of a group sees: ``[size, first + size]`` bool."""
    copy = torch.arange(sight.size, device=device) // (sight.size // sight.copies)  # [size]
    return F.pad(copy[:, None] == copy, (sight.first, 0), value=True)


class Attention(nn.Module):
    """Multi-head attention with the parameters (and their names) of ``torch.nn.MultiheadAttention``."""

    def __init__(self, hidden: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden, hidden))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden))
        self.out_proj = nn.Linear(hidden, hidden)
        xavier_(self)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        padding: Tensor | None = None,
        bias: Tensor | None = None,
        groups: Sights | None = None,
    ) -> Tensor:
        """``query [B, Q, c]``, ``key`` and ``value [B, K, c]`` -> ``[B, Q, c]``; the rest as in :func:`attend`."""
        hidden = query.shape[-1]
        if query is key:  # self-attention: one product for both
            qk = F.linear(query, self.in_proj_weight[: 2 * hidden], self.in_proj_bias[: 2 * hidden])
            query, key = qk.chunk(2, -1)
        else:
            query = F.linear(query, self.in_proj_weight[:hidden], self.in_proj_bias[:hidden])
            key = F.linear(key, self.in_proj_weight[hidden : 2 * hidden], self.in_proj_bias[hidden : 2 * hidden])
        value = F.linear(value, self.in_proj_weight[2 * hidden :], self.in_proj_bias[2 * hidden :])
        dropout = self.dropout if self.training else 0.0
        mixed = attend(query, key, value, self.heads, padding=padding, bias=bias, groups=groups, dropout=dropout)
        return self.out_proj(mixed)
