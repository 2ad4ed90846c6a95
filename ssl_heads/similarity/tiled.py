"""Closed-form forward and backward over tiles: the matrix of similarities is never stored.

All functions work on plain tensors of one dtype (fp32 or fp64), with the scale already multiplied into the query.

One exponential a pair. With a common shift ``c``, ``e_ij = exp(S_ij - c)`` serves its row and its column, and no
running maximum is needed. ``c`` is chosen so that no sum can overflow, given ``|S| <= bound``; whether something that
matters underflowed is seen in the sums themselves (`is_exact`), and then the online path runs instead. The backward
asks the same question of the saved log-sum-exp, so both passes are exact by construction.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_heads.similarity.exclusion import Exclusion
from ssl_heads.similarity.product import accumulate, inner

# The side of the largest square tile, by bytes an element: it stays in cache beside its operands. And the smallest, on
# which a matrix product still runs near its full rate. See docs/performance.md.
TILE = {4: 768, 8: 512}
SMALLEST = 256
KEPT_BYTES = 1 << 22
"""A matrix of at most so many bytes is one tile, and the backward uses its exponentials again: what they cost in memory
does not grow with the batch, and a third of the products is saved."""
TINY = torch.finfo(torch.float32).tiny


def is_kept(rows: int, columns: int, dtype: torch.dtype) -> bool:
    """Whether the matrix is small enough to be one tile that the forward keeps for the backward."""
    return rows * columns * dtype.itemsize <= KEPT_BYTES


def tile_side(count: int, dtype: torch.dtype) -> int:
    """Side of the square tiles for one set: where it can, four a side, so that the triangle saves near half."""
    if is_kept(count, count, dtype):
        return count
    return min(max(count // 4, SMALLEST), TILE[dtype.itemsize], count)


def tile_shape(rows: int, columns: int, dtype: torch.dtype) -> tuple[int, int]:
    """Shape of the tiles for two sets: few rows, as of a batch beside a queue, leave room for more columns."""
    if is_kept(rows, columns, dtype):
        return rows, columns
    side = TILE[dtype.itemsize]
    height = min(rows, side)
    return height, min(columns, max(side * side // height, 1))


def kept_shape(rows: int, columns: int, dtype: torch.dtype) -> tuple[int, ...]:
    """Shape of the exponentials that the forward keeps for the backward: one small tile, or nothing."""
    return (rows, columns) if is_kept(rows, columns, dtype) else (0,)


def blocks(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most ``size`` rows."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def tiles(rows: int, columns: int, shape: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """All tiles of a matrix, row by row."""
    for i in blocks(rows, shape[0]):
        for j in blocks(columns, shape[1]):
            yield i, j


def upper_triangle(count: int, side: int) -> Iterator[tuple[slice, slice]]:
    """Tiles on and above the diagonal."""
    for i in blocks(count, side):
        for start in range(i.start, count, side):
            yield i, slice(start, min(start + side, count))


# ---------------------------------------------------------------------------------------------------- the common shift


def largest_logit(query: Tensor, key: Tensor) -> float:
    """``max_i |q_i| * max_j |k_j| >= max_ij |S_ij|``, by Cauchy and Schwarz, with room for rounding."""
    return 1.001 * float(query.norm(dim=1).max()) * float(key.norm(dim=1).max())


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
    smallest, largest = float(log_sum.min()), float(log_sum.max())
    return smallest - shift > math.log(info.tiny * count / info.eps) and largest < math.inf


def inverse_sum(gradient: Tensor, log_sum: Tensor, shift: float) -> Tensor:
    """``g_i exp(c - lse_i)``: what a tile of ``exp(S - c)`` is multiplied by; zero for a row without negatives."""
    return torch.exp(shift - log_sum).nan_to_num_(nan=math.nan, posinf=0.0).mul_(gradient)


def without_infinity(log_sum: Tensor) -> Tensor:
    """A row without negatives has the log-sum-exp ``-inf``; ``+inf`` makes each of its weights zero."""
    return torch.where(log_sum == -torch.inf, torch.inf, log_sum)


# ----------------------------------------------------------------------------------------------------------- two sets


def pair_forward(
    query: Tensor, key: Tensor, exclusion: Exclusion, columns: bool, bound: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp of all rows, and of all columns on request (else an empty tensor).

    A matrix that is one small tile is the third result, for the backward to use again.
    """
    n, m = query.shape[0], key.shape[0]
    count = max(n, m)
    if math.isfinite(bound):
        shift = common_shift(bound, count, query.dtype)
        row, column = query.new_zeros(n), query.new_zeros(m if columns else 0)
        for i, j in tiles(n, m, tile_shape(n, m, query.dtype)):
            e = exponentials(query, key, i, j, shift, exclusion)
            row[i] += e.sum(1)
            if columns:
                column[j] += e.sum(0)
        row.log_().add_(shift)
        column.log_().add_(shift)
        if is_exact(row, shift, bound, count) and (not columns or is_exact(column, shift, bound, count)):
            return row, column, e if n * m > 0 and is_kept(n, m, query.dtype) else nothing_kept(query, key)
    return *_pair_online(query, key, exclusion, columns), nothing_kept(query, key)


