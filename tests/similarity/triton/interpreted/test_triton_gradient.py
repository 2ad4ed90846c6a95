"""Gradient kernels against float64 autograd: in registers, through panels, one set, softplus."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ssl_heads.similarity.backend import LogSum, Needs
from ssl_heads.similarity.exclusion import Exclusion
from ssl_heads.similarity.triton import arguments, backward, forward, kernels
from tests.checks import assert_gradient_close
from tests.similarity.triton.interpreted.literal import (
    TOLERANCE,
    Matrix,
    embeddings,
    exclusions,
    log_sum_exp,
    surrounded,
)

N, M = 39, 53  # two tiles of 32 each way, both ragged
REGISTERS, PANELS = 37, 300
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
pytestmark = [pytest.mark.usefixtures("poisoned_memory"), pytest.mark.filterwarnings("ignore:divide by zero")]


ALL = Needs()


class Found(NamedTuple):
    query: Tensor
    key: Tensor
    scale: Tensor


def matrix(pattern: str, dtype: torch.dtype = torch.float32, width: int = REGISTERS) -> Matrix:
    return Matrix(embeddings(N, width, dtype), embeddings(M, width, dtype), 14.0, exclusions(N, M)[pattern])


def differentiate(s: Matrix, g: Tensor, h: Tensor | None, bound: float, needs: Needs = ALL) -> Found:
    row, column, saved = forward.pair_forward(s.given(bound), h is not None)
    of_columns = None if h is None else LogSum(surrounded(column), h)
    found = backward.pair_backward(s.given(bound), LogSum(surrounded(row), g), of_columns, saved, False, needs)
    return Found(*found)


def reference(s: Matrix, g: Tensor, h: Tensor | None) -> Matrix:
    """Gradients of `g . row + h . column` by float64 autograd, in the fields of their leaves."""
    leaves = s.leaves()
    logits = leaves.logits()
    value = logits.new_zeros(())
    for dim, upstream in ((1, g), (0, h)):
        if upstream is not None:
            lse = log_sum_exp(logits, dim)
            value = value + (upstream.double() * lse.masked_fill(lse == -math.inf, 0.0)).sum()
    return gradients_of(value, leaves)


def gradients_of(value: Tensor, leaves: Matrix) -> Matrix:
    value.backward()
    query, key, scale, exclusion, bias = leaves
    return Matrix(query.grad, key.grad, scale.grad, exclusion, bias.grad)  # type: ignore[arg-type,attr-defined]


def assert_right(actual: Found, expected: Matrix, dtype: torch.dtype) -> None:
    """By relative norm; all gradients are in fp32, whatever the embeddings are."""
    for name in ("query", "key"):
        assert getattr(actual, name).dtype == torch.float32
        assert_gradient_close(getattr(actual, name), getattr(expected, name), TOLERANCE[dtype])
    # a sum of both signs: its terms are larger than it is
    assert_gradient_close(actual.scale, expected.scale.reshape(1), max(TOLERANCE[dtype], 1e-4))  # type: ignore[attr-defined]


def upstream(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Of both signs, as small as in a mean over a large batch; for float16 as large as in a scaled loss."""
    size = 1.0 if dtype == torch.float16 else 1e-6
    return surrounded(size * torch.randn(N)), surrounded(size * torch.randn(M))


@pytest.mark.parametrize("bound", [math.inf, 30.0])
@pytest.mark.parametrize("pattern", list(exclusions(1, 1)))
def test_both_sides(pattern: str, bound: float) -> None:
    s, (g, h) = matrix(pattern), upstream()
    assert_right(differentiate(s, g, h, bound), reference(s, g, h), torch.float32)


@pytest.mark.parametrize("bound", [math.inf, 30.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 200, PANELS])
def test_widths_and_dtypes(width: int, dtype: torch.dtype, bound: float) -> None:
    s, (g, h) = matrix("ids and diagonal", dtype, width), upstream(dtype)
    assert_right(differentiate(s, g, h, bound), reference(s, g, h), dtype)


@pytest.mark.parametrize("width", [REGISTERS, PANELS])
@pytest.mark.parametrize("bound", [math.inf, 30.0])
@pytest.mark.parametrize("side", ["rows", "columns"])
def test_one_side(side: str, bound: float, width: int) -> None:
    s, (g, h) = matrix("diagonal left", width=width), upstream()
    sides = (g, None) if side == "rows" else (torch.zeros_like(g), h)
    assert_right(differentiate(s, *sides, bound), reference(s, *sides), torch.float32)


