"""Forward kernels against float64: every mode, pattern and dtype, at shapes that end inside a tile."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_heads.similarity.exclusion import Exclusion
from ssl_heads.similarity.triton import arguments, forward, kernels
from ssl_heads.similarity.triton.backward import softplus
from tests.similarity.triton.interpreted.literal import Matrix, embeddings, exclusions, log_sum_exp, surrounded

N, M = 39, 53  # two tiles of 32 each way, both ragged
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
pytestmark = [pytest.mark.usefixtures("poisoned_memory"), pytest.mark.filterwarnings("ignore:divide by zero")]


def matrix(pattern: str, dtype: torch.dtype = torch.float32, width: int = 37) -> Matrix:
    return Matrix(embeddings(N, width, dtype), embeddings(M, width, dtype), 14.0, exclusions(N, M)[pattern])


def compute(s: Matrix, bound: float, columns: bool = True) -> tuple[Tensor, Tensor]:
    row, column, saved = forward.pair_forward(s.given(bound), columns)
    assert saved.numel() == 0
    return row, column


def assert_same(actual: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    """Equal where finite, `-inf` in the same places, fp32."""
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected.detach(), rtol=2e-6, atol=atol)


@pytest.mark.parametrize("bound", [math.inf, 30.0])
@pytest.mark.parametrize("pattern", list(exclusions(1, 1)))
def test_rows_and_columns(pattern: str, bound: float) -> None:
    s = matrix(pattern)
    row, column = compute(s, bound)
    logits = s.leaves().logits()
    assert_same(row, log_sum_exp(logits, 1))
    assert_same(column, log_sum_exp(logits, 0))


@pytest.mark.parametrize("bound", [math.inf, 30.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 100, 300])
def test_widths_and_dtypes(width: int, dtype: torch.dtype, bound: float) -> None:
    s = matrix("diagonal right", dtype, width)
    row, column = compute(s, bound)
    logits = s.leaves().logits()
    assert_same(row, log_sum_exp(logits, 1))
    assert_same(column, log_sum_exp(logits, 0))


@pytest.mark.parametrize("bound", [math.inf, 30.0])
def test_rows_alone(bound: float) -> None:
    s = matrix("ids and diagonal")
    row, column = compute(s, bound, columns=False)
    assert column.shape == (0,)
    assert_same(row, log_sum_exp(s.leaves().logits(), 1))


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_logits_of_two_hundred(sign: float) -> None:
    """Every logit near -200: a padded column that counted as logit 0 would be all that is left of the sum."""
    direction = torch.randn(1, 64)
    direction /= direction.norm()
    query = surrounded(direction + 0.02 * torch.randn(N, 64))
    key = surrounded(sign * direction + 0.02 * torch.randn(M, 64))
    s = Matrix(query, key, 200.0, Exclusion.diagonal(N, M))
    row, column = compute(s, math.inf)
    logits = s.leaves().logits()
    assert float(logits.detach()[0, 1].abs()) > 150
    assert_same(row, log_sum_exp(logits, 1), atol=2e-4)
    assert_same(column, log_sum_exp(logits, 0), atol=2e-4)


@pytest.mark.parametrize("bound", [math.inf, 30.0])
def test_rows_and_columns_without_negatives(bound: float) -> None:
    s = matrix("nothing")
    query_ids, key_ids = torch.arange(N) % 5, torch.arange(M) % 7
    query_ids[3], key_ids[:] = 0, key_ids * 0
    query_ids[8:] = 0
    s = s._replace(exclusion=Exclusion.equal_ids(query_ids, key_ids))
    row, column = compute(s, bound)
    logits = s.leaves().logits()
    assert int((log_sum_exp(logits, 1) == -math.inf).sum()) > 30
    assert_same(row, log_sum_exp(logits, 1))
    assert_same(column, log_sum_exp(logits, 0))
    everything = Exclusion(period=1)
    row, column = compute(s._replace(exclusion=everything), bound)
    assert bool((row == -math.inf).all())
    assert bool((column == -math.inf).all())


@pytest.mark.parametrize("bound", [math.inf, 30.0])
@pytest.mark.parametrize("n", [1, 31, 64, 70, 97, 128, 140])
def test_one_set(n: int, bound: float) -> None:
    """An even and an odd number of row blocks, full and ragged; S is symmetric through a weight on the query side."""
    x = embeddings(n, 50, torch.float32)
    query = x * torch.rand(50)
    s = Matrix(query, x, 8.0, Exclusion.modulo(max(n // 2, 1)))
    row, _ = forward.self_forward(s.given(bound))
    assert_same(row, log_sum_exp(s.leaves().logits(), 1))


@pytest.mark.parametrize("bound", [math.inf, 30.0])
def test_one_set_with_ids(bound: float) -> None:
    x, ids = embeddings(100, 128, torch.bfloat16), surrounded(torch.randint(0, 9, (100,)))
    exclusion = Exclusion(0, 50, ids, ids)
    s = Matrix(x, x, 5.0, exclusion)
    row, _ = forward.self_forward(s.given(bound))
    assert_same(row, log_sum_exp(s.leaves().logits(), 1))


@pytest.mark.parametrize("bound", [math.inf, 30.0])
def test_column_partials_in_several_launches(bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "PARTIAL_BYTES", 4 * 150)
    s = matrix("diagonal")
    row, column = compute(s, bound)
    assert_same(row, log_sum_exp(s.leaves().logits(), 1))
    assert_same(column, log_sum_exp(s.leaves().logits(), 0))
    x = embeddings(140, 37, torch.float32)
    one = Matrix(x, x, 14.0, Exclusion.modulo(70))
    row, _ = forward.self_forward(one.given(bound))
    assert_same(row, log_sum_exp(one.leaves().logits(), 1))


@pytest.mark.parametrize("bound", [math.inf, 30.0])
def test_column_splits(bound: float) -> None:
    """Few rows and many columns, as with a queue: several programs share a row block."""
    query, key = embeddings(20, 37, torch.float32), embeddings(1000, 37, torch.float32)
    assert arguments.column_splits(1, 32, query.device) > 1
    s = Matrix(query, key, 14.0, Exclusion.nothing())
    assert_same(compute(s, bound, columns=False)[0], log_sum_exp(s.leaves().logits(), 1))


def softplus_of(s: Matrix) -> tuple[Tensor, Tensor]:
    """The sum by the kernels, and by its definition."""
    total, *gradients = softplus(s.given(), torch.tensor([s.bias]), gradient=False)
    assert not any(gradient.numel() for gradient in gradients)
    return total.double(), torch.nn.functional.softplus(s.leaves().logits().detach(), threshold=1e4).sum()


@pytest.mark.parametrize("bias", [-10.0, 0.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", ["diagonal right", "ids and diagonal"])
def test_softplus(pattern: str, dtype: torch.dtype, bias: float) -> None:
    torch.testing.assert_close(*softplus_of(matrix(pattern, dtype)._replace(bias=bias)), rtol=3e-6, atol=0.0)


def test_softplus_of_large_logits() -> None:
    torch.testing.assert_close(*softplus_of(matrix("short period")._replace(scale=400.0)), rtol=3e-6, atol=0.0)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty(shape: tuple[int, int]) -> None:
    query, key = torch.randn(shape[0], 8), torch.randn(shape[1], 8)
    row, column, _ = forward.pair_forward(Matrix(query, key, 1.0, Exclusion.nothing()).given(), columns=True)
    assert row.tolist() == [-math.inf] * shape[0]
    assert column.tolist() == [-math.inf] * shape[1]


def test_any_strides() -> None:
    s = matrix("diagonal")
    wide = torch.randn(N, 2 * 37)
    wide[:, ::2] = s.query
    strided = s._replace(query=wide[:, ::2], key=s.key.T.contiguous().T)
    for actual, expected in zip(compute(strided, math.inf), compute(s, math.inf), strict=True):
        assert torch.equal(actual, expected)


# ------------------------------------------------------------------------------- a broken kernel fails the checks above


def broken(monkeypatch: pytest.MonkeyPatch, name: str, mutant: Any) -> None:
    monkeypatch.setattr(kernels, name, mutant)


def test_a_padded_column_that_counts_as_zero_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = kernels.leave_out

    def without_an_end(x: Any, first_row: Any, first_column: Any, N: Any, M: Any, *rest: Any) -> Any:
        return original(x, first_row, first_column, 10**6, 10**6, *rest)

    broken(monkeypatch, "leave_out", without_an_end)
    for bound in (math.inf, 30.0):
        with pytest.raises(AssertionError):
            test_rows_and_columns("nothing", bound)
    with pytest.raises(AssertionError):
        test_logits_of_two_hundred(-1.0)


def test_a_missing_mask_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, "leave_out", lambda x, *_: x)
    for pattern in exclusions(1, 1):
        if pattern != "nothing":
            with pytest.raises(AssertionError):
                test_rows_and_columns(pattern, math.inf)


def test_a_mirrored_mask_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = kernels.leave_out

    def mirrored(x: Any, row: Any, column: Any, N: Any, M: Any, q: Any, k: Any, offset: Any, *rest: Any) -> Any:
        return original(x, row, column, N, M, q, k, -offset, *rest)

    broken(monkeypatch, "leave_out", mirrored)
    for pattern in ("diagonal right", "diagonal left", "short period", "period of a tile and more"):
        with pytest.raises(AssertionError):
            test_rows_and_columns(pattern, math.inf)