def nothing_kept(query: Tensor, key: Tensor) -> Tensor:
    """By the NaN the backward sees that there is nothing to use again: it must not have to guess what happened here."""
    return query.new_full(kept_shape(query.shape[0], key.shape[0], query.dtype), math.nan)


def usable(kept: Tensor) -> bool:
    """Whether the forward kept its exponentials."""
    return kept.numel() > 0 and not kept[0, 0].isnan()


def exponentials(query: Tensor, key: Tensor, i: slice, j: slice, shift: float, exclusion: Exclusion) -> Tensor:
    """``exp(S_ij - c)`` of one tile, zero where a pair is left out."""
    s = inner(query[i], key[j])
    if shift:
        s.sub_(shift)
    return exclusion.fill_(s.exp_(), i, j, 0.0)


def _pair_online(query: Tensor, key: Tensor, exclusion: Exclusion, columns: bool) -> tuple[Tensor, Tensor]:
    n, m = query.shape[0], key.shape[0]
    row, column = query.new_full((n,), -torch.inf), query.new_full((m if columns else 0,), -torch.inf)
    for i, j in tiles(n, m, tile_shape(n, m, query.dtype)):
        s = exclusion.fill_(inner(query[i], key[j]), i, j, -torch.inf)
        row[i] = torch.logaddexp(row[i], s.logsumexp(1))
        if columns:
            column[j] = torch.logaddexp(column[j], s.logsumexp(0))
    return row, column


class LogSum(NamedTuple):
    """A log-sum-exp and its upstream gradient, of all rows or of all columns."""

    value: Tensor
    gradient: Tensor


def pair_backward(
    query: Tensor,
    key: Tensor,
    row: Tensor,
    column: Tensor,
    kept: Tensor,
    row_gradient: Tensor,
    column_gradient: Tensor,
    exclusion: Exclusion,
    bound: float,
    needs_query: bool,
    needs_key: bool,
) -> tuple[Tensor, Tensor]:
    """``W k`` and ``W^T q`` with ``W_ij = g_i exp(S_ij - row_i) + h_j exp(S_ij - column_j)``."""
    n, m = query.shape[0], key.shape[0]
    by_column = LogSum(column, column_gradient) if column.numel() > 0 else None
    weights = PairWeights(LogSum(row, row_gradient), by_column, exclusion, bound, max(n, m))
    query_gradient = query.new_zeros(query.shape) if needs_query else query.new_empty(0)
    key_gradient = key.new_zeros(key.shape) if needs_key else key.new_empty(0)
    if weights.one_exponential and usable(kept):
        w = weights.of_kept(kept)
        return (
            inner(w, key.mT).mul_(weights.unit) if needs_query else query_gradient,
            inner(w.mT, query.mT).mul_(weights.unit) if needs_key else key_gradient,
        )
    for i, j in tiles(n, m, tile_shape(n, m, query.dtype)):
        w = weights(query, key, i, j)
        if needs_query:
            accumulate(query_gradient[i], w, key[j])
        if needs_key:
            accumulate(key_gradient[j], w.t(), query[i])
    return query_gradient.mul_(weights.unit), key_gradient.mul_(weights.unit)


class PairWeights:
    """The gradient with respect to the logits, tile by tile, in units of the largest upstream gradient.

    Upstream gradients carry the small factor ``1 - p`` of a loss that is nearly solved; in their own unit all weights
    that count beside the largest stay clear of underflow. Without a column part, ``column`` is None; over one set, it
    is the row part.
    """

    def __init__(self, row: LogSum, column: LogSum | None, exclusion: Exclusion, bound: float, count: int) -> None:
        parts = [row] if column is None or column is row else [row, column]
        self.unit = functools.reduce(torch.maximum, [part.gradient.abs().max() for part in parts]).clamp_min(TINY)
        self.exclusion = exclusion
        self.shift = common_shift(bound, count, row.value.dtype) if math.isfinite(bound) else 0.0
        self.one_exponential = all(is_exact(part.value, self.shift, bound, count) for part in parts)
        form = self._common if self.one_exponential else self._online
        self.row = form(row)
        self.column = self.row if column is row else None if column is None else form(column)

    def _common(self, part: LogSum) -> LogSum:
        return LogSum(part.value, inverse_sum(part.gradient / self.unit, part.value, self.shift))

    def _online(self, part: LogSum) -> LogSum:
        return LogSum(without_infinity(part.value), part.gradient / self.unit)

    def sums(self, i: slice, j: slice) -> Tensor:
        """What the common exponentials of a tile are multiplied by."""
        rows = self.row.gradient[i, None]
        return rows if self.column is None else rows + self.column.gradient[j]

    def of_kept(self, kept: Tensor) -> Tensor:
        """The weights of the one tile whose exponentials were kept."""
        sums = self.sums(slice(kept.shape[0]), slice(kept.shape[1]))
        return sums.mul_(kept) if sums.shape == kept.shape else sums * kept

    def __call__(self, query: Tensor, key: Tensor, i: slice, j: slice) -> Tensor:
        """The weights of one tile."""
        if self.one_exponential:
            return exponentials(query, key, i, j, self.shift, self.exclusion).mul_(self.sums(i, j))
        s = self.exclusion.fill_(inner(query[i], key[j]), i, j, -torch.inf)
        by_column = None
        if self.column is not None:
            by_column = torch.exp(s - self.column.value[j]).mul_(self.column.gradient[j])
        by_row = s.sub_(self.row.value[i, None]).exp_().mul_(self.row.gradient[i, None])
        return by_row if by_column is None else by_row.add_(by_column)


