"""Closed-form forward and backward over tiles: the matrix of similarities is never stored.

All functions work on plain tensors of one dtype (fp32 or fp64), with the scale already multiplied into the query.

One exponential a pair. With a common shift ``c``, ``e_ij = exp(S_ij - c)`` serves its row and its column, and no
running maximum is needed. ``c`` is chosen so that no sum can overflow, given ``|S| <= bound``; whether something that
matters underflowed is seen in the sums themselves (`is_exact`), and then the online path runs instead. The backward
asks the same question of the saved log-sum-exp, so both passes are exact by construction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ssl_heads.similarity.exclusion import Exclusion

# Rows and columns of a tile, by bytes an element. A tile and its operands should stay inside the last-level cache of a
# core pair and be large enough for a matrix product at full rate: see docs/performance.md.
TILE = {4: 1024, 8: 512}


def blocks(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most ``size`` rows."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


class Workspace:
    """One buffer that all tiles of a pass share."""

    def __init__(self, like: Tensor, rows: int, columns: int) -> None:
        self.size = TILE[like.element_size()]
        self.buffer = like.new_empty(min(rows, self.size) * min(columns, self.size))

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """An uninitialised matrix for the pairs ``rows x columns``."""
        height, width = rows.stop - rows.start, columns.stop - columns.start
        return self.buffer[: height * width].view(height, width)

    def product(self, query: Tensor, key: Tensor, rows: slice, columns: slice) -> Tensor:
        """The logits of one tile."""
        return torch.mm(query[rows], key[columns].t(), out=self.tile(rows, columns))


# ---------------------------------------------------------------------------------------------------- the common shift


def largest_logit(query: Tensor, key: Tensor) -> float:
    """``max_i |q_i| * max_j |k_j| >= max_ij |S_ij|``, by Cauchy and Schwarz."""
    return float(query.norm(dim=1).max()) * float(key.norm(dim=1).max())


def common_shift(bound: float, count: int, dtype: torch.dtype) -> float:
    """The smallest shift with which ``count`` exponentials of logits below ``bound`` cannot overflow."""
    return max(0.0, bound - (math.log(torch.finfo(dtype).max) - math.log(count) - 1.0))


def is_exact(log_sum: Tensor, shift: float, bound: float, count: int) -> bool:
    """Whether all that underflowed is below the rounding of every sum."""
    if not math.isfinite(bound):
        return False
    info = torch.finfo(log_sum.dtype)
    if shift + bound < -math.log(info.tiny):
        return True
    return bool((log_sum - shift).min() > math.log(info.tiny * count / info.eps))


def inverse_sum(gradient: Tensor, log_sum: Tensor, shift: float) -> Tensor:
    """``g_i exp(c - lse_i)``: what a tile of ``exp(S - c)`` is multiplied by; zero for a row without negatives."""
    return gradient * torch.exp(shift - without_infinity(log_sum))


def without_infinity(log_sum: Tensor) -> Tensor:
    """A row without negatives has the log-sum-exp ``-inf``; ``+inf`` makes each of its weights zero."""
    return torch.where(log_sum == -torch.inf, torch.inf, log_sum)


# ----------------------------------------------------------------------------------------------------------- two sets


def pair_forward(query: Tensor, key: Tensor, exclusion: Exclusion, columns: bool, bound: float) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of all rows, and of all columns on request (else an empty tensor)."""
    n, m = query.shape[0], key.shape[0]
    count = max(n, m)
    shift = common_shift(bound, count, query.dtype) if math.isfinite(bound) else 0.0
    if math.isfinite(bound):
        row, column = _pair_sums(query, key, exclusion, columns, shift)
        if is_exact(row, shift, bound, count) and (not columns or is_exact(column, shift, bound, count)):
            return row, column
    return _pair_online(query, key, exclusion, columns)


def _pair_sums(
    query: Tensor, key: Tensor, exclusion: Exclusion, columns: bool, shift: float
) -> tuple[Tensor, Tensor]:
    n, m = query.shape[0], key.shape[0]
    row, column = query.new_zeros(n), query.new_zeros(m if columns else 0)
    work = Workspace(query, n, m)
    for i in blocks(n, work.size):
        for j in blocks(m, work.size):
            e = exponentials(work, query, key, i, j, shift, exclusion)
            row[i] += e.sum(1)
            if columns:
                column[j] += e.sum(0)
    return row.log_().add_(shift), column.log_().add_(shift)


