from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssl_heads.metrics import semantic_entropy


def by_definition(features: Tensor, labels: Tensor, kind: str, eps: float = 1e-5) -> list[float]:
    entropies = []
    unit = [row / row.norm() if row.any() else row for row in features.double()]
    for j in range(features.shape[1]):
        weights = []
        for c in sorted(set(labels.tolist())):
            of_class = [abs(float(row[j])) for row, y in zip(unit, labels.tolist(), strict=True) if y == c]
            above = [x for x in of_class if x > eps]
            weights.append({"sum": sum(above), "mean": sum(above) / len(of_class), "frequency": len(above)}[kind])
        total = sum(weights)
        shares = [w / total for w in weights if w > 0]
        entropies.append(-sum(p * math.log(p) for p in shares) if total > 0 else math.nan)
    return entropies


@pytest.mark.parametrize("eps", [1e-5, 0.3])
@pytest.mark.parametrize("kind", ["sum", "mean", "frequency"])
def test_against_the_definition(kind: str, eps: float) -> None:
    features, labels = torch.randn(60, 8, dtype=torch.float64).clamp(min=-0.5), torch.randint(4, (60,))
    features[:, 3], features[5] = 0, 0
    found = semantic_entropy(features, labels, kind, eps=eps)  # type: ignore[arg-type]
    expected = by_definition(features, labels, kind, eps)
    assert found.per_dimension.tolist() == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert found.mean == pytest.approx(sum(x for x in expected if x == x) / 7, abs=1e-12)


def test_from_one_class_to_all() -> None:
    labels = torch.arange(100).repeat(3)
    assert semantic_entropy(torch.nn.functional.one_hot(labels), labels).mean == 0.0
    assert semantic_entropy(torch.ones(300, 2), labels).mean == pytest.approx(math.log(100))
    assert math.isnan(semantic_entropy(torch.zeros(300, 2), labels).mean)
    assert semantic_entropy(torch.rand(5, 2), torch.zeros(5, dtype=torch.int64)).mean == 0.0


def test_the_mean_does_not_see_how_large_a_class_is() -> None:
    features, labels = torch.ones(100, 1), torch.tensor([0] * 99 + [1])
    assert semantic_entropy(features, labels, "mean").mean == pytest.approx(math.log(2))
    assert semantic_entropy(features, labels, "sum").mean < 0.06


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kind must be one of 'sum', 'mean', 'frequency', got 'median'"):
        semantic_entropy(torch.eye(2), [0, 1], "median")  # type: ignore[arg-type]
