from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from ssl_heads.metrics import expected_modal_share
from ssl_heads.metrics.chance import _times_seen


def by_enumeration(labels: Tensor, size: int) -> float:
    subsets = list(combinations(labels.tolist(), size))
    return sum(max(s.count(c) for c in set(s)) for s in subsets) / (size * len(subsets))


def by_drawing(classes: int, size: int, draws: int) -> float:
    """Modal share of labels drawn uniformly with replacement: what a large data set tends to."""
    counts = torch.zeros(draws, classes).scatter_add_(1, torch.randint(classes, (draws, size)), torch.ones(draws, size))
    return float(counts.amax(dim=1).mean()) / size


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 0, 1, 2], [3, 1, 4, 1, 5, 9, 2, 6]])
def test_against_every_subset(labels: list[int]) -> None:
    y = torch.tensor(labels)
    sizes = torch.arange(1, len(y) + 1)
    expected = torch.tensor([by_enumeration(y, m) for m in sizes.tolist()], dtype=torch.float64)
    assert torch.allclose(expected_modal_share(y, sizes), expected, atol=2e-3)


def test_published_levels_for_a_hundred_classes() -> None:
    labels = torch.arange(100_000) % 100
    sizes = torch.tensor([1, 2, 5, 10, 30, 100])
    chance = expected_modal_share(labels, sizes)
    assert torch.allclose(chance, torch.tensor([1.0, 0.505, 0.22, 0.139, 0.077, 0.042], dtype=torch.float64), atol=1e-3)
    for m, value in zip(sizes.tolist(), chance.tolist(), strict=True):
        assert value == pytest.approx(by_drawing(100, m, 20_000), abs=2e-3)


def test_one_and_all_are_exact_and_order_does_not_matter() -> None:
    labels = torch.tensor([0] * 30 + [1] * 50 + [2] * 20)
    chance = expected_modal_share(labels, torch.tensor([1, 100]))
    assert chance.tolist() == [1.0, 0.5]
    shuffled = labels[torch.randperm(100)]
    sizes = torch.arange(1, 101)
    assert torch.allclose(expected_modal_share(labels, sizes), expected_modal_share(shuffled, sizes), atol=4e-3)


def test_it_is_reproducible_and_leaves_the_global_generator_alone() -> None:
    labels, sizes = torch.arange(300) % 7, torch.tensor([4, 60, 9])
    state = torch.get_rng_state()
    first = expected_modal_share(labels, sizes)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(expected_modal_share(labels, sizes), first)


def test_times_seen_counts_occurrences_so_far() -> None:
    labels = torch.randint(4, (6, 15))
    expected = [[row[: i + 1].count(c) for i, c in enumerate(row)] for row in labels.tolist()]
    assert _times_seen(labels).tolist() == expected


def test_no_sizes_and_bad_sizes() -> None:
    labels = torch.arange(5)
    assert expected_modal_share(labels, torch.tensor([], dtype=torch.int64)).shape == (0,)
    for size in (0, 6):
        with pytest.raises(ValueError, match=f"between 1 and the 5 labels, got {size}"):
            expected_modal_share(labels, torch.tensor([size]))


def test_standard_error_is_as_promised() -> None:
    """Two classes at size 2: the exact value is known and its variance is the largest there is."""
    n = 1000
    labels = torch.arange(n) % 2
    same = (n / 2 - 1) / (n - 1)
    value = float(expected_modal_share(labels, torch.tensor([2])))
    assert math.isclose(value, 0.5 + 0.5 * same, abs_tol=4e-3)
