"""The operators: gradients through autograd, what torch.library checks, autocast, torch.compile."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ssl_heads._numerics import product_dtype
from ssl_heads.rowwise import host
from ssl_heads.similarity import Exclusion, Impl, log_sum_exp, operators, self_log_sum_exp, softplus_sum
from tests.checks import assert_gradient_close
from tests.similarity import empty
from tests.similarity.triton.interpreted.literal import left_out
from tests.similarity.triton.interpreted.literal import log_sum_exp as literal_log_sum_exp

N, M, D = 40, 50, 24


def leaves(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [(torch.randn(shape) / shape[-1] ** 0.5).to(dtype).requires_grad_() for shape in shapes]


def scalar(value: float) -> Tensor:
    return torch.tensor(value, requires_grad=True)


def pairs(query: Tensor, key: Tensor, scale: Tensor) -> Tensor:
    row, column = log_sum_exp(
        query, key, scale, exclusion=Exclusion.diagonal(N, M, 3), columns=True, bound=50.0, impl="triton"
    )
    assert column is not None
    return (row * torch.linspace(-1, 1, N)).sum() + column.square().sum()


def pairs_literal(query: Tensor, key: Tensor, scale: Tensor) -> Tensor:
    logits = (scale * query @ key.T).masked_fill(left_out(Exclusion.diagonal(N, M, 3), N, M), -math.inf)
    return (literal_log_sum_exp(logits, 1) * torch.linspace(-1, 1, N)).sum() + literal_log_sum_exp(
        logits, 0
    ).square().sum()


def rows(query: Tensor, key: Tensor, scale: Tensor) -> Tensor:
    return log_sum_exp(query, key.detach(), scale, impl="triton")[0].square().sum()


def rows_literal(query: Tensor, key: Tensor, scale: Tensor) -> Tensor:
    return (scale * query @ key.detach().T).logsumexp(1).square().sum()


def unit(x: Tensor) -> Tensor:
    return (host.normalized_rows(x)[0] * torch.linspace(-1, 1, D)).square().sum()


def unit_literal(x: Tensor) -> Tensor:
    return (x / x.norm(dim=1, keepdim=True) * torch.linspace(-1, 1, D)).square().sum()


def one_set(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    exclusion = Exclusion.modulo(N // 2)
    return self_log_sum_exp(x, scale, weight=weight, exclusion=exclusion, impl="triton").square().sum()


def one_set_literal(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    logits = (scale * (x * weight) @ x.T).masked_fill(left_out(Exclusion.modulo(N // 2), N, N), -math.inf)
    return logits.logsumexp(1).square().sum()


def elementwise(query: Tensor, key: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return softplus_sum(query, key, scale, bias, exclusion=Exclusion.diagonal(N, M), impl="triton")


def elementwise_literal(query: Tensor, key: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    logits = (scale * query @ key.T + bias).masked_fill(left_out(Exclusion.diagonal(N, M), N, M), -math.inf)
    return torch.nn.functional.softplus(logits).sum()


CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[[], list[Tensor]]]] = {
    "pairs": (pairs, pairs_literal, lambda: [*leaves((N, D), (M, D)), scalar(10.0)]),
    "rows": (rows, rows_literal, lambda: [*leaves((N, D), (M, D)), scalar(10.0)]),
    "unit rows": (unit, unit_literal, lambda: leaves((N, D))),
    "one set": (one_set, one_set_literal, lambda: [*leaves((N, D)), torch.rand(D, requires_grad=True), scalar(5.0)]),
    "elementwise": (elementwise, elementwise_literal, lambda: [*leaves((N, D), (M, D)), scalar(10.0), scalar(-3.0)]),
}


@pytest.mark.parametrize("name", list(CASES))
def test_value_and_gradients(name: str) -> None:
    function, literal, make = CASES[name]
    inputs = make()
    exact = [x.detach().double().requires_grad_() for x in inputs]
    value, expected = function(*inputs), literal(*exact)
    torch.testing.assert_close(value.double(), expected, rtol=2e-6, atol=0.0)
    value.backward()
    expected.backward()
    for x, y in zip(inputs, exact, strict=True):
        if y.grad is None:
            assert x.grad is None
        else:
            assert_gradient_close(x.grad, y.grad, 1e-5)


@pytest.mark.parametrize("width", [D, 300], ids=["registers", "panels"])
@pytest.mark.parametrize("structure", ["two sets", "two sets by rows", "one set"])
def test_every_choice_of_what_is_learned(structure: str, width: int) -> None:
    """The operator computes what is needed, and returns no tensor twice."""

    def value(x: Tensor, other: Tensor, scale: Tensor, impl: Impl) -> Tensor:
        if structure == "one set":
            return self_log_sum_exp(x, scale, weight=other, exclusion=Exclusion.modulo(N // 2), impl=impl).sum()
        row, column = log_sum_exp(x, other, scale, columns=structure == "two sets", impl=impl)
        return row.sum() if column is None else row.sum() + 0.5 * column.sum()

    x = torch.randn(N, width) / width**0.5
    other = torch.rand(width) if structure == "one set" else torch.randn(M, width) / width**0.5
    for needs in itertools.product([False, True], repeat=3):
        if any(needs):
            single = [v.clone().requires_grad_(n) for v, n in zip((x, other, torch.tensor(5.0)), needs, strict=True)]
            double = [v.detach().double().requires_grad_(v.requires_grad) for v in single]
            value(*single, "triton").backward()
            value(*double, "dense").backward()
            for mine, exact in zip(single, double, strict=True):
                assert (mine.grad is None) == (exact.grad is None)
                if exact.grad is not None and exact.dim():
                    assert_gradient_close(mine.grad, exact.grad, 1e-5)
                elif exact.grad is not None:
                    torch.testing.assert_close(mine.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [D, 300], ids=["registers", "panels"])
@pytest.mark.parametrize("learned", ["query", "key", "scale", "bias"])
def test_every_choice_of_what_a_softplus_learns(learned: str, width: int) -> None:
    inputs = {
        "query": torch.randn(N, width), "key": torch.randn(M, width), "scale": torch.tensor(0.3),
        "bias": torch.tensor(-3.0),
    }  # fmt: skip
    gradients = []
    for impl, dtype in (("triton", torch.float32), ("dense", torch.float64)):
        given = {name: x.to(dtype, copy=True).requires_grad_(name == learned) for name, x in inputs.items()}
        softplus_sum(**given, exclusion=Exclusion.diagonal(N, M), impl=impl).backward()
        gradients.append(given[learned].grad)
    assert_gradient_close(*(g.reshape(-1) for g in gradients), 1e-4)


@pytest.mark.parametrize("bound", [math.inf, 30.0])
@pytest.mark.parametrize("shape", empty.SHAPES, ids=str)
def test_sets_without_rows(shape: tuple[int, int], bound: float) -> None:
    for frozen_keys in (False, True):
        empty.assert_takes_two_sets("triton", shape, bound, frozen_keys)
    empty.assert_takes_one_set("triton", bound)
    empty.assert_takes_softplus("triton", shape)


@pytest.mark.parametrize("name", list(CASES))
def test_compiles_as_one_graph(name: str) -> None:
    function, _, make = CASES[name]
    inputs = make()
    function(*inputs).backward()
    eager = [x.grad for x in inputs]
    for x in inputs:
        x.grad = None
    torch.compile(function, backend="aot_eager", fullgraph=True)(*inputs).backward()
    for x, gradient in zip(inputs, eager, strict=True):
        assert (x.grad is None) == (gradient is None)
        if gradient is not None:
            torch.testing.assert_close(x.grad, gradient, rtol=1e-6, atol=1e-7)


def test_operators_keep_their_promises() -> None:
    query, key = leaves((N, D), (M, D))
    scale, ids = torch.tensor([10.0], requires_grad=True), torch.randint(0, 5, (N,))
    key_ids = torch.randint(0, 5, (M,))
    exclusion = (0, 0, ids, key_ids, False)
    torch.library.opcheck(
        operators.pair_lse, (query, key, scale, *exclusion, True, False, math.inf, torch.float32, "triton")
    )
    torch.library.opcheck(
        operators.self_lse, (query, torch.rand(D), scale, 0, 20, ids, False, math.inf, torch.float32, "triton")
    )
    torch.library.opcheck(host.normalized_rows, (query,))
    # its gradients come beside the value, and opcheck would differentiate them as if they were results
    bias = torch.tensor([-1.0], requires_grad=True)
    torch.library.opcheck(
        operators.pair_softplus,
        (query, key, scale, bias, 2, 1000, None, None, False, torch.float16, "triton", True),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def test_autocast_computes_in_half() -> None:
    query, key = leaves((N, D), (M, D))
    with torch.autocast("cpu", torch.bfloat16):
        row, _ = log_sum_exp(query, key, 10.0, dtype=product_dtype(query, key), impl="triton")
    assert row.dtype == torch.float32
    exact = (10.0 * query.bfloat16().double() @ key.bfloat16().double().T).logsumexp(1)
    torch.testing.assert_close(row.double(), exact, rtol=2e-6, atol=1e-6)
    row.sum().backward()
    assert query.grad is not None
    assert query.grad.dtype == torch.float32


def test_a_second_derivative_says_what_to_do() -> None:
    query, key = leaves((N, D), (M, D))
    (gradient,) = torch.autograd.grad(log_sum_exp(query, key, impl="triton")[0].sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match='impl="dense"'):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("query", "key", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(3, 5), r"\(3, 4\) and \(3, 5\)"),
        (torch.zeros(3, 4, 2), torch.zeros(3, 4), "share d"),
        (torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.float64), "float64"),
    ],
)
def test_mistakes(query: Tensor, key: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log_sum_exp(query, key, impl="triton")
