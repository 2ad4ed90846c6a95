from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_heads._numerics import default_eps
from ssl_heads.functional.normalize import safe_normalize
from tests.checks import assert_gradient_close

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 2e-3}


def by_definition(x: Tensor) -> Tensor:
    """x / ||x||, row by row in float64, with zero rows left at zero."""
    rows = [row / (row * row).sum().sqrt() if bool((row != 0).any()) else row for row in x.double()]
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", DTYPES)
def test_value_and_gradient_are_the_definitions(dtype: torch.dtype) -> None:
    x = torch.randn(7, 5).to(dtype).requires_grad_()
    upstream = torch.randn(7, 5).to(dtype)
    y = safe_normalize(x)
    y.backward(upstream)
    reference = x.detach().double().requires_grad_()
    expected = by_definition(reference)
    expected.backward(upstream.double())
    assert y.dtype == dtype
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert_gradient_close(y, expected, TOLERANCE[dtype])
    assert_gradient_close(x.grad, reference.grad, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_zero_row_stays_zero_and_gets_no_gradient(dtype: torch.dtype) -> None:
    x = torch.randn(4, 6).to(dtype)
    x[1] = 0
    x[3] = -0.0
    x.requires_grad_()
    y = safe_normalize(x)
    y.backward(torch.randn(4, 6).to(dtype))
    assert x.grad is not None
    for row in (1, 3):
        assert (y[row] == 0).all()
        assert (x.grad[row] == 0).all()
    for row in (0, 2):
        assert float(y[row].detach().double().norm()) == pytest.approx(1, abs=1e-2)
        assert (x.grad[row] != 0).any()


def test_the_common_normalisation_explodes_where_this_one_does_not() -> None:
    x = torch.zeros(1, 3, requires_grad=True)
    F.normalize(x, dim=-1).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 1e11
    assert F.normalize(torch.zeros(1, 3, dtype=torch.float16), dim=-1).isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 2.0, 10.0])
def test_gradients_are_bounded_by_one_over_eps(dtype: torch.dtype, factor: float) -> None:
    eps = default_eps(dtype)
    direction = torch.tensor([[0.6, 0.8, 0.0]], dtype=torch.float64)
    x = (direction * eps * factor).to(dtype).requires_grad_()
    y = safe_normalize(x)
    y.backward(torch.tensor([[0.5, -0.25, 1.0]], dtype=dtype))
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.double().norm() <= 1.2 / eps
    expected = 0 if factor < 1 else 1
    if factor != 1:
        assert float(y.detach().double().norm()) == pytest.approx(expected, abs=2e-2)


def test_eps_is_the_callers_if_given() -> None:
    x = torch.tensor([[3e-3, 4e-3]])
    assert (safe_normalize(x, eps=1e-2) == 0).all()
    assert safe_normalize(x, eps=1e-3).norm() == pytest.approx(1)
    assert safe_normalize(torch.tensor([[1e-30, 0.0]], dtype=torch.float64), eps=0.0)[0, 0] == 1
    assert (safe_normalize(torch.zeros(1, 2), eps=0.0) == 0).all()


def test_large_half_precision_rows_do_not_overflow() -> None:
    x = torch.full((2, 64), 6e4, dtype=torch.float16, requires_grad=True)
    y = safe_normalize(x)
    y.backward(torch.randn(2, 64).half())
    assert torch.allclose(y.detach().float(), torch.full((2, 64), 0.125), rtol=1e-3)
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    x, w = torch.randn(6, 8), torch.randn(8, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y = safe_normalize((x @ w).relu() * torch.tensor([[1.0], [1.0], [0.0], [1.0], [1.0], [1.0]]).to(dtype))
    y.float().square().sum().backward()
    assert y.dtype == dtype
    assert y.isfinite().all()
    assert w.grad is not None
    assert w.grad.isfinite().all()


def test_first_and_second_derivatives_against_finite_differences() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(safe_normalize, (x,))
    assert torch.autograd.gradgradcheck(safe_normalize, (x,))


def test_second_derivative_of_a_zero_row_is_zero() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    (first,) = torch.autograd.grad(safe_normalize(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((first * torch.randn(2, 3)).sum() + x.sum(), x)
    assert (second == 1).all()


def test_vmap_of_grad() -> None:
    x = torch.randn(5, 4, dtype=torch.float64)
    weight = torch.randn(5, 4, dtype=torch.float64)
    per_row = torch.func.vmap(torch.func.grad(lambda row, w: (safe_normalize(row) * w).sum()))(x, weight)
    reference = x.clone().requires_grad_()
    (by_definition(reference) * weight).sum().backward()
    assert_gradient_close(per_row, reference.grad, 1e-12)


def test_forward_mode() -> None:
    x, v = torch.randn(2, 5, 4, dtype=torch.float64)
    _, tangent = torch.func.jvp(safe_normalize, (x,), (v,))
    _, expected = torch.func.jvp(by_definition, (x,), (v,))
    assert_gradient_close(tangent, expected, 1e-12)


def test_compiles_without_a_graph_break() -> None:
    compiled = torch.compile(safe_normalize, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 4, dtype=torch.float64)
    x[2] = 0
    x.requires_grad_()
    upstream = torch.randn(5, 4, dtype=torch.float64)
    compiled(x).backward(upstream)
    eager = x.detach().clone().requires_grad_()
    safe_normalize(eager).backward(upstream)
    assert_gradient_close(x.grad, eager.grad, 1e-12)


def test_leading_dimensions_layouts_and_empty_batches() -> None:
    x = torch.randn(4, 3, 5)
    assert torch.allclose(safe_normalize(x).flatten(0, 1), safe_normalize(x.flatten(0, 1)))
    assert torch.allclose(safe_normalize(x.transpose(0, 2)), safe_normalize(x.transpose(0, 2).contiguous()))
    assert torch.allclose(safe_normalize(x[0, 0]), safe_normalize(x)[0, 0])
    assert safe_normalize(torch.zeros(0, 5)).shape == (0, 5)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"int64 of shape \(2, 3\)"):
        safe_normalize(torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"shape \(\)"):
        safe_normalize(torch.tensor(1.0))
    with pytest.raises(ValueError, match="got -1"):
        safe_normalize(torch.ones(2, 3), eps=-1.0)
