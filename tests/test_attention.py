"""Attention: PyTorch's own module with the same parameters, and a mask in place of groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dqdet.nn.attention import Attention
from dqdet.types import Sight

HIDDEN, HEADS = 12, 3


def attention(dropout: float = 0.0) -> Attention:
    torch.manual_seed(0)
    ours = Attention(HIDDEN, HEADS, dropout)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return ours


def pytorch(ours: Attention) -> nn.MultiheadAttention:
    theirs = nn.MultiheadAttention(HIDDEN, HEADS, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    return theirs


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_pytorch(biased, padded):
    ours = attention()
    query, key, value = torch.randn(2, 5, HIDDEN), torch.randn(2, 7, HIDDEN), torch.randn(2, 7, HIDDEN)
    padding = bias = mask = None
    if padded:
        padding = torch.arange(7).expand(2, -1) >= torch.tensor([[7], [4]])
    if biased:
        bias = torch.randn(2, 1, 5, 7)
        mask = bias.expand(-1, HEADS, -1, -1).flatten(0, 1)
    ignored = None if padding is None else torch.zeros(2, 7).masked_fill(padding, -torch.inf)
    expected, _ = pytorch(ours)(query, key, value, attn_mask=mask, key_padding_mask=ignored)
    torch.testing.assert_close(ours(query, key, value, padding=padding, bias=bias), expected)


def test_groups_are_a_mask_between_them():
    ours, x, value = attention(), torch.randn(2, 9, HIDDEN), torch.randn(2, 9, HIDDEN)
    group = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2])
    expected, _ = pytorch(ours)(x, x, value, attn_mask=group[:, None] != group)
    torch.testing.assert_close(ours(x, x, value, groups=[2, 3, 4]), expected)
    assert not torch.allclose(ours(x, x, value), expected)


def test_a_sight_is_a_mask_that_is_open_one_way():
    """Two queries that see each other; and two copies of three, which see these and themselves."""
    ours, x, value = attention(), torch.randn(2, 8, HIDDEN), torch.randn(2, 8, HIDDEN)
    group = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2])
    seen = (group[:, None] == group) | (group == 0)
    expected, _ = pytorch(ours)(x, x, value, attn_mask=~seen)
    torch.testing.assert_close(ours(x, x, value, groups=[2, Sight(6, copies=2, first=2)]), expected)
    nothing = ours(x[:, :2], x[:, :2], value[:, :2], groups=[2, Sight(0, first=2)])
    torch.testing.assert_close(nothing, expected[:, :2])


@pytest.mark.parametrize("groups", [None, [4, 5]])
def test_weights_are_dropped_in_training_only(groups):
    x, dropping = torch.randn(2, 9, HIDDEN), attention(dropout=0.5)
    first, second = (dropping(x, x, x, groups=groups) for _ in range(2))
    assert not torch.allclose(first, second)
    torch.testing.assert_close(dropping.eval()(x, x, x, groups=groups), attention()(x, x, x, groups=groups))
