"""Cross entropy over non-negative classes."""

from __future__ import annotations

import pytest
import torch

from ssl_heads import functional as ours
from tests import oracles
from tests.cases import BY_NAME, assert_matches_oracle, normal
from tests.checks import assert_gradient_close, relative_error


@pytest.mark.parametrize("n", [1, 2, 7, 41, 257, 1271])
def test_value_and_gradients(n: int) -> None:
    for dtype, rtol in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        assert_matches_oracle(BY_NAME["nonneg_cross_entropy"], "moments", n, 16, dtype, rtol)


def test_signed_weight() -> None:
    features, weight = normal(1, 9, 4).abs().requires_grad_(), normal(2, 3, 4).requires_grad_()
    labels = torch.arange(9) % 3
    actual = ours.nonneg_cross_entropy(features, weight, labels, nonneg_weight=False)
    expected = oracles.nonneg_cross_entropy(features, weight, labels, nonneg_weight=False)
    assert relative_error(actual, expected) < 1e-12
    inputs = (features, weight)
    for a, e in zip(torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs), strict=True):
        assert_gradient_close(a, e, 1e-10)
    assert abs(actual - ours.nonneg_cross_entropy(features, weight, labels)) > 1e-3


def test_a_negative_weight_is_zero_in_the_forward_pass() -> None:
    features, labels = normal(1, 5, 4).abs(), torch.arange(5) % 3
    nothing = ours.nonneg_cross_entropy(features, -normal(2, 3, 4).abs(), labels)
    assert nothing.item() == pytest.approx(torch.log(torch.tensor(3.0)).item(), rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_integer_labels_of_any_width(dtype: torch.dtype) -> None:
    features, weight, labels = normal(1, 6, 4), normal(2, 3, 4), torch.arange(6) % 3
    expected = ours.nonneg_cross_entropy(features, weight, labels)
    assert torch.equal(ours.nonneg_cross_entropy(features, weight, labels.to(dtype)), expected)