def exponentials(
    work: Workspace, query: Tensor, key: Tensor, i: slice, j: slice, shift: float, exclusion: Exclusion
) -> Tensor:
    """``exp(S_ij - c)`` of one tile, zero where a pair is left out."""
    s = work.product(query, key, i, j)
    if shift:
        s.sub_(shift)
    return exclusion.fill_(s.exp_(), i, j, 0.0)


def _pair_online(query: Tensor, key: Tensor, exclusion: Exclusion, columns: bool) -> tuple[Tensor, Tensor]:
    n, m = query.shape[0], key.shape[0]
    row, column = query.new_full((n,), -torch.inf), query.new_full((m if columns else 0,), -torch.inf)
    work = Workspace(query, n, m)
    for i in blocks(n, work.size):
        for j in blocks(m, work.size):
            s = exclusion.fill_(work.product(query, key, i, j), i, j, -torch.inf)
            row[i] = torch.logaddexp(row[i], s.logsumexp(1))
            if columns:
                column[j] = torch.logaddexp(column[j], s.logsumexp(0))
    return row, column


def pair_backward(
    query: Tensor,
    key: Tensor,
    row: Tensor,
    column: Tensor,
    row_gradient: Tensor,
    column_gradient: Tensor,
    exclusion: Exclusion,
    bound: float,
    needs_query: bool,
    needs_key: bool,
) -> tuple[Tensor, Tensor]:
    """``W k`` and ``W^T q`` with ``W_ij = g_i exp(S_ij - row_i) + h_j exp(S_ij - column_j)``."""
    n, m = query.shape[0], key.shape[0]
    columns = column.numel() > 0
    weights = PairWeights(row, column if columns else None, row_gradient, column_gradient, exclusion, bound, max(n, m))
    query_gradient = torch.zeros_like(query) if needs_query else query.new_empty(0)
    key_gradient = torch.zeros_like(key) if needs_key else key.new_empty(0)
    work = Workspace(query, n, m)
    for i in blocks(n, work.size):
        for j in blocks(m, work.size):
            w = weights(work, query, key, i, j)
            if needs_query:
                query_gradient[i].addmm_(w, key[j])
            if needs_key:
                key_gradient[j].addmm_(w.t(), query[i])
    return query_gradient.mul_(weights.unit), key_gradient.mul_(weights.unit)


class PairWeights:
    """The gradient with respect to the logits, tile by tile, in units of the largest upstream gradient.

    Upstream gradients carry the small factor ``1 - p`` of a loss that is nearly solved; in their own unit the weights of
    a tile stay far from underflow.
    """

    def __init__(
        self,
        row: Tensor,
        column: Tensor | None,
        row_gradient: Tensor,
        column_gradient: Tensor,
        exclusion: Exclusion,
        bound: float,
        count: int,
    ) -> None:
        largest = row_gradient.abs().max()
        if column is not None:
            largest = torch.maximum(largest, column_gradient.abs().max())
        self.unit = torch.where(largest > 0, largest, 1)
        row_gradient, column_gradient = row_gradient / self.unit, column_gradient / self.unit
        self.row, self.row_gradient, self.exclusion = without_infinity(row), row_gradient, exclusion
        self.column = None if column is None else without_infinity(column)
        self.column_gradient = column_gradient
        self.shift = common_shift(bound, count, row.dtype) if math.isfinite(bound) else 0.0
        self.one_exponential = is_exact(row, self.shift, bound, count) and (
            column is None or is_exact(column, self.shift, bound, count)
        )
        self.a = inverse_sum(row_gradient, row, self.shift)
        self.b = None if column is None else inverse_sum(column_gradient, column, self.shift)

    def __call__(self, work: Workspace, query: Tensor, key: Tensor, i: slice, j: slice) -> Tensor:
        if self.one_exponential:
            e = exponentials(work, query, key, i, j, self.shift, self.exclusion)
            return e.mul_(self.a[i, None] if self.b is None else self.a[i, None] + self.b[None, j])
        s = self.exclusion.fill_(work.product(query, key, i, j), i, j, -torch.inf)
        if self.column is None:
            return s.sub_(self.row[i, None]).exp_().mul_(self.row_gradient[i, None])
        by_column = torch.exp(s - self.column[None, j]).mul_(self.column_gradient[None, j])
        return s.sub_(self.row[i, None]).exp_().mul_(self.row_gradient[i, None]).add_(by_column)


