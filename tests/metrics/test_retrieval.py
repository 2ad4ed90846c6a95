from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor

from ssl_heads.metrics import StreamingRetrieval, retrieval
from ssl_heads.metrics.retrieval import nearest

MODULE = StreamingRetrieval.__module__


def by_definition(features: Tensor, labels: list[int], k: int) -> tuple[float, float, float]:
    unit = [row / row.norm() if row.any() else row for row in features.double()]
    n, results = len(unit), []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        relevant = sum(labels[j] == labels[i] for j in others)
        if relevant == 0:
            continue
        near = sorted(others, key=lambda j: -float(torch.dot(unit[i], unit[j])))[:k]
        hits = [labels[j] == labels[i] for j in near]
        average = sum(sum(hits[: r + 1]) / (r + 1) for r in range(k) if hits[r]) / min(k, relevant)
        results.append((sum(hits) / k, average, sum(hits) / relevant))
    return tuple(sum(values) / len(results) for values in zip(*results, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("k", [1, 3, 10, 29])
def test_against_the_definition(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.randint(5, (30,))
    labels[4] = 9  # a class of one row
    features = torch.randn(30, 6, dtype=torch.float64) + 2 * torch.nn.functional.one_hot(labels % 6, 6)
    expected = by_definition(features, labels.tolist(), k)
    assert retrieval(features, labels, k) == pytest.approx(expected, abs=1e-12)
    monkeypatch.setattr(sys.modules[MODULE], "MAX_SIMILARITIES", 70)
    assert retrieval(features, labels, k) == pytest.approx(expected, abs=1e-12), "chunks change nothing"


def test_a_row_is_never_its_own_neighbour() -> None:
    """Neither among duplicates nor among zero rows, where another row is just as near."""
    labels = torch.arange(6)
    for features in (torch.ones(6, 3), torch.zeros(6, 3)):
        assert all(map(math.isnan, retrieval(features, labels, k=3)))
        assert retrieval(features, [0, 0, 1, 1, 2, 2], k=5) == pytest.approx((0.2, by_place(), 1.0), abs=1e-12)
    assert retrieval(torch.eye(3).repeat(2, 1), [0, 1, 2, 0, 1, 2], k=1) == (1, 1, 1)


def by_place() -> float:
    """Average precision of six equal rows, in their order without the query: partners are at 1, 1, 3, 3, 5, 5."""
    return (1 + 1 + 1 / 3 + 1 / 3 + 1 / 5 + 1 / 5) / 6


def test_true_map_is_not_precision() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.3], [0.0, 1.0]])
    found = retrieval(features, [0, 0, 1, 1], k=3)
    assert found.precision == pytest.approx(1 / 3)
    assert found.recall == 1
    assert found.map == pytest.approx((1 + 1 + 1 / 3 + 1) / 4)


def test_bad_k_is_refused() -> None:
    x, y = torch.randn(5, 3), [0, 0, 1, 1, -1]
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k must lie between 1 and the 3 other rows, got {k}"):
            retrieval(x, y, k)
    with pytest.raises(ValueError, match="between 1 and the 0 other rows"):
        retrieval(x[:1], [0], 1)


@pytest.mark.parametrize("k", [1, 4, 19])
def test_nearest_is_a_stable_sort(k: int) -> None:
    similarity = torch.randint(0, 5, (50, 20)).float()
    similarity[:, 3] = -math.inf
    expected = similarity.sort(dim=1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(nearest(similarity, k), expected)
