from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_heads.functional.activation import (
    ACTIVATIONS,
    SURROGATE_GRADIENTS,
    Activation,
    Surrogate,
    apply_activation,
    rep_relu,
)
from tests.checks import assert_gradient_close, relative_error

SURROGATES = {"gelu": F.gelu, "silu": F.silu, "softplus": lambda z: F.softplus(z, threshold=60), "leaky": F.leaky_relu}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 2e-3}
INTEGER_VIEW = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}


def surrogate_gradient(z: Tensor, upstream: Tensor, surrogate: str) -> Tensor:
    z = z.detach().double().requires_grad_()
    SURROGATES[surrogate](z).backward(upstream.double())
    assert z.grad is not None
    return z.grad


def test_every_surrogate_is_tested() -> None:
    assert set(SURROGATES) == set(SURROGATE_GRADIENTS)


@pytest.mark.parametrize("dtype", INTEGER_VIEW)
def test_forward_is_relu_bit_for_bit(dtype: torch.dtype) -> None:
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, 6e-8, -6e-8, torch.inf, -torch.inf, torch.nan], dtype=dtype)
    z = torch.cat([special, torch.randn(1000).to(dtype)])
    for surrogate in SURROGATES:
        y = rep_relu(z, surrogate)
        assert torch.equal(y.view(INTEGER_VIEW[dtype]), torch.relu(z).view(INTEGER_VIEW[dtype]))


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_backward_is_the_surrogates(dtype: torch.dtype, surrogate: str) -> None:
    z = (3 * torch.randn(7, 5)).to(dtype).requires_grad_()
    upstream = torch.randn(7, 5).to(dtype)
    rep_relu(z, surrogate).backward(upstream)
    assert z.grad is not None
    assert z.grad.dtype == dtype
    assert_gradient_close(z.grad, surrogate_gradient(z, upstream, surrogate), TOLERANCE[dtype])
    relu_gradient = upstream * (z > 0)
    assert relative_error(relu_gradient, z.grad) > TOLERANCE[dtype], "the surrogate's gradient is not relu's"


def test_the_gelu_surrogate_pushes_strongly_negative_units_the_wrong_way() -> None:
    z = torch.tensor([-0.7517, -0.7519, -(2**0.5)], dtype=torch.float64, requires_grad=True)
    rep_relu(z).sum().backward()
    assert z.grad is not None
    assert z.grad[0] > 0 > z.grad[1]
    assert z.grad[2] == pytest.approx(-0.1289, abs=1e-4)


@pytest.mark.parametrize("surrogate", ["softplus", "leaky"])
def test_softplus_and_leaky_always_push_up(surrogate: str) -> None:
    z = torch.linspace(-30, 30, 301, requires_grad=True)
    rep_relu(z, surrogate).sum().backward()
    assert z.grad is not None
    assert (z.grad > 0).all()


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_extreme_pre_activations_have_finite_gradients(surrogate: str) -> None:
    z = torch.tensor([-1e30, -200.0, -0.0, 0.0, 200.0, 1e30], requires_grad=True)
    rep_relu(z, surrogate).sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("surrogate", ["gelu", "silu", "softplus"])
def test_second_derivative_is_the_surrogates(surrogate: str) -> None:
    def second(f: object) -> Tensor:
        z = torch.linspace(-3, 3, 24, dtype=torch.float64).reshape(4, 6).requires_grad_()
        (first,) = torch.autograd.grad(f(z).sum(), z, create_graph=True)  # type: ignore[operator]
        (grad,) = torch.autograd.grad(first.sum(), z)
        return grad

    assert_gradient_close(second(lambda z: rep_relu(z, surrogate)), second(SURROGATES[surrogate]), 1e-10)


def test_only_the_input_is_kept_for_the_backward() -> None:
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    z = torch.randn(4, 3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        rep_relu(z)
    assert [x.data_ptr() for x in kept] == [z.data_ptr()]


def test_non_contiguous_input() -> None:
    z = torch.randn(5, 7, dtype=torch.float64).T.requires_grad_()
    upstream = torch.randn(7, 5, dtype=torch.float64)
    rep_relu(z).backward(upstream)
    assert_gradient_close(z.grad, surrogate_gradient(z, upstream, "gelu"), 1e-12)


def test_vmap_of_grad() -> None:
    z = torch.randn(6, 4, dtype=torch.float64)
    gradient = torch.func.vmap(torch.func.grad(lambda row: rep_relu(row, "silu").sum()))(z)
    assert_gradient_close(gradient, surrogate_gradient(z, torch.ones_like(z), "silu"), 1e-12)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_compiles_without_a_graph_break(surrogate: str) -> None:
    compiled = torch.compile(lambda z: rep_relu(z, surrogate), fullgraph=True, backend="aot_eager")
    z = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(6, 4, dtype=torch.float64)
    compiled(z).backward(upstream)
    assert_gradient_close(z.grad, surrogate_gradient(z, upstream, surrogate), 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    x, w = torch.randn(6, 8), torch.randn(8, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y = rep_relu(x @ w)
    y.sum().backward()
    assert y.dtype == dtype
    assert w.grad is not None
    assert w.grad.dtype == torch.float32
    assert w.grad.isfinite().all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_no_activation_is_negative(name: str) -> None:
    z = torch.cat([torch.linspace(-50, 50, 1001), torch.tensor([0.0, -0.0])])
    assert (apply_activation(z, name) >= 0).all()


def test_the_types_name_the_rows_of_the_tables() -> None:
    assert (get_args(Activation), get_args(Surrogate)) == (tuple(ACTIVATIONS), tuple(SURROGATE_GRADIENTS))


def test_names_carry_the_surrogates() -> None:
    z = torch.randn(6, 4, dtype=torch.float64)
    for name, surrogate in [("rep_relu", "gelu"), *((f"rep_relu_{s}", s) for s in ("silu", "softplus", "leaky"))]:
        x = z.clone().requires_grad_()
        apply_activation(x, name).sum().backward()
        assert_gradient_close(x.grad, surrogate_gradient(z, torch.ones_like(z), surrogate), 1e-12)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'relu'.*'softplus'.*got 'gelu'"):
        apply_activation(torch.zeros(1), "gelu")
    with pytest.raises(ValueError, match=r"'gelu'.*'leaky'.*got 'tanh'"):
        rep_relu(torch.zeros(1), "tanh")
