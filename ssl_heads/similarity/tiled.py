"""Closed-form forward and backward over tiles: the matrix of similarities is never stored.

All functions work on plain tensors of one dtype (float32 or float64). The passes are the backend "tiled", see
`ssl_heads.similarity.backend.Backend`; each multiplies the scale into the query first.

One exponential a pair. With a common shift `c`, `e_ij = exp(S_ij - c)` serves its row and its column, and no
running maximum is needed. `c` is chosen so that no sum can overflow, given `|S| <= bound`; whether something that
matters underflowed is seen in the sums themselves (`is_exact`), and then the online path runs instead. The backward
makes the same test on the saved log-sum-exp, so both passes are exact by construction.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ssl_heads.similarity.backend import LogSum, Matrix, Needs
from ssl_heads.similarity.dense import without_infinity
from ssl_heads.similarity.product import accumulate, matmul_nt

# The side of the largest square tile, by bytes an element: the tile stays in cache beside its operands.
TILE = {4: 768, 8: 512}
# The side of the smallest tile on which a matrix product runs near its full rate. See docs/performance.md.
SMALLEST = 256
SAVED_BYTES = 1 << 22
"""A matrix of at most so many bytes is one tile, and the backward reuses its exponentials: their memory does not grow
with the batch, and a third of the products is saved."""
TINY = torch.finfo(torch.float32).tiny


def is_one_tile(rows: int, columns: int, dtype: torch.dtype) -> bool:
    """Whether the matrix is small enough to be one tile that the forward saves for the backward."""
    return rows * columns * dtype.itemsize <= SAVED_BYTES


def tile_side(count: int, dtype: torch.dtype) -> int:
    """Side of the square tiles for one set: where it can, four a side, so that the triangle saves near half."""
    if is_one_tile(count, count, dtype):
        return count
    return min(max(count // 4, SMALLEST), TILE[dtype.itemsize], count)


def tile_shape(rows: int, columns: int, dtype: torch.dtype) -> tuple[int, int]:
    """Shape of the tiles for two sets: few rows, as of a batch beside a queue, leave room for more columns."""
    if is_one_tile(rows, columns, dtype):
        return rows, columns
    side = TILE[dtype.itemsize]
    height = min(rows, side)
    return height, min(columns, max(side * side // height, 1))


def saved_shape(rows: int, columns: int, width: int, dtype: torch.dtype, one_sweep: bool) -> tuple[int, ...]:
    """The forward saves the gradient of a single sweep, the exponentials of a single tile, or nothing."""
    if one_sweep:
        return rows, width
    return (rows, columns) if is_one_tile(rows, columns, dtype) else (0,)


def blocks(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` rows."""
    for start in range(0, count, max(size, 1)):
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


def has_pairs(matrix: Matrix) -> bool:
    """Whether neither side is empty: a maximum over no row is an error of torch."""
    return len(matrix.query) > 0 and len(matrix.key) > 0


# ------------------------------------------------------------------------------------------------------ one exponential


def scaled(matrix: Matrix) -> Matrix:
    """The same matrix with the scale in the query, and with a bound where finding one waits for no device."""
    query, bound = matrix.query * matrix.scale, matrix.bound
    if not math.isfinite(bound) and query.device.type == "cpu":
        # max_i |q_i| * max_j |k_j| >= max_ij |S_ij|, with room for rounding
        bound = 1.001 * float(query.norm(dim=1).max()) * float(matrix.key.norm(dim=1).max())
    return Matrix(query, matrix.key, 1.0, matrix.exclusion, bound)


def common_shift(bound: float, count: int, dtype: torch.dtype) -> float:
    """The smallest shift with which `count` exponentials of logits below `bound` cannot overflow."""
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


def exponentials(matrix: Matrix, i: slice, j: slice, shift: float) -> Tensor:
    """`exp(S_ij - c)` of one tile, zero where a pair is left out."""
    tile = matmul_nt(matrix.query[i], matrix.key[j])
    if shift:
        tile.sub_(shift)
    return matrix.exclusion.fill_(tile.exp_(), i, j, 0.0)