# ------------------------------------------------------------------------------------- one set: the matrix is symmetric


def self_forward(x: Tensor, weight: Tensor, exclusion: Exclusion, bound: float) -> Tensor:
    """Log-sum-exp of the rows of ``x diag(w) x^T``; a tile above the diagonal serves its rows and its columns."""
    n = x.shape[0]
    query = x * weight
    if math.isfinite(bound):
        shift = common_shift(bound, n, x.dtype)
        row = x.new_zeros(n)
        work = Workspace(x, n, n)
        for i, j in upper_triangle(n, work.size):
            e = exponentials(work, query, x, i, j, shift, exclusion)
            row[i] += e.sum(1)
            if i != j:
                row[j] += e.sum(0)
        row.log_().add_(shift)
        if is_exact(row, shift, bound, n):
            return row
    return _pair_online(query, x, exclusion, columns=False)[0]


def self_backward(
    x: Tensor, weight: Tensor, row: Tensor, row_gradient: Tensor, exclusion: Exclusion, bound: float
) -> Tensor:
    """``A x`` with the symmetric ``A_ij = g_i exp(S_ij - row_i) + g_j exp(S_ij - row_j)``."""
    n = x.shape[0]
    query = x * weight
    weights = PairWeights(row, row, row_gradient, row_gradient, exclusion, bound, n)
    product = torch.zeros_like(x)
    work = Workspace(x, n, n)
    for i, j in upper_triangle(n, work.size):
        a = weights(work, query, x, i, j)
        product[i].addmm_(a, x[j])
        if i != j:
            product[j].addmm_(a.t(), x[i])
    return product.mul_(weights.unit)


def upper_triangle(count: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Tiles on and above the diagonal."""
    for i in blocks(count, size):
        for start in range(i.start, count, size):
            yield i, slice(start, min(start + size, count))


# ----------------------------------------------------------------------------------------- keys that need no gradient


def attend(query: Tensor, key: Tensor, exclusion: Exclusion, bound: float) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of the rows and its gradient ``sum_j exp(S_ij - row_i) k_j``, in one sweep over the keys."""
    n, m = query.shape[0], key.shape[0]
    if math.isfinite(bound):
        shift = common_shift(bound, m, query.dtype)
        row, mean_key = query.new_zeros(n), torch.zeros_like(query)
        work = Workspace(query, n, m)
        for i in blocks(n, work.size):
            for j in blocks(m, work.size):
                e = exponentials(work, query, key, i, j, shift, exclusion)
                row[i] += e.sum(1)
                mean_key[i].addmm_(e, key[j])
        row.log_().add_(shift)
        if is_exact(row, shift, bound, m):
            return row, mean_key.mul_(torch.exp(shift - without_infinity(row))[:, None])
    row = _pair_online(query, key, exclusion, columns=False)[0]
    nothing = query.new_empty(0)
    mean_key, _ = pair_backward(
        query, key, row, nothing, torch.ones_like(row), nothing, exclusion, math.inf, needs_query=True, needs_key=False
    )
    return row, mean_key


# --------------------------------------------------------------------------------------------------------- elementwise


def softplus_sum(
    query: Tensor, key: Tensor, bias: Tensor, exclusion: Exclusion, needs_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``sum_ij softplus(S_ij + b)`` over negatives and its gradients with respect to query, key and b, in one pass."""
    n, m = query.shape[0], key.shape[0]
    total, bias_gradient = bias.new_zeros(()), bias.new_zeros(())
    query_gradient = torch.zeros_like(query) if needs_gradient else query.new_empty(0)
    key_gradient = torch.zeros_like(key) if needs_gradient else key.new_empty(0)
    work = Workspace(query, n, m)
    for i in blocks(n, work.size):
        for j in blocks(m, work.size):
            s = exclusion.fill_(work.product(query, key, i, j).add_(bias), i, j, -torch.inf)
            total += torch.nn.functional.softplus(s, threshold=40).sum()
            if needs_gradient:
                p = s.sigmoid_()
                bias_gradient += p.sum()
                query_gradient[i].addmm_(p, key[j])
                key_gradient[j].addmm_(p.t(), query[i])
    return total, query_gradient, key_gradient, bias_gradient