@pytest.mark.parametrize("width", [REGISTERS, PANELS])
def test_only_what_is_needed(width: int) -> None:
    """A queue of keys gets no gradient; a scale alone costs no gradient of the other side."""
    s, (g, _) = matrix("nothing", width=width), upstream()
    expected = reference(s, g, None)
    for needs in (Needs(key=False), Needs(query=False), Needs(query=False, key=False)):
        found = differentiate(s, g, None, math.inf, needs)
        for name in ("query", "key"):
            if getattr(needs, name):
                assert_gradient_close(getattr(found, name), getattr(expected, name), 1e-5)
            else:
                assert getattr(found, name).numel() == 0
        assert_gradient_close(found.scale, expected.scale.reshape(1), 1e-5)  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [REGISTERS, PANELS])
def test_logits_of_two_hundred(width: int) -> None:
    for sign in (-1.0, 1.0):
        direction = torch.nn.functional.normalize(torch.randn(1, width))
        query = surrounded(direction + 0.05 / width**0.5 * torch.randn(N, width))
        key = surrounded(sign * direction + 0.05 / width**0.5 * torch.randn(M, width))
        s, (g, h) = Matrix(query, key, 200.0, Exclusion.diagonal(N, M)), upstream()
        found, expected = differentiate(s, g, h, math.inf), reference(s, g, h)
        # a logit of 200 is known to 200 * 2^-24, and so is its exponential
        assert_gradient_close(found.query, expected.query, 5e-5)
        assert_gradient_close(found.key, expected.key, 5e-5)


@pytest.mark.parametrize("width", [REGISTERS, PANELS])
@pytest.mark.parametrize("bound", [math.inf, 30.0])
def test_rows_and_columns_without_negatives(bound: float, width: int) -> None:
    s, (g, h) = matrix("nothing", width=width), upstream()
    query_ids, key_ids = torch.arange(N) % 3, torch.zeros(M, dtype=torch.long)
    key_ids[-30:] = torch.arange(30) % 3
    query_ids[12:], key_ids[5] = 0, 2
    s = s._replace(exclusion=Exclusion.equal_ids(query_ids, key_ids))
    assert_right(differentiate(s, g, h, bound), reference(s, g, h), torch.float32)
    found = differentiate(s._replace(exclusion=Exclusion(period=1)), g, h, bound)
    assert all(bool((gradient == 0).all()) for gradient in found)


@pytest.mark.parametrize("bound", [math.inf, 30.0])
@pytest.mark.parametrize("width", [REGISTERS, PANELS])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_set(dtype: torch.dtype, width: int, bound: float) -> None:
    """One kernel gives `(W + W^T) key`: the gradient of both uses of the embeddings."""
    n = 94
    x = embeddings(n, width, dtype)
    weight = torch.rand(width, dtype=torch.float64).to(dtype)
    query = (x * weight).contiguous()
    g, exclusion = surrounded(torch.randn(n)), Exclusion.modulo(47)
    symmetric = query.double() @ x.double().T
    given = Matrix(query, x, 8.0, exclusion).given(bound)
    row, saved = forward.self_forward(given)
    product, by_scale = backward.self_backward(given, LogSum(surrounded(row), g), saved, needs_scale=True)

    s = Matrix(query, x, 8.0, exclusion).leaves()
    expected = gradients_of((g.double() * log_sum_exp(s.logits(), 1)).sum(), s)
    assert float((symmetric - symmetric.T).norm() / symmetric.norm()) < 10 * TOLERANCE[dtype]
    tolerance = 1e-5 if dtype == torch.float32 else 3 * TOLERANCE[dtype]  # rounding of the query breaks the symmetry
    # the gradient of x through S is W^T query from its use as a key and diag(w) W key from its use as a query
    weight_ = weight.double()
    assert product.dtype == torch.float32
    assert_gradient_close(product * weight_, expected.query * weight_ + expected.key, tolerance)
    assert_gradient_close(by_scale, expected.scale.reshape(1), tolerance)  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [REGISTERS, PANELS])
