"""Metrics on embeddings whose relation to the factors is known."""

from __future__ import annotations

import math
import sys
from itertools import permutations

import pytest
import scipy.stats
import torch
from torch import Tensor

from ssl_heads import metrics
from ssl_heads.metrics.dci import completeness, disentanglement
from ssl_heads.metrics.matching import ranks

MCC = metrics.mean_correlation_coefficient


@pytest.fixture
def factors() -> Tensor:
    return torch.randn(2000, 3)


def rotation(angle: float) -> Tensor:
    turn = torch.eye(3)
    turn[:2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return turn


def test_a_signed_permutation_with_scale_and_shift_is_perfect(factors: Tensor) -> None:
    z = factors[:, [2, 0, 1]] * torch.tensor([3.0, -0.01, -1.0]) + 100
    found = MCC(z, factors)
    assert found.mean == pytest.approx(1, abs=1e-4)
    assert found.order.tolist() == [1, 2, 0]
    assert metrics.linear_r2(z, factors) == pytest.approx(1, abs=1e-4)


def test_a_rotation_loses_the_correlation_and_keeps_r2(factors: Tensor) -> None:
    z = factors @ rotation(math.pi / 4)
    found = MCC(z, factors)
    assert found.mean == pytest.approx((math.sqrt(0.5) * 2 + 1) / 3, abs=0.03)
    assert found.per_dimension[2] == pytest.approx(1, abs=1e-6)
    assert metrics.linear_r2(z, factors) == pytest.approx(1, abs=1e-6)


def test_a_monotone_function_keeps_the_rank_correlation_only(factors: Tensor) -> None:
    z = factors[:, [1, 2, 0]].mul(2).exp()
    assert MCC(z, factors, "rank").mean == pytest.approx(1, abs=1e-12)
    assert MCC(z, factors).mean < 0.8


def test_unrelated_embeddings_score_by_chance_and_r2_does_not(factors: Tensor) -> None:
    z = torch.randn(2000, 3)
    assert 0 < MCC(z, factors).mean < 0.1
    assert abs(metrics.linear_r2(z, factors)) < 0.02


def test_the_matching_is_the_best_of_all_permutations() -> None:
    a, b = torch.randn(30, 5), torch.randn(30, 5)
    table = metrics.absolute_correlations(a, b)
    best = max(sum(table[p[j], j] for j in range(5)) for p in permutations(range(5))) / 5
    greedy = table.max(dim=0).values.mean()
    assert MCC(a, b).mean == pytest.approx(float(best), abs=1e-12)
    assert best < greedy


def test_fewer_dimensions_than_factors_count_zero(factors: Tensor) -> None:
    found = MCC(factors[:, :2], factors)
    assert found.mean == pytest.approx(2 / 3, abs=1e-6)
    assert found.order.tolist() == [0, 1, -1]
    assert MCC(torch.cat([torch.randn(2000, 4), factors], dim=1), factors).order.tolist() == [4, 5, 6]


def test_correlations_equal_scipy_with_ties_and_constants() -> None:
    a = torch.randint(0, 4, (50, 2)).double()
    b = torch.stack([torch.randint(0, 3, (50,)).double(), torch.full((50,), 0.1, dtype=torch.float64)], dim=1)
    for name, reference in (("linear", scipy.stats.pearsonr), ("rank", scipy.stats.spearmanr)):
        table = metrics.absolute_correlations(a, b, name)  # type: ignore[arg-type]
        for i in range(2):
            assert table[i, 0] == pytest.approx(abs(reference(a[:, i], b[:, 0])[0]), abs=1e-12)
        assert (table[:, 1] == 0).all()
    assert (ranks(a)[:, 0].numpy() + 1 == scipy.stats.rankdata(a[:, 0])).all()


def test_r2_equals_a_literal_fit_and_is_negative_for_what_does_not_carry_over(factors: Tensor) -> None:
    z = factors @ torch.randn(3, 3) + 0.5 * torch.randn(2000, 3)
    design = torch.cat([z, torch.ones(2000, 1)], dim=1).double()
    weights = torch.linalg.pinv(design[:1000]) @ factors[:1000].double()
    residual = factors[1000:].double() - design[1000:] @ weights
    expected = 1 - residual.square().sum(0) / (factors[1000:] - factors[1000:].mean(0)).double().square().sum(0)
    assert metrics.linear_r2(z, factors) == pytest.approx(float(expected.mean()), abs=1e-6)
    noise = torch.randn(62, 30)
    assert metrics.linear_r2(noise, torch.randn(62, 1)) < 0  # it is scored on rows it has not seen


def test_runs_that_agree_by_importance_need_no_search(factors: Tensor) -> None:
    s = torch.tensor([1.0, 3.0, 2.0])
    shuffled = [2, 0, 1]
    found = metrics.match_by_importance(factors, s, -factors[:, shuffled], s[shuffled])
    assert found.per_dimension.tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    assert found.order.tolist() == [1, 2, 0]
    wrong = metrics.match_by_importance(factors, s, -factors[:, shuffled], s)
    assert wrong.mean < 0.1
    assert metrics.match_by_search(factors, -factors[:, shuffled]).mean == pytest.approx(1, abs=1e-6)


def test_dci_of_factors_and_of_their_mixture(factors: Tensor) -> None:
    s = factors[:800]
    clean = metrics.dci(s[:, [1, 2, 0]], s)
    assert min(clean.disentanglement, clean.completeness, clean.informativeness) > 0.95
    assert clean.importance.argmax(0).tolist() == [2, 0, 1]
    mixed = metrics.dci(s @ (rotation(math.pi / 4) @ rotation(0.7).T.roll((1, 1), (0, 1))), s)
    assert max(mixed.disentanglement, mixed.completeness) < 0.7


@pytest.mark.parametrize(
    ("importance", "d", "c"),
    [
        (torch.eye(3), 1, 1),
        (torch.full((3, 3), 1 / 3), 0, 0),
        (torch.tensor([[0.5, 0.0], [0.5, 0.0], [0.0, 1.0]]), 1, (1 - math.log(2) / math.log(3) + 1) / 2),
        (torch.tensor([[1.0, 1.0], [0.0, 0.0]]), 0, 1),
        (torch.tensor([[3.0, 1.0], [0.0, 2.0]]), (4 / 6) * (1 - 0.8112781245) + 2 / 6, None),
    ],
)
def test_disentanglement_and_completeness_by_hand(importance: Tensor, d: float, c: float | None) -> None:
    assert disentanglement(importance) == pytest.approx(d, abs=1e-6)
    if c is not None:
        assert completeness(importance) == pytest.approx(c, abs=1e-6)


def test_bad_inputs(factors: Tensor) -> None:
    with pytest.raises(ValueError, match=r"same samples, got shapes \(10, 3\) and \(2000, 3\)"):
        MCC(factors[:10], factors)
    with pytest.raises(ValueError, match="must be 'linear' or 'rank', got 'kendall'"):
        MCC(factors, factors, "kendall")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"half of 7 rows cannot determine.*give 8 rows"):
        metrics.linear_r2(factors[:7], factors[:7])
    with pytest.raises(ValueError, match="factor 1 does not vary"):
        metrics.linear_r2(factors, torch.stack([factors[:, 0], torch.ones(2000)], dim=1))
    with pytest.raises(ValueError, match=r"each with importance \(d,\)"):
        metrics.match_by_importance(factors, torch.ones(2), factors, torch.ones(3))
    with pytest.raises(ValueError, match="same four samples"):
        metrics.dci(factors[:3], factors[:3])


@pytest.mark.parametrize(("module", "package"), [("scipy.optimize", "scipy"), ("sklearn.ensemble", "scikit-learn")])
def test_a_missing_package_is_named(
    module: str, package: str, factors: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"needs {package}: pip install 'ssl-heads\[metrics\]'"):
        (MCC if package == "scipy" else metrics.dci)(factors[:50], factors[:50])
