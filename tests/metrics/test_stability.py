from __future__ import annotations

import math
import sys
from itertools import permutations

import pytest
import torch
from torch import Tensor

from ssl_heads.metrics import StreamingSeedStability, seed_stability


def correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    length = float(a.norm() * b.norm())
    return abs(float(torch.dot(a, b))) / length if length > 1e-12 else 0.0


def by_all_permutations(a: Tensor, b: Tensor, threshold: float, counted: tuple[list[int], list[int]]) -> tuple:  # type: ignore[type-arg]
    mine, theirs = counted
    small, large = sorted((mine, theirs), key=len)
    swap = small is theirs and len(mine) != len(theirs)
    best: list[float] = []
    for chosen in permutations(large, len(small)):
        pairs = [(y, x) if swap else (x, y) for x, y in zip(small, chosen, strict=True)]
        values = [correlation(a[:, i], b[:, j]) for i, j in pairs]
        if sum(values) > sum(best):
            best = values
    return sum(best) / len(large), sum(v > threshold for v in best) / len(large)


@pytest.mark.parametrize(("p", "q"), [(5, 5), (4, 6), (6, 4)])
def test_against_all_permutations(p: int, q: int) -> None:
    shared = torch.randn(50, 3, dtype=torch.float64)
    a = torch.cat([shared, torch.randn(50, p - 3)], dim=1) + 0.3 * torch.randn(50, p)
    b = torch.cat([torch.randn(50, q - 3), shared], dim=1) + 0.3 * torch.randn(50, q)
    a[:, 0] = 0.0
    counted = (list(range(1, p)), list(range(q)))
    mean, share = by_all_permutations(a, b, 0.7, counted)
    found = seed_stability(a, b)
    assert found.mean == pytest.approx(mean, abs=1e-12)
    assert found.share == pytest.approx(share, abs=1e-12)
    assert found.per_dimension[0].isnan()
    assert found.order[0] == -1
    for j, partner in enumerate(found.order.tolist()):
        if partner >= 0:
            assert found.per_dimension[j] == pytest.approx(correlation(a[:, j], b[:, partner]), abs=1e-12)


def test_the_same_dimensions_in_another_order_and_unrelated_ones() -> None:
    z = torch.randn(300, 8).relu()
    order = torch.randperm(8)
    found = seed_stability(z[:, order], 3 * z + 1)
    assert (found.mean, found.share) == (pytest.approx(1), 1)
    assert torch.equal(found.order, order)
    unrelated = seed_stability(z, torch.randn(300, 8).relu())
    assert unrelated.mean < 0.2
    assert unrelated.share == 0


def test_dimensions_that_are_left_alone_count_zero() -> None:
    z = torch.randn(200, 4)
    found = seed_stability(torch.cat([z, torch.randn(200, 4)], dim=1), z)
    assert found.mean == pytest.approx(0.5)
    assert found.share == 0.5
    assert found.per_dimension[4:].tolist() == [0.0] * 4
    assert found.order[4:].tolist() == [-1] * 4
    assert seed_stability(z, torch.zeros(200, 2)).mean == 0
    assert math.isnan(seed_stability(torch.zeros(200, 2), torch.zeros(200, 2)).mean)


def test_large_means_do_not_cancel() -> None:
    z = torch.randn(120, 3, dtype=torch.float64)
    other = z + 0.5 * torch.randn(120, 3)
    expected = seed_stability(z, other).mean
    metric = StreamingSeedStability()
    for a, b in zip((z + 1e6).split(17), (other - 1e6).split(17), strict=True):
        metric.update(a, b)
    assert metric.compute().mean == pytest.approx(expected, abs=1e-9)


def test_rare_dimensions_can_be_left_out() -> None:
    z = torch.zeros(100, 2)
    z[:50, 0], z[7, 1] = torch.rand(50), 1.0
    assert seed_stability(z, z, min_support=10).per_dimension.isnan().tolist() == [False, True]


def test_bad_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(5, 3)
    with pytest.raises(ValueError, match=r"same samples, got shapes \(5, 3\) and \(4, 3\)"):
        seed_stability(x, x[:4])
    with pytest.raises(ValueError, match="one sample has no correlation"):
        seed_stability(x[:1], x[:1])
    with pytest.raises(ValueError, match="threshold must lie strictly between 0 and 1"):
        seed_stability(x, x, threshold=1.0)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"needs scipy: pip install 'ssl-heads\[metrics\]'"):
        seed_stability(x, x)
