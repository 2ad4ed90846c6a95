"""Moments against the matrices that they stand for."""

from __future__ import annotations

import pytest
import torch

from ssl_heads.similarity import gram
from tests.checks import assert_gradient_close, relative_error
from tests.similarity.test_tiled import Allocations

SHAPES = [(1, 1), (1, 5), (2, 7), (7, 2), (5, 5), (41, 3), (3, 41), (1271, 7)]


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("m", [1, 6, 60])
def test_square_sum(n: int, m: int, d: int) -> None:
    q, k = (torch.randn(rows, d, dtype=torch.float64, requires_grad=True) for rows in (n, m))
    assert relative_error(gram.square_sum(q, k), (q @ k.T).square().sum()) < 1e-12
    actual = torch.autograd.grad(gram.square_sum(q, k), (q, k))
    expected = torch.autograd.grad((q @ k.T).square().sum(), (q, k))
    for a, e in zip(actual, expected, strict=True):
        assert_gradient_close(a, e, 1e-10)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_weighted_square_sum(n: int, d: int) -> None:
    x = torch.randn(n, d, dtype=torch.float64, requires_grad=True)
    w = torch.rand(d, dtype=torch.float64, requires_grad=True)
    definition = ((x * w) @ x.T).square().sum()
    assert relative_error(gram.weighted_square_sum(x, w), definition) < 1e-12
    actual = torch.autograd.grad(gram.weighted_square_sum(x, w), (x, w))
    for a, e in zip(actual, torch.autograd.grad(definition, (x, w)), strict=True):
        assert_gradient_close(a, e, 1e-10)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_distance_from_identity(n: int, d: int) -> None:
    x = torch.randn(n, d, dtype=torch.float64, requires_grad=True)
    definition = (x.T @ x / n - torch.eye(d, dtype=torch.float64)).square().sum()
    assert relative_error(gram.distance_from_identity(x), definition) < 1e-12
    (a,) = torch.autograd.grad(gram.distance_from_identity(x), x)
    (e,) = torch.autograd.grad(definition, x)
    assert_gradient_close(a, e, 1e-10)


@pytest.mark.parametrize("shape", [(2, 5), (5, 2)], ids=str)
def test_second_derivatives_on_both_sides(shape: tuple[int, int]) -> None:
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    k = torch.randn(3, shape[1], dtype=torch.float64, requires_grad=True)
    w = torch.rand(shape[1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(gram.square_sum, (x, k))
    assert torch.autograd.gradgradcheck(gram.weighted_square_sum, (x, w))
    assert torch.autograd.gradgradcheck(gram.distance_from_identity, (x,))


@pytest.mark.parametrize(("n", "d"), [(1271, 7), (3, 101)])
def test_the_smaller_side_is_the_one_that_is_built(n: int, d: int) -> None:
    x, k = torch.randn(n, d, requires_grad=True), torch.randn(n, d, requires_grad=True)
    w = torch.rand(d, requires_grad=True)
    for function, inputs in (
        (gram.square_sum, (x, k)),
        (gram.weighted_square_sum, (x, w)),
        (gram.distance_from_identity, (x,)),
    ):
        with Allocations() as seen:
            function(*inputs).backward()
        assert min(n, d) ** 2 <= seen.largest <= n * d, function.__name__
