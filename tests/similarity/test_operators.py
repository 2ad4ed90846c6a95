"""The operators as PyTorch sees them: schema, fake tensors, autograd, compilation; and what they cannot do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssl_heads.similarity import operators
from tests.cases import use_small_tiles

N, M, D = 9, 7, 4
IDS, KEY_IDS = torch.arange(N) % 3, torch.arange(M) % 3


def rows(n: int, gradient: bool = True) -> Tensor:
    return torch.randn(n, D, dtype=torch.float64, requires_grad=gradient)


def vector(n: int) -> Tensor:
    return torch.randn(n, dtype=torch.float64)


def transposed(n: int) -> Tensor:
    return torch.randn(D, n, dtype=torch.float64).T.requires_grad_()


diagonal, modulo, nothing = (0, N + M + 1), (0, 4), (0, 0)
inf = float("inf")
f64, tiles = torch.float64, "tiled"


def number(gradient: bool = True) -> Tensor:
    return torch.tensor([1.5], dtype=f64, requires_grad=gradient)


# query, key, scale, exclusion (5), columns, one_sweep, bound, dtype, impl
CALLS = {
    "pair_lse": [
        lambda: (rows(N), rows(M), number(), *diagonal, None, None, False, True, False, inf, f64, tiles),
        lambda: (rows(N), rows(M), number(False), *nothing, None, None, False, False, False, inf, f64, tiles),
        lambda: (rows(N), rows(M), number(), *nothing, IDS, KEY_IDS, False, True, False, inf, f64, tiles),
        lambda: (rows(N), rows(M, False), number(False), *diagonal, IDS, KEY_IDS, True, True, False, 50.0, f64, tiles),
        lambda: (rows(N, False), rows(M), number(), *diagonal, None, None, False, False, False, inf, f64, tiles),
        lambda: (transposed(N), transposed(M), number(), *diagonal, None, None, False, True, False, inf, f64, tiles),
        lambda: (rows(N), rows(M, False), number(), *nothing, None, None, False, False, True, inf, f64, tiles),
        lambda: (rows(N), rows(M, False), number(False), *diagonal, IDS, KEY_IDS, False, False, True, inf, f64, tiles),
    ],
    "self_lse": [
        lambda: (rows(N), vector(D).requires_grad_(), number(), *modulo, None, False, inf, f64, tiles),
        lambda: (rows(N), vector(D), number(False), *modulo, None, False, inf, f64, tiles),
        lambda: (rows(N, False), vector(D).requires_grad_(), number(), *diagonal, IDS, True, inf, f64, tiles),
        lambda: (transposed(N), None, number(), *modulo, IDS, False, inf, f64, tiles),
    ],
    "pair_softplus": [
        lambda: (rows(N), rows(M), number(), number(), *diagonal, None, None, False, f64, tiles, True),
        lambda: (rows(N, False), rows(M, False), *[number(False)] * 2, *diagonal, None, None, False, f64, tiles, False),
        lambda: (transposed(N), rows(M), number(), number(), *nothing, IDS, KEY_IDS, False, f64, tiles, True),
    ],
}


every_call = pytest.mark.parametrize(
    ("name", "index"), [(name, i) for name, calls in CALLS.items() for i in range(len(calls))]
)
# They return their gradients beside the value, which opcheck would differentiate as if they were results. What it tests
# there, a compiled backward pass with and without static shapes, the loss modules' tests do through the value.
CARRY_GRADIENTS = ("pair_softplus",)
WITHOUT_BACKWARD = ("test_schema", "test_autograd_registration", "test_faketensor")


def value_of(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


@every_call
def test_opcheck(name: str, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_tiles(monkeypatch, 4)
    checks = WITHOUT_BACKWARD if name in CARRY_GRADIENTS else (*WITHOUT_BACKWARD, "test_aot_dispatch_dynamic")
    outcome = torch.library.opcheck(getattr(operators, name), CALLS[name][index](), test_utils=checks)
    assert set(outcome.values()) == {"SUCCESS"}, outcome


@every_call
def test_opcheck_of_the_backward_pass(name: str, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the arguments of a real backward pass."""
    if not hasattr(operators, f"{name}_backward"):
        assert name in CARRY_GRADIENTS
        return
    use_small_tiles(monkeypatch, 4)
    operator, seen = getattr(operators, f"{name}_backward"), []
    monkeypatch.setattr(
        operators, f"{name}_backward", lambda *arguments: seen.append(arguments) or operator(*arguments)
    )
    result = getattr(operators, name)(*CALLS[name][index]())
    total = sum(x.sum() for x in result[: 2 if name == "pair_lse" else 1])  # what is saved has no gradient
    total.backward()
    (arguments,) = seen
    plain = tuple(x.detach() if isinstance(x, Tensor) else x for x in arguments)
    outcome = torch.library.opcheck(operator, plain)
    assert set(outcome.values()) == {"SUCCESS"}, outcome


def test_every_operator_is_checked() -> None:
    kind = type(operators.pair_lse)
    registered = {name for name, value in vars(operators).items() if isinstance(value, kind)}
    assert registered == {*CALLS, "pair_lse_backward", "self_lse_backward"}


@pytest.mark.parametrize("name", CALLS)
def test_a_second_derivative_says_what_to_do(name: str) -> None:
    arguments = CALLS[name][0]()
    value = value_of(getattr(operators, name)(*arguments))
    leaf = arguments[0]
    (gradient,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
    assert gradient.any()
    with pytest.raises(RuntimeError, match='no second derivative; pass impl="dense"'):
        torch.autograd.grad(gradient.square().sum(), leaf)


def test_a_gradient_of_the_gradients_it_carries_is_refused() -> None:
    """Outputs beside the value serve the backward pass; nobody may differentiate them."""
    arguments = CALLS["pair_softplus"][0]()
    carried = operators.pair_softplus(*arguments)[1]
    with pytest.raises(RuntimeError, match='no second derivative; pass impl="dense"'):
        torch.autograd.grad(carried.sum(), arguments[0])


def test_a_gradient_that_nobody_wants_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = operators.tiled.pair_backward

    def recorded(*arguments):
        seen.append(tuple(arguments[-1]))
        return original(*arguments)

    monkeypatch.setattr(operators.tiled, "pair_backward", recorded)
    for needs in ((True, True, True), (True, False, False), (False, True, False), (False, False, True)):
        inputs = rows(N, needs[0]), rows(M, needs[1]), number(needs[2])
        row, column, _ = operators.pair_lse(
            *inputs, *diagonal, None, None, False, True, False, inf, torch.float64, "tiled"
        )
        (row.sum() + column.sum()).backward()
        assert seen.pop() == needs
        assert tuple(x.grad is not None for x in inputs) == needs
