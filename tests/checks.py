"""What it means that a gradient is right, and the proof that the check can fail."""

from __future__ import annotations

import torch
from torch import Tensor


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """``|actual - expected| / |expected|`` in float64; NaN counts as infinitely wrong."""
    actual, expected = actual.detach().double(), expected.detach().double()
    if actual.shape != expected.shape:
        raise AssertionError(f"shapes differ: {tuple(actual.shape)} and {tuple(expected.shape)}")
    error = float((actual - expected).norm() / expected.norm())
    return error if error == error else float("inf")


def assert_gradient_close(actual: Tensor | None, expected: Tensor | None, rtol: float) -> None:
    """The gradient is right by relative norm, and the same check refuses a zeroed, flipped and transposed one."""
    assert actual is not None
    assert expected is not None
    assert expected.double().norm() > 0, "a zero expectation accepts a zero gradient: use another input"
    error = relative_error(actual, expected)
    assert error <= rtol, f"relative error {error:.2e} above {rtol:.0e}"
    for name, mutant in mutants(actual):
        wrong = relative_error(mutant, expected)
        assert wrong > rtol, f"the check is vacuous: it accepts a {name} gradient"


def mutants(gradient: Tensor) -> list[tuple[str, Tensor]]:
    """Gradients with the mistakes that a loose tolerance would accept."""
    wrong = [("zeroed", torch.zeros_like(gradient)), ("sign-flipped", -gradient)]
    if gradient.ndim == 2 and min(gradient.shape) > 1:
        wrong.append(("transposed", gradient.T.reshape(gradient.shape)))
    return wrong


def assert_same(a: object, b: object) -> None:
    """Nested states are equal, tensors bit for bit."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b
