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
CALLS = {
    "pair_lse": [
        lambda: (rows(N), rows(M), *diagonal, None, None, False, True, inf),
        lambda: (rows(N), rows(M), *nothing, None, None, False, False, inf),
        lambda: (rows(N), rows(M), *nothing, IDS, KEY_IDS, False, True, inf),
        lambda: (rows(N), rows(M, False), *diagonal, IDS, KEY_IDS, True, True, 50.0),
        lambda: (rows(N, False), rows(M), *diagonal, None, None, False, False, inf),
        lambda: (transposed(N), transposed(M), *diagonal, None, None, False, True, inf),
    ],
    "self_lse": [
        lambda: (rows(N), vector(D).requires_grad_(), *modulo, None, False, inf),
        lambda: (rows(N), vector(D), *modulo, None, False, inf),
        lambda: (rows(N, False), vector(D).requires_grad_(), *diagonal, IDS, True, inf),
        lambda: (transposed(N), vector(D).requires_grad_(), *modulo, IDS, False, inf),
    ],
    "attend_lse": [
        lambda: (rows(N), rows(M, False), *nothing, None, None, False, inf),
        lambda: (rows(N), rows(M, False), *diagonal, IDS, KEY_IDS, False, inf),
        lambda: (transposed(N), transposed(M).detach(), *nothing, None, None, False, inf),
    ],
    "softplus_sum": [
        lambda: (rows(N), rows(M), vector(1)[0].requires_grad_(), *diagonal, True),
        lambda: (rows(N, False), rows(M, False), vector(1)[0], *diagonal, False),
        lambda: (transposed(N), rows(M), vector(1)[0].requires_grad_(), *nothing, True),
    ],
}


every_call = pytest.mark.parametrize(
    ("name", "index"), [(name, i) for name, calls in CALLS.items() for i in range(len(calls))]
)
# They return their gradients beside the value, which opcheck would differentiate as if they were results. What it tests
# there, a compiled backward pass with and without static shapes, the loss modules' tests do through the value.
CARRY_GRADIENTS = ("attend_lse", "softplus_sum")
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
    total = sum(x.sum() for x in ((result,) if isinstance(result, Tensor) else result))
    total.backward()
    (arguments,) = seen
    plain = tuple(x.detach() if isinstance(x, Tensor) else x for x in arguments)
    outcome = torch.library.opcheck(operator, plain)
    assert set(outcome.values()) == {"SUCCESS"}, outcome


def test_every_operator_is_checked() -> None:
    kind = type(operators.pair_lse)
    registered = {name for name, value in vars(operators).items() if isinstance(value, kind)}
    assert registered == {*CALLS, "pair_lse_backward", "self_lse_backward"}


@pytest.mark.parametrize("name", ["pair_lse", "self_lse", "attend_lse", "softplus_sum"])
def test_a_second_derivative_says_what_to_do(name: str) -> None:
    arguments = CALLS[name][0]()
    value = value_of(getattr(operators, name)(*arguments))
    leaf = arguments[0]
    (gradient,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
    assert gradient.any()
    with pytest.raises(RuntimeError, match='no second derivative; pass impl="dense"'):
        torch.autograd.grad(gradient.square().sum(), leaf)


@pytest.mark.parametrize("name", CARRY_GRADIENTS)
def test_a_gradient_of_the_gradients_it_carries_is_refused(name: str) -> None:
    """Outputs beside the value serve the backward pass; nobody may differentiate them."""
    arguments = CALLS[name][0]()
    carried = getattr(operators, name)(*arguments)[1]
    with pytest.raises(RuntimeError, match='no second derivative; pass impl="dense"'):
        torch.autograd.grad(carried.sum(), arguments[0])


def test_a_gradient_that_nobody_wants_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = operators.tiled.pair_backward

    def recorded(*arguments):
        seen.append(arguments[-2:])
        return original(*arguments)

    monkeypatch.setattr(operators.tiled, "pair_backward", recorded)
    for needs in ((True, True), (True, False), (False, True)):
        query, key = rows(N, needs[0]), rows(M, needs[1])
        row, column, _ = operators.pair_lse(query, key, *diagonal, None, None, False, True, inf)
        (row.sum() + column.sum()).backward()
        assert seen.pop() == needs
        assert (query.grad is not None, key.grad is not None) == needs