# ------------------------------------------------------------------------------------- one set: the matrix is symmetric


def self_forward(x: Tensor, weight: Tensor, exclusion: Exclusion, bound: float) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of the rows of ``x diag(w) x^T``; a tile above the diagonal serves its rows and its columns.

    A batch that fits into one small tile also gives that tile of exponentials, for the backward to use again.
    """
    n = x.shape[0]
    query = x * weight
    if math.isfinite(bound):
        shift = common_shift(bound, n, x.dtype)
        row = x.new_zeros(n)
        for i, j in upper_triangle(n, tile_side(n, x.dtype)):
            e = exponentials(query, x, i, j, shift, exclusion)
            row[i] += e.sum(1)
            if i != j:
                row[j] += e.sum(0)
        row.log_().add_(shift)
        if is_exact(row, shift, bound, n):
            return row, e if n > 0 and is_kept(n, n, x.dtype) else nothing_kept(query, x)
    return _pair_online(query, x, exclusion, columns=False)[0], nothing_kept(query, x)


def self_backward(
    x: Tensor, weight: Tensor, row: Tensor, kept: Tensor, row_gradient: Tensor, exclusion: Exclusion, bound: float
) -> Tensor:
    """``A x`` with the symmetric ``A_ij = g_i exp(S_ij - row_i) + g_j exp(S_ij - row_j)``."""
    n = x.shape[0]
    both = LogSum(row, row_gradient)
    weights = PairWeights(both, both, exclusion, bound, n)
    if weights.one_exponential and usable(kept):
        return inner(weights.of_kept(kept), x.mT).mul_(weights.unit)
    query = x * weight
    product = x.new_zeros(x.shape)
    for i, j in upper_triangle(n, tile_side(n, x.dtype)):
        a = weights(query, x, i, j)
        accumulate(product[i], a, x[j])
        if i != j:
            accumulate(product[j], a.t(), x[i])
    return product.mul_(weights.unit)


# ----------------------------------------------------------------------------------------- keys that need no gradient


def attend(query: Tensor, key: Tensor, exclusion: Exclusion, bound: float) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of the rows and its gradient ``sum_j exp(S_ij - row_i) k_j``, in one sweep over the keys."""
    n, m = query.shape[0], key.shape[0]
    if math.isfinite(bound):
        # The weighted keys are summed with the weights: what cannot overflow is their product.
        room = bound + math.log(max(1.0, float(key.abs().max())))
        shift = common_shift(room, m, query.dtype)
        row, mean_key = query.new_zeros(n), query.new_zeros(query.shape)
        for i, j in tiles(n, m, tile_shape(n, m, query.dtype)):
            e = exponentials(query, key, i, j, shift, exclusion)
            row[i] += e.sum(1)
            accumulate(mean_key[i], e, key[j])
        row.log_().add_(shift)
        if is_exact(row, shift, bound, m):
            return row, mean_key.mul_(torch.exp(shift - without_infinity(row))[:, None])
    row = _pair_online(query, key, exclusion, columns=False)[0]
    nothing, ones = query.new_empty(0), torch.ones_like(row)
    mean_key, _ = pair_backward(
        query, key, row, nothing, nothing, ones, nothing, exclusion, math.inf, needs_query=True, needs_key=False
    )
    return row, mean_key


# --------------------------------------------------------------------------------------------------------- elementwise


def softplus_sum(
    query: Tensor, key: Tensor, bias: Tensor, exclusion: Exclusion, needs_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``sum_ij softplus(S_ij + b)`` over negatives and its gradients with respect to query, key and b, in one pass."""
    n, m = query.shape[0], key.shape[0]
    total, bias_gradient = bias.new_zeros(()), bias.new_zeros(())
    query_gradient = query.new_zeros(query.shape) if needs_gradient else query.new_empty(0)
    key_gradient = key.new_zeros(key.shape) if needs_gradient else key.new_empty(0)
    for i, j in tiles(n, m, tile_shape(n, m, query.dtype)):
        s = exclusion.fill_(inner(query[i], key[j]).add_(bias), i, j, -torch.inf)
        total += torch.nn.functional.softplus(s, threshold=40).sum()
        if needs_gradient:
            p = s.sigmoid_()
            bias_gradient += p.sum()
            accumulate(query_gradient[i], p, key[j])
            accumulate(key_gradient[j], p.t(), query[i])
    return total, query_gradient, key_gradient, bias_gradient
