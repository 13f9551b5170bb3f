"""A language model small enough to check by hand."""

import torch
from torch import nn
from torch.nn import functional as F


class Language(nn.Module):
    """A small causal model: [N, T] ids to [N, T, 11] logits."""

    def __init__(self, tied=False):
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 11, bias=False)
        if tied:
            self.head.weight = self.table.weight
        self.eval()

    def forward(self, input_ids, attention_mask=None):
        x = self.table(input_ids)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        if attention_mask is not None:
            mask = mask & attention_mask[:, None].bool() | torch.eye(x.shape[1], dtype=torch.bool)
        return self.head(x + F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), mask))