@pytest.mark.parametrize("dtype", DTYPES)
def test_softplus(dtype: torch.dtype, width: int) -> None:
    s = matrix("diagonal right", dtype, width)._replace(bias=-10.0)
    _, *found, by_bias = backward.softplus(s.given(), torch.tensor([-10.0]), gradient=True)
    leaves = s.leaves()
    expected = gradients_of(torch.nn.functional.softplus(leaves.logits(), threshold=1e4).sum(), leaves)
    assert_right(Found(*found), expected, dtype)
    assert_gradient_close(by_bias, expected.bias.reshape(1), TOLERANCE[dtype])  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [REGISTERS, PANELS])
def test_several_panels_and_splits(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backward, "PANEL_BYTES", 32 * 48 * 4)
    monkeypatch.setattr(backward, "PANEL_COLUMNS", 48)
    query, key = embeddings(N, width, torch.float32), embeddings(210, width, torch.float32)
    s = Matrix(query, key, 14.0, Exclusion.diagonal(N, 210, 60))
    g, h = torch.randn(N), torch.randn(210)
    assert_right(differentiate(s, g, h, math.inf), reference(s, g, h), torch.float32)


def test_small_weights_survive_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flat softmax, and a row with a thousandth of the largest gradient: its weights are subnormal in float16."""
    direction = torch.nn.functional.normalize(torch.ones(1, REGISTERS))
    query, key = ((direction + 1e-4 * torch.randn(n, REGISTERS)).half() for n in (40, 500))
    s, g = Matrix(query, key, 8.0, Exclusion.nothing()), torch.ones(40)
    g[7] = 9.92e-4  # weights of 33.28 units of float16's subnormals
    expected = reference(s, g, None)

    def check() -> None:
        found = differentiate(s, g, None, math.inf, Needs(key=False))
        assert_gradient_close(found.query[7:8], expected.query[7:8], 1e-3)

    check()
    monkeypatch.setitem(backward.WEIGHT_SCALE, torch.float16, 1.0)
    with pytest.raises(AssertionError):
        check()


def test_two_runs_are_bitwise_equal() -> None:
    for width in (REGISTERS, PANELS):
        s, (g, h) = matrix("ids", width=width), upstream()
        first, second = differentiate(s, g, h, math.inf), differentiate(s, g, h, math.inf)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_empty(shape: tuple[int, int]) -> None:
    query, key = torch.randn(shape[0], 8), torch.randn(shape[1], 8)
    found = differentiate(Matrix(query, key, 1.0, Exclusion.nothing()), torch.ones(shape[0]), None, math.inf)
    assert found.query.shape == query.shape
    assert found.key.shape == key.shape
    assert bool((found.key == 0).all())


# ------------------------------------------------------------------------------- a broken kernel fails the checks above


def refuses(bound: float = math.inf) -> None:
    with pytest.raises(AssertionError):
        test_both_sides("diagonal right", bound)
    with pytest.raises(AssertionError):
        test_widths_and_dtypes(PANELS, torch.float32, bound)


@pytest.mark.parametrize("bound", [math.inf, 30.0])
def test_wrong_weights_are_noticed(bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    original = kernels.pair_weights
    for mutate in (
        lambda w: -w,
        lambda w: w * 0,
        lambda w: w * (kernels.tl.abs(w) < 1e-2),  # large weights filtered
        lambda w: w * (kernels.tl.abs(w) > 1e-3),  # small weights filtered
    ):
        monkeypatch.setattr(kernels, "pair_weights", lambda *a, mutate=mutate: mutate(original(*a)))
        refuses(bound)


def test_swapped_sides_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = kernels.pair_weights

    def swapped(x: Any, a: Any, b: Any, c: Any, d: Any, *flags: Any) -> Any:
        return original(x, a, b * 0.5, c, d * 2.0, *flags)

    monkeypatch.setattr(kernels, "pair_weights", swapped)
    refuses()


def test_a_missing_mask_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "leave_out", lambda x, *_: x)
    refuses()


def test_a_pattern_that_is_not_transposed_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of the keys runs on S^T: its diagonal lies on the other side."""
    transposed = arguments.KernelMatrix.transposed
    monkeypatch.setattr(
        arguments.KernelMatrix, "transposed", lambda self: transposed(self)._replace(exclusion=self.exclusion)
    )
    with pytest.raises(AssertionError):
        test_both_sides("diagonal right", math.inf)