def logits(matrix: Matrix, i: slice, j: slice) -> Tensor:
    """`S_ij` of one tile, `-inf` where a pair is left out."""
    return matrix.exclusion.fill_(matmul_nt(matrix.query[i], matrix.key[j]), i, j, -torch.inf)


def nothing_saved(matrix: Matrix) -> Tensor:
    """A NaN placeholder where the forward took the online path and there is no tile to reuse."""
    (n, d), m = matrix.query.shape, matrix.key.shape[0]
    return matrix.query.new_full(saved_shape(n, m, d, matrix.query.dtype, one_sweep=False), math.nan)


def has_tile(saved: Tensor) -> bool:
    """Whether the forward saved its exponentials."""
    return saved.numel() > 0 and not saved[0, 0].isnan()


# ----------------------------------------------------------------------------------------------------------- two sets


def pair_forward(matrix: Matrix, columns: bool, one_sweep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp of all rows, and of all columns on request (else an empty tensor).

    The third result is for the backward: the exponentials of a matrix that is one small tile, or the gradient of the
    query where nothing else will need one.
    """
    if not has_pairs(matrix):
        return *_pair_online(matrix, columns), torch.zeros_like(matrix.query) if one_sweep else nothing_saved(matrix)
    matrix = scaled(matrix)
    if one_sweep:
        row, mean_key = _attend(matrix)
        return row, row.new_empty(0), mean_key
    n, m, dtype = matrix.query.shape[0], matrix.key.shape[0], matrix.query.dtype
    count = max(n, m)
    if math.isfinite(matrix.bound):
        shift = common_shift(matrix.bound, count, dtype)
        row, column = matrix.query.new_zeros(n), matrix.query.new_zeros(m if columns else 0)
        for i, j in tiles(n, m, tile_shape(n, m, dtype)):
            e = exponentials(matrix, i, j, shift)
            row[i] += e.sum(1)
            if columns:
                column[j] += e.sum(0)
        row.log_().add_(shift)
        column.log_().add_(shift)
        if is_exact(row, shift, matrix.bound, count) and (not columns or is_exact(column, shift, matrix.bound, count)):
            return row, column, e if is_one_tile(n, m, dtype) else nothing_saved(matrix)
    return *_pair_online(matrix, columns), nothing_saved(matrix)


def _pair_online(matrix: Matrix, columns: bool) -> tuple[Tensor, Tensor]:
    n, m = matrix.query.shape[0], matrix.key.shape[0]
    row, column = matrix.query.new_full((n,), -torch.inf), matrix.query.new_full((m if columns else 0,), -torch.inf)
    for i, j in tiles(n, m, tile_shape(n, m, matrix.query.dtype)):
        tile = logits(matrix, i, j)
        row[i] = torch.logaddexp(row[i], tile.logsumexp(1))
        if columns:
            column[j] = torch.logaddexp(column[j], tile.logsumexp(0))
    return row, column


def _attend(matrix: Matrix) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of the rows and its gradient `sum_j exp(S_ij - row_i) k_j`, in one sweep over the keys."""
    n, m = matrix.query.shape[0], matrix.key.shape[0]
    if math.isfinite(matrix.bound):
        # the largest product of a weight and an element of a key: their sums must not overflow
        bound = matrix.bound + math.log(max(1.0, float(matrix.key.abs().max())))
        shift = common_shift(bound, m, matrix.query.dtype)
        row, mean_key = matrix.query.new_zeros(n), matrix.query.new_zeros(matrix.query.shape)
        for i, j in tiles(n, m, tile_shape(n, m, matrix.query.dtype)):
            e = exponentials(matrix, i, j, shift)
            row[i] += e.sum(1)
            accumulate(mean_key[i], e, matrix.key[j])
        row.log_().add_(shift)
        if is_exact(row, shift, matrix.bound, m):
            return row, mean_key.mul_(torch.exp(shift - without_infinity(row))[:, None])
    row = _pair_online(matrix, columns=False)[0]
    weights = PairWeights(matrix, LogSum(row, torch.ones_like(row)), None)
    return row, _weighted_sums(weights, matrix.query, row.new_empty(0), of_query=True, of_key=False)[0]


def pair_backward(
    matrix: Matrix, row: LogSum, column: LogSum | None, saved: Tensor, one_sweep: bool, needs: Needs
) -> tuple[Tensor, Tensor, Tensor]:
    """`scale W k`, `scale W^T q` and `sum_ij W_ij <q_i, k_j>`; empty where not needed."""
    if not has_pairs(matrix):
        query, key = (x.new_zeros(x.shape if needed else 0) for x, needed in zip(matrix[:2], needs[:2], strict=True))
        return query, key, row.value.new_zeros(1)
    if one_sweep:
        by_query, by_key = saved * row.gradient[:, None], matrix.key.new_empty(0)
    else:
        of_query = needs.query or (needs.scale and not needs.key)
        weights = PairWeights(scaled(matrix), row, column)
        by_query, by_key = _weighted_sums(weights, matrix.query, saved, of_query, needs.key)
    side, gradient = (matrix.query, by_query) if by_query.numel() > 0 else (matrix.key, by_key)
    by_scale = (side * gradient).sum().reshape(1) if needs.scale else row.value.new_zeros(1)
    return by_query.mul_(matrix.scale) if needs.query else row.value.new_empty(0), by_key.mul_(matrix.scale), by_scale


def _weighted_sums(
    weights: PairWeights, query: Tensor, saved: Tensor, of_query: bool, of_key: bool
) -> tuple[Tensor, Tensor]:
    """`W k` and `W^T q`, the query without the scale."""
    key, unit = weights.matrix.key, weights.unit
    n, m = query.shape[0], key.shape[0]
    if weights.one_exponential and has_tile(saved):
        w = weights.of_tile(saved)
        return (
            matmul_nt(w, key.mT).mul_(unit) if of_query else query.new_empty(0),
            matmul_nt(w.mT, query.mT).mul_(unit) if of_key else key.new_empty(0),
        )
    by_query = query.new_zeros(query.shape) if of_query else query.new_empty(0)
    by_key = key.new_zeros(key.shape) if of_key else key.new_empty(0)
    for i, j in tiles(n, m, tile_shape(n, m, query.dtype)):
        w = weights(i, j)
        if of_query:
            accumulate(by_query[i], w, key[j])
        if of_key:
            accumulate(by_key[j], w.t(), query[i])
    return by_query.mul_(unit), by_key.mul_(unit)


class PairWeights:
    """The gradient with respect to the logits, tile by tile, in units of the largest upstream gradient.

    Upstream gradients carry the small factor `1 - p` of a loss that is nearly solved; in their own unit all weights
    that count beside the largest stay clear of underflow. Without a column part, `column` is None; over one set, the
    row part is passed for both.
    """

    def __init__(self, matrix: Matrix, row: LogSum, column: LogSum | None) -> None:
        self.matrix = matrix
        count = max(matrix.query.shape[0], matrix.key.shape[0])
        parts = [row] if column is None or column is row else [row, column]
        self.unit = functools.reduce(torch.maximum, [part.gradient.abs().max() for part in parts]).clamp_min(TINY)
        self.shift = common_shift(matrix.bound, count, row.value.dtype) if math.isfinite(matrix.bound) else 0.0
        self.one_exponential = all(is_exact(part.value, self.shift, matrix.bound, count) for part in parts)
        form = self._common if self.one_exponential else self._online
        self.row = form(row)
        self.column = self.row if column is row else None if column is None else form(column)

    def _common(self, part: LogSum) -> LogSum:
        """`g_i exp(c - lse_i)`: the factor of `exp(S - c)`; zero for a row without negatives."""
        factor = torch.exp(self.shift - part.value).nan_to_num_(nan=math.nan, posinf=0.0)
        return LogSum(part.value, factor.mul_(part.gradient / self.unit))

    def _online(self, part: LogSum) -> LogSum:
        return LogSum(without_infinity(part.value), part.gradient / self.unit)

    def sums(self, i: slice, j: slice) -> Tensor:
        """The factors of the common exponentials of a tile."""
        rows = self.row.gradient[i, None]
        return rows if self.column is None else rows + self.column.gradient[j]

    def of_tile(self, saved: Tensor) -> Tensor:
        """The weights of the one tile whose exponentials were saved."""
        sums = self.sums(slice(saved.shape[0]), slice(saved.shape[1]))
        return sums.mul_(saved) if sums.shape == saved.shape else sums * saved

    def __call__(self, i: slice, j: slice) -> Tensor:
        """The weights of one tile."""
        if self.one_exponential:
            return exponentials(self.matrix, i, j, self.shift).mul_(self.sums(i, j))
        tile = logits(self.matrix, i, j)
        by_column = None
        if self.column is not None:
            by_column = torch.exp(tile - self.column.value[j]).mul_(self.column.gradient[j])
        by_row = tile.sub_(self.row.value[i, None]).exp_().mul_(self.row.gradient[i, None])
        return by_row if by_column is None else by_row.add_(by_column)


# ------------------------------------------------------------------------------------- one set: the matrix is symmetric


def self_forward(matrix: Matrix) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of the rows of a symmetric S; a tile above the diagonal serves its rows and its columns.

    A batch that fits into one small tile also gives that tile of exponentials, for the backward to reuse.
    """
    if not has_pairs(matrix):
        return matrix.key.new_empty(0), nothing_saved(matrix)
    matrix, n, dtype = scaled(matrix), matrix.key.shape[0], matrix.key.dtype
    if math.isfinite(matrix.bound):
        shift = common_shift(matrix.bound, n, dtype)
        row = matrix.key.new_zeros(n)
        for i, j in upper_triangle(n, tile_side(n, dtype)):
            e = exponentials(matrix, i, j, shift)
            row[i] += e.sum(1)
            if i != j:
                row[j] += e.sum(0)
        row.log_().add_(shift)
        if is_exact(row, shift, matrix.bound, n):
            return row, e if is_one_tile(n, n, dtype) else nothing_saved(matrix)
    return _pair_online(matrix, columns=False)[0], nothing_saved(matrix)


def self_backward(matrix: Matrix, row: LogSum, saved: Tensor, needs_scale: bool) -> tuple[Tensor, Tensor]:
    """`scale A k` with the symmetric `A_ij = g_i exp(S_ij - row_i) + g_j exp(S_ij - row_j)`."""
    if not has_pairs(matrix):
        return torch.zeros_like(matrix.key), row.value.new_zeros(1)
    weights, key = PairWeights(scaled(matrix), row, row), matrix.key
    if weights.one_exponential and has_tile(saved):
        product = matmul_nt(weights.of_tile(saved), key.mT)
    else:
        product = key.new_zeros(key.shape)
        for i, j in upper_triangle(key.shape[0], tile_side(key.shape[0], key.dtype)):
            a = weights(i, j)
            accumulate(product[i], a, key[j])
            if i != j:
                accumulate(product[j], a.t(), key[i])
    product.mul_(weights.unit)
    by_scale = (matrix.query * product).sum().reshape(1) / 2 if needs_scale else key.new_zeros(1)
    return product.mul_(matrix.scale), by_scale


# --------------------------------------------------------------------------------------------------------- elementwise


def softplus(matrix: Matrix, bias: Tensor, gradient: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`sum_ij log(1 + exp(S_ij + b))` over negatives and its gradients of query, key, scale and b, in one pass."""
    query, key = matrix.query, matrix.key
    n, m = query.shape[0], key.shape[0]
    total, by_bias = query.new_zeros(()), query.new_zeros(1 if gradient else 0)
    by_query = query.new_zeros(query.shape) if gradient else query.new_empty(0)
    by_key = key.new_zeros(key.shape) if gradient else key.new_empty(0)
    for i, j in tiles(n, m, tile_shape(n, m, query.dtype)):
        tile = matrix.exclusion.fill_(matmul_nt(query[i] * matrix.scale, key[j]).add_(bias), i, j, -torch.inf)
        total += torch.nn.functional.softplus(tile, threshold=40).sum()
        if gradient:
            p = tile.sigmoid_()
            by_bias += p.sum()
            accumulate(by_query[i], p, key[j])
            accumulate(by_key[j], p.t(), query[i])
    if not gradient:
        return total, by_query, by_key, query.new_empty(0), by_bias
    by_scale = (query * by_query).sum().reshape(1)
    return total, by_query.mul_(matrix.scale), by_key.mul_(matrix.scale), by_scale, by_bias
