"""NT-Xent of small batches, in one step of autograd, equals NT-Xent through the engine."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssl_heads import functional
from ssl_heads.functional import nt_xent_small
from ssl_heads.similarity import product
from tests.checks import assert_gradient_close, relative_error


def value_and_gradients(z0: Tensor, z1: Tensor, temperature: float, impl: str) -> tuple[Tensor, list[Tensor]]:
    views = [z.detach().clone().requires_grad_() for z in (z0, z1)]
    value = functional.nt_xent(*views, temperature, impl=impl)
    (3 * value).backward()
    return value.detach(), [view.grad for view in views if view.grad is not None]


@pytest.mark.parametrize(
    ("n", "d", "temperature"),
    [(2, 3, 0.2), (7, 5, 0.2), (41, 16, 0.05), (64, 8, 0.0168), (128, 128, 0.2), (512, 32, 0.1)],
)
def test_value_and_gradient(n: int, d: int, temperature: float) -> None:
    z0 = torch.randn(n, d)
    z1 = z0 + 0.3 * torch.randn(n, d)
    assert nt_xent_small.supports(z0, z1, temperature)
    value, gradients = value_and_gradients(z0, z1, temperature, "auto")
    exact, expected = value_and_gradients(z0.double(), z1.double(), temperature, "dense")
    assert relative_error(value, exact) < 1e-6
    for gradient, truth in zip(gradients, expected, strict=True):
        assert_gradient_close(gradient, truth, 1e-5)


def test_a_nearly_solved_loss_keeps_its_relative_accuracy() -> None:
    z0 = torch.eye(16)
    z1 = z0 + 0.01 * torch.randn(16, 16)
    value, gradients = value_and_gradients(z0, z1, 0.02, "auto")
    exact, expected = value_and_gradients(z0.double(), z1.double(), 0.02, "dense")
    assert 0 < exact < 1e-15
    assert relative_error(value, exact) < 1e-4
    for gradient, truth in zip(gradients, expected, strict=True):
        assert_gradient_close(gradient, truth, 1e-4)


def test_zero_rows_and_one_pair() -> None:
    z0, z1 = torch.randn(2, 5, 4)
    z0[1] = z1[1] = 0
    value, (gradient, _) = value_and_gradients(z0, z1, 0.2, "auto")
    exact, (expected, _) = value_and_gradients(z0.double(), z1.double(), 0.2, "dense")
    assert relative_error(value, exact) < 1e-6
    assert_gradient_close(gradient, expected, 1e-5)
    assert gradient[1].norm() == 0
    value, gradients = value_and_gradients(z0[:1], z1[:1], 0.2, "auto")
    assert value == 0
    assert all(g.norm() == 0 for g in gradients)


def test_nan_is_not_hidden_and_inputs_are_left_alone() -> None:
    z0, z1 = torch.randn(2, 6, 4)
    before = z0.clone(), z1.clone()
    value_and_gradients(z0, z1, 0.2, "auto")
    assert torch.equal(z0, before[0])
    assert torch.equal(z1, before[1])
    z0[2, 1] = torch.nan
    value, (gradient, _) = value_and_gradients(z0, z1, 0.2, "auto")
    assert value.isnan()
    assert gradient.isnan().any()


def test_what_is_not_supported_goes_through_the_engine() -> None:
    z = torch.randn(4, 3)
    assert not nt_xent_small.supports(z.double(), z.double(), 0.2)
    assert not nt_xent_small.supports(z, z, 0.01)
    assert not nt_xent_small.supports(z, z, -0.2)
    assert not nt_xent_small.supports(z, z, float("nan"))
    assert not nt_xent_small.supports(z, z[:3], 0.2)
    assert not nt_xent_small.supports(z[:1], z[:1], 0.2)
    assert not nt_xent_small.supports(z[0], z[0], 0.2)
    assert not nt_xent_small.supports(z[:, :0], z[:, :0], 0.2)
    assert not nt_xent_small.supports(torch.randn(513, 3), torch.randn(513, 3), 0.2)
    assert nt_xent_small.supports(torch.nn.Parameter(z), z, 0.2)
    jacobian = torch.func.grad(lambda x: functional.nt_xent(x, z.flip(0), 0.2))(z)
    _, (expected, _) = value_and_gradients(z.double(), z.flip(0).double(), 0.2, "dense")
    assert_gradient_close(3 * jacobian, expected, 1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_a_second_derivative_is_that_of_the_definition(shared: bool) -> None:
    z0 = torch.randn(8, 5, requires_grad=True)
    z1 = z0 if shared else torch.randn(8, 5, requires_grad=True)
    leaves = (z0,) if shared else (z0, z1)

    def penalty(impl: str) -> list[Tensor]:
        gradients = torch.autograd.grad(3 * functional.nt_xent(z0, z1, 0.2, impl=impl), leaves, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in gradients), leaves))

    for actual, expected in zip(penalty("auto"), penalty("dense"), strict=True):
        assert expected.norm() > 1e-3
        assert_gradient_close(actual, expected, 1e-5)


@pytest.mark.parametrize("onednn", [False, True])
def test_autocast_changes_nothing(onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither around the loss nor around its backward pass, whichever library multiplies."""
    if not onednn:
        monkeypatch.setattr(product, "onednn_is_faster", lambda: False)
    z0, z1 = torch.randn(2, 32, 8)
    value, gradients = value_and_gradients(z0, z1, 0.1, "auto")
    with torch.autocast("cpu", torch.bfloat16):
        under, gradients_under = value_and_gradients(z0, z1, 0.1, "auto")
    assert under.dtype == torch.float32
    assert torch.equal(under, value)
    for a, b in zip(gradients_under, gradients, strict=True):
        assert torch.equal(a, b)


def test_an_infinite_temperature_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature must be a finite number above 0, got inf"):
        functional.nt_xent(torch.randn(4, 3), torch.randn(4, 3), float("inf"))
