"""Sets without rows, as every backend takes them: values of -inf or zero, gradients of zero."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_heads.similarity import Exclusion, Impl, log_sum_exp, self_log_sum_exp, softplus_sum

SHAPES = ((0, 5), (5, 0), (0, 0))
D = 8


def rows(count: int) -> Tensor:
    return torch.randn(count, D, requires_grad=True)


def assert_takes_two_sets(impl: Impl, shape: tuple[int, int], bound: float, frozen_keys: bool) -> None:
    """No pair: `-inf` for each row and column that there is, no gradient."""
    query, key, scale = rows(shape[0]), rows(shape[1]), torch.tensor(2.0, requires_grad=True)
    column = None
    if frozen_keys:
        row, _ = log_sum_exp(query, key.detach(), scale, bound=bound, impl=impl)
    else:
        row, column = log_sum_exp(query, key, scale, columns=True, bound=bound, impl=impl)
        assert column is not None
        assert column.shape == (shape[1],)
        assert bool((column == -torch.inf).all())
    assert row.shape == (shape[0],)
    assert bool((row == -torch.inf).all())
    (row.sum() + (0 if column is None else column.sum())).backward()
    assert_zero(query.grad, query)
    assert_zero(scale.grad, scale)
    if not frozen_keys:
        assert_zero(key.grad, key)


def assert_takes_one_set(impl: Impl, bound: float) -> None:
    """No row, no value."""
    x, weight, scale = rows(0), torch.rand(D, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    row = self_log_sum_exp(x, scale, weight=weight, exclusion=Exclusion.modulo(4), bound=bound, impl=impl)
    assert row.shape == (0,)
    row.sum().backward()
    for leaf in (x, weight, scale):
        assert_zero(leaf.grad, leaf)


def assert_takes_softplus(impl: Impl, shape: tuple[int, int]) -> None:
    """A sum over no pair is zero."""
    query, key = rows(shape[0]), rows(shape[1])
    scale, bias = (torch.tensor(x, requires_grad=True) for x in (2.0, -1.0))
    total = softplus_sum(query, key, scale, bias, exclusion=Exclusion.nothing(), impl=impl)
    assert total.item() == 0.0
    total.backward()
    for leaf in (query, key, scale, bias):
        assert_zero(leaf.grad, leaf)


def assert_zero(gradient: Tensor | None, of: Tensor) -> None:
    assert gradient is not None
    assert gradient.shape == of.shape
    assert not gradient.any()
