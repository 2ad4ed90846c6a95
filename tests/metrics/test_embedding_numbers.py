"""Sparsity, alive dimensions, effective rank, expected activation, nearest neighbours."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssl_heads.metrics import (
    alive_dimensions,
    effective_rank,
    expected_activation,
    hoyer,
    knn_accuracy,
    l0,
    neighbours,
    sparsity,
)

# --- sparsity


def test_sparsity_of_one_hot_dense_and_zero_features() -> None:
    assert sparsity(torch.eye(16)) == pytest.approx(1 - 1 / 16)
    assert sparsity(torch.randn(10, 16)) == 0.0
    assert sparsity(torch.zeros(3, 4)) == 1.0


def test_sparsity_counts_magnitudes_of_normalised_entries() -> None:
    features = torch.tensor([[1e3, -1e-3, 0.0, 5.0], [0.0, 0.0, 0.0, -2.0]])
    assert sparsity(features) == 5 / 8
    assert sparsity(features, eps=1e-7) == 4 / 8
    assert sparsity(features * 1e-2) == 5 / 8
    assert isinstance(sparsity(features), float)


def test_alive_dimensions() -> None:
    features = torch.zeros(5, 4)
    features[2, 1], features[3, 3] = 1e-8, -1.0
    assert alive_dimensions(features) == 2
    assert alive_dimensions(torch.zeros(2, 3)) == 0


# --- effective rank


def test_effective_rank_of_the_identity_is_its_size() -> None:
    assert effective_rank(torch.eye(16)) == pytest.approx(16.0)
    assert math.log(effective_rank(torch.eye(16))) == pytest.approx(2.7726, abs=1e-4)


def test_effective_rank_is_the_exponential_of_the_entropy() -> None:
    singular = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    u = torch.linalg.qr(torch.randn(20, 4, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    entropy = -sum(p * math.log(p) for p in (0.5, 0.25, 0.125, 0.125))
    assert effective_rank(u @ singular.diag() @ v) == pytest.approx(math.exp(entropy))


def test_effective_rank_of_collapsed_and_zero_features() -> None:
    assert effective_rank(torch.ones(8, 5)) == pytest.approx(1.0, abs=1e-4)
    assert effective_rank(torch.zeros(8, 5)) == 0.0
    assert effective_rank(torch.eye(4, dtype=torch.bfloat16)) == pytest.approx(4.0)


# --- expected activation


def test_expected_activation_against_the_definition() -> None:
    features = torch.randn(9, 5, dtype=torch.float64)
    features[4] = -1.0
    total = torch.zeros(5, dtype=torch.float64)
    for row in features:
        positive = row.clamp(min=0)
        if positive.any():
            total += positive / positive.norm()
    result = expected_activation(features)
    assert torch.allclose(result.per_dimension.double(), total / 9, atol=1e-6)
    assert result.order.tolist() == (-total).argsort().tolist()


# --- nearest neighbours


def knn_by_definition(train: Tensor, train_labels: Tensor, x: Tensor, labels: Tensor, k: int) -> float:
    correct = 0
    for row, label in zip(x, labels.tolist(), strict=True):
        similarity = torch.stack([torch.dot(row, t) / (row.norm() * t.norm()) for t in train])
        votes = train_labels[similarity.argsort(descending=True)[:k]].tolist()
        most = max(votes.count(c) for c in votes)
        correct += min(c for c in votes if votes.count(c) == most) == label
    return correct / len(x)


@pytest.mark.parametrize("k", [1, 2, 5, 30])
def test_knn_against_the_definition(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    train_labels, labels = torch.randint(3, (30,)), torch.randint(3, (20,))
    train = torch.randn(30, 6) + 2 * torch.nn.functional.one_hot(train_labels, 6)
    x = torch.randn(20, 6) + 2 * torch.nn.functional.one_hot(labels, 6)
    expected = knn_by_definition(train, train_labels, x, labels, k)
    assert knn_accuracy(train, train_labels, x, labels, k=k) == expected
    monkeypatch.setattr(neighbours, "MAX_SIMILARITIES", 70)
    assert knn_accuracy(train, train_labels, x, labels, k=k) == expected, "chunks change nothing"


def test_knn_is_the_angles() -> None:
    train, train_labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    x, labels = torch.tensor([[100.0, 1.0], [1e-3, 1e-2]]), torch.tensor([0, 1])
    assert knn_accuracy(train, train_labels, x, labels, k=1) == 1.0
    assert knn_accuracy(train.half(), train_labels, x.half(), labels, k=1) == 1.0


def test_knn_survives_zero_rows() -> None:
    x, labels = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
    assert knn_accuracy(x, labels, x, labels, k=3) == 1.0


def test_bad_input_is_refused() -> None:
    x, y = torch.rand(6, 3), torch.arange(6)
    for k in (0, 7):
        with pytest.raises(ValueError, match=f"k must lie between 1 and the 6 training rows, got {k}"):
            knn_accuracy(x, y, x, y, k=k)
    with pytest.raises(ValueError, match=r"\(6, 3\) and \(6, 2\)"):
        knn_accuracy(x, y, x[:, :2], y, k=1)
    with pytest.raises(ValueError, match=r"train_labels .* \(5,\)"):
        knn_accuracy(x, y[:5], x, y, k=1)
    with pytest.raises(ValueError, match="got -3"):
        knn_accuracy(x, y, x, y - 3, k=1)
    for metric in (sparsity, alive_dimensions, effective_rank, expected_activation):
        with pytest.raises(ValueError, match=r"torch\.int64 of shape \(6,\)"):
            metric(y)
        with pytest.raises(ValueError, match=r"shape \(0, 3\)"):
            metric(x[:0])
    with pytest.raises(ValueError, match="eps"):
        sparsity(x, eps=-1.0)


# --- L0 and Hoyer


def test_l0_is_the_width_times_the_density() -> None:
    z = torch.randn(20, 7).relu()
    assert l0(z) == pytest.approx(7 * (1 - sparsity(z)))
    assert l0(z, eps=0.5) == pytest.approx(7 * (1 - sparsity(z, eps=0.5)))
    assert l0(torch.zeros(2, 3)) == 0


@pytest.mark.parametrize("eps", [1e-5, 0.2])
def test_hoyer_against_the_definition(eps: float) -> None:
    features = torch.randn(15, 6, dtype=torch.float64).clamp(min=-0.1)
    features[3] = 0
    values = []
    for row in features:
        kept = [float(x) for x in row / row.norm() if abs(x) > eps]
        if kept:
            l1, l2 = sum(map(abs, kept)), math.sqrt(sum(x * x for x in kept))
            values.append((math.sqrt(6) - l1 / l2) / (math.sqrt(6) - 1))
    assert len(values) == 14
    assert hoyer(features, eps) == pytest.approx(sum(values) / 14, abs=1e-12)


def test_hoyer_of_one_hot_equal_zero_and_narrow_rows() -> None:
    assert hoyer(torch.eye(5)) == pytest.approx(1)
    assert hoyer(torch.full((3, 5), -2.0)) == pytest.approx(0, abs=1e-6)
    assert math.isnan(hoyer(torch.zeros(3, 5)))
    with pytest.raises(ValueError, match=r"neither sparse nor dense, got features of shape \(3, 1\)"):
        hoyer(torch.ones(3, 1))
