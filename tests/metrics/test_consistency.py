from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssl_heads.metrics import class_consistency


def by_definition(features: Tensor, labels: Tensor, eps: float = 1e-5) -> tuple[list[float], list[int]]:
    """Dimension by dimension, sample by sample."""
    share, support = [], []
    for j in range(features.shape[1]):
        active = []
        for row, y in zip(features.double(), labels.tolist(), strict=True):
            norm = float((row * row).sum().sqrt())
            if norm > 0 and abs(float(row[j])) / norm > eps:
                active.append(y)
        support.append(len(active))
        share.append(max(active.count(c) for c in set(active)) / len(active) if active else math.nan)
    return share, support


def test_against_the_definition() -> None:
    features = torch.randn(60, 12).clamp(min=0.5) - 0.5
    features[:, 3] = 0
    features[5] = 0
    features[7, 2] = 1e-6
    labels = torch.randint(4, (60,))
    share, support = by_definition(features, labels)
    result = class_consistency(features, labels)
    assert result.support.tolist() == support
    assert result.per_dimension.isnan().tolist() == [n == 0 for n in support]
    alive = [j for j, n in enumerate(support) if n]
    assert result.per_dimension[alive].tolist() == pytest.approx([share[j] for j in alive])
    assert result.mean == pytest.approx(sum(share[j] for j in alive) / len(alive))
    assert result.weighted_mean == pytest.approx(sum(share[j] * support[j] for j in alive) / sum(support))


def test_one_dimension_a_class_scores_one() -> None:
    result = class_consistency(torch.eye(5).repeat(20, 1), torch.arange(5).repeat(20))
    assert result.mean == result.weighted_mean == result.chance_corrected == 1.0
    assert result.support.tolist() == [20] * 5


def test_signed_dense_features_score_the_largest_class() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    result = class_consistency(torch.randn(100, 16), labels)
    assert result.mean == pytest.approx(0.5, abs=1e-3)
    assert result.chance_corrected == pytest.approx(0.0, abs=1e-3)
    positive = class_consistency(torch.randn(100, 16).clamp(min=0), labels)
    assert positive.mean > 0.5


def test_rare_dimensions_inflate_the_mean_and_not_the_other_numbers() -> None:
    n, labels = 2000, torch.arange(2000) % 100
    dense = torch.randn(n, 100)
    rare = torch.zeros(n, 100)
    rare[torch.randperm(n)[:100], torch.arange(100)] = 1.0
    plain = class_consistency(dense, labels)
    inflated = class_consistency(torch.cat([dense, rare], dim=1), labels)
    assert plain.mean == pytest.approx(0.01, abs=1e-4)
    assert inflated.mean == pytest.approx((0.01 + 1.0) / 2, abs=1e-4)
    assert inflated.weighted_mean == pytest.approx(0.01, abs=1e-3)
    assert inflated.chance_corrected == pytest.approx(0, abs=1e-4)
    assert class_consistency(torch.cat([dense, rare], dim=1), labels, min_support=30).mean == pytest.approx(
        0.01, abs=1e-4
    )


def test_random_activations_are_at_chance_at_every_density() -> None:
    labels = torch.randint(10, (3000,))
    for density in (0.002, 0.02, 0.2, 0.9):
        active = torch.rand(3000, 400) < density
        result = class_consistency(active.float(), labels, min_support=2)
        assert abs(result.chance_corrected) < 0.02


def test_min_support_masks_dimensions() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    labels = torch.tensor([0, 0, 1])
    result = class_consistency(features, labels, min_support=2)
    assert result.per_dimension[0] == pytest.approx(2 / 3)
    assert result.per_dimension[1].isnan()
    assert result.mean == result.weighted_mean == pytest.approx(2 / 3)
    assert result.support.tolist() == [3, 1]


def test_no_counted_dimension_has_no_mean() -> None:
    result = class_consistency(torch.zeros(4, 3), torch.arange(4))
    assert math.isnan(result.mean)
    assert math.isnan(result.weighted_mean)
    assert math.isnan(result.chance_corrected)


def test_a_single_class_is_no_evidence() -> None:
    result = class_consistency(torch.rand(6, 3), torch.zeros(6, dtype=torch.int64))
    assert result.mean == 1
    assert result.chance_corrected == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_row_scale_layout_and_sparse_class_ids(dtype: torch.dtype) -> None:
    features, labels = torch.randn(50, 8).relu(), torch.randint(3, (50,))
    expected = class_consistency(features, labels)
    scaled = features * torch.rand(50, 1).add(0.1)
    for x, y in [
        (scaled.to(dtype), labels),
        (features * 1e-9, labels),
        (features.T.contiguous().T, labels),
        (features, labels * 10**9),
    ]:
        result = class_consistency(x, y)
        assert result.mean == pytest.approx(expected.mean)
        assert torch.equal(result.support, expected.support)


def test_bad_input_is_refused() -> None:
    x, y = torch.rand(4, 3), torch.arange(4)
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        class_consistency(x[:, 0], y)
    with pytest.raises(ValueError, match=r"shape \(3,\).*shape \(4, 3\)"):
        class_consistency(x, y[:3])
    with pytest.raises(ValueError, match=r"integers, got 0\.5"):
        class_consistency(x, y + 0.5)
    with pytest.raises(ValueError, match="got -2"):
        class_consistency(x, y - 2)
    with pytest.raises(ValueError, match="min_support must be at least 1, got 0"):
        class_consistency(x, y, min_support=0)
    with pytest.raises(ValueError, match="eps"):
        class_consistency(x, y, eps=0.0)
    with pytest.raises(ValueError, match=r"shape \(0, 3\)"):
        class_consistency(x[:0], y[:0])
    with pytest.raises(ValueError, match=r"cpu.*meta|meta.*cpu"):
        class_consistency(x, y.to("meta"))


def test_ceiling_and_modal_class_against_the_definition() -> None:
    features, labels = torch.randn(60, 12).clamp(min=0.5) - 0.5, torch.randint(4, (60,)) * 5
    features[:, 3] = 0
    result = class_consistency(features, labels)
    y = labels.tolist()
    for j in range(12):
        of_active = [c for x, c in zip(features[:, j].tolist(), y, strict=True) if x > 0]
        modal = max(sorted(set(of_active)), key=of_active.count, default=-1)
        assert result.modal_class[j] == modal
        if of_active:
            assert result.ceiling[j] == pytest.approx(min(1, y.count(modal) / len(of_active)))
            assert result.per_dimension[j] <= result.ceiling[j]
        else:
            assert result.ceiling[j].isnan()
    assert result.modal_class.dtype == torch.int64


def test_a_dimension_of_two_whole_classes_is_at_its_ceiling() -> None:
    labels = torch.arange(4).repeat_interleave(5)
    features = (labels < 2).float()[:, None]
    result = class_consistency(features, labels)
    assert result.per_dimension.tolist() == result.ceiling.tolist() == [0.5]
    assert class_consistency(features, labels, min_support=11).modal_class.tolist() == [-1]
    assert class_consistency(features, labels, min_support=11).ceiling.isnan().all()
