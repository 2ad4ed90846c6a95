"""Shapes, equations and stand-ins that tests of several adapters use."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.checks import assert_gradient_close

N, D = 6, 8


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.rand(*shape), dim=-1)


def agree(actual: Callable[[Tensor], Tensor], literal: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """The value, and the gradient of the first argument, are those of the float64 transcription."""
    x, exact = x.detach().requires_grad_(), x.detach().double().requires_grad_()
    value, expected = actual(x), literal(exact)
    value.backward()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_gradient_close(x.grad, exact.grad, 1e-5)


def literal_moco_logits(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """The end of the forward pass of moco's builder, and of solo-learn's loss: the queue is (d, K)."""
    positive = torch.einsum("nc,nc->n", [query, key]).unsqueeze(-1)
    negative = torch.einsum("nc,ck->nk", [query, queue])
    return torch.cat([positive, negative], dim=1) / temperature


class Table(nn.Module):
    """Embeddings by row number: the output of a SentenceTransformer, without its imports."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(2 * N, D))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": self.rows[features["input_ids"]]}
