"""The attention that techniques build is that of the workload's network, and they know it by its parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from datasets.workloads import transformer
from datasets.workloads.transformer import Attention, NextCharacter, Transformer
from kernels.model.sequence_models import attention
from kernels.model.sequence_models.attention import (
    CausalAttention,
    attentions,
    continues_text,
    next_token_loss,
    rotate,
    standard,
)
from kernels.model.sequence_models.shared_key_value_heads import SharedKeyValueHeads


def test_it_computes_what_the_workloads_own_does():
    torch.manual_seed(0)
    theirs, ours = Attention(12, 3, 4), CausalAttention(12, 3, 4)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 9, 12)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(rotate(x, 5), transformer.rotate(x, 5)) and attention.ROTARY_BASE == transformer.ROTARY_BASE


def test_the_loss_is_the_recipes():
    torch.manual_seed(0)
    network, x, y = Transformer(7, 12, 1, 3, 8), torch.randint(0, 7, (4, 9)).float(), torch.randint(0, 7, (4,))
    assert torch.equal(next_token_loss(network, x, y), NextCharacter()(network, x, y))


def test_attention_is_known_by_its_parts():
    network = Transformer(7, 12, 2, 3, 8)
    assert [name for name, _ in attentions(network)] == ["layers.0.attention", "layers.1.attention"]
    assert len(standard(network)) == 2 and continues_text(network) is network

    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(4, 4) for _ in range(4))
            self.heads, self.head_width = 2, 2

        def project(self, x, start=0):
            return self.q(x), self.k(x), self.v(x)

    assert [name for name, _ in attentions(nn.Sequential(Mine()))] == ["0"]
    with pytest.raises(ValueError, match="network: expected one that continues text, got Sequential"):
        continues_text(nn.Sequential(Mine()))
    with pytest.raises(ValueError, match=r"layers\.0\.attention: expected standard attention, got GroupedAttention"):
        standard(SharedKeyValueHeads().within(network))
