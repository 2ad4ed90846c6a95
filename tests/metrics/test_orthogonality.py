from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssl_heads.metrics import orthogonality, redundancy


def cosines(features: Tensor, eps: float) -> list[list[float]]:
    """Of the columns that are active somewhere, one pair at a time."""
    q = torch.stack([row / row.norm() if row.any() else row for row in features.double()])
    columns = [column for column in q.T if (column.abs() > eps).any()]
    return [[float(torch.dot(a, b) / (a.norm() * b.norm())) for b in columns] for a in columns]


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_against_the_definition(eps: float) -> None:
    features = torch.randn(30, 7, dtype=torch.float64).clamp(min=-0.3)
    features[:, 2], features[:, 5] = 0, 1e-3
    features[4] = 0
    table = cosines(features, eps)
    d = len(table)
    assert d == (6 if eps < 0.1 else 5)
    off = [abs(table[j][k]) for j in range(d) for k in range(d) if j != k]
    assert orthogonality(features, eps) == pytest.approx(sum(off) / len(off), abs=1e-12)
    most = [max(table[j][k] for k in range(d) if k != j) for j in range(d)]
    assert redundancy(features, eps) == pytest.approx(sum(most) / d, abs=1e-12)


def test_from_orthogonal_to_the_same_whatever_the_width() -> None:
    for d in (2, 16, 64):
        assert orthogonality(torch.eye(d)) == redundancy(torch.eye(d)) == 0.0
        assert orthogonality(torch.rand(9, 1).expand(9, d)) == pytest.approx(1)
    copied = torch.eye(16).repeat(1, 2)
    assert redundancy(copied) == pytest.approx(1)
    assert orthogonality(copied) == pytest.approx(1 / 31)


@pytest.mark.parametrize("metric", [orthogonality, redundancy])
def test_one_active_dimension_has_no_other(metric) -> None:  # type: ignore[no-untyped-def]
    assert math.isnan(metric(torch.tensor([[0.0, 1.0], [0.0, 2.0]])))
    assert math.isnan(metric(torch.zeros(3, 4)))
    with pytest.raises(ValueError, match="eps"):
        metric(torch.eye(2), eps=0.0)
