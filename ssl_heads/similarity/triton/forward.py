"""Forward on the host: launch the reductions and merge their partial results."""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from ssl_heads.similarity.exclusion import Exclusion
from ssl_heads.similarity.triton.arguments import (
    BOUNDED,
    ONLINE,
    SOFTPLUS,
    Matrix,
    column_splits,
    matrix_arguments,
    partials_that_fit,
    softmax_matrix,
)
from ssl_heads.similarity.triton.autotune import choose
from ssl_heads.similarity.triton.configurations import Kernel, Tile
from ssl_heads.similarity.triton.device import on_device
from ssl_heads.similarity.triton.kernels.forward import forward_kernel


def pair_forward(
    query: Tensor,
    key: Tensor,
    scale: Tensor | float,
    exclusion: Exclusion,
    columns: bool = False,
    one_sweep: bool = False,
    bound: float = math.inf,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp over the negatives of ``S = scale q k^T``, by rows and on request by columns.

    Args:
        query: ``(n, d)``, float32, bfloat16 or float16, any strides.
        key: ``(m, d)``, like ``query``.
        scale: Number or one-element tensor.
        exclusion: The pairs that are left out.
        columns: Whether to return the log-sum-exp of the columns.
        one_sweep: Makes no difference here.
        bound: ``|S| <= bound``, known to the caller; inf if it is not.

    Returns:
        ``(n,)`` and ``(m,)`` or empty, float32, ``-inf`` for a row or column without negatives; and an empty tensor,
        because nothing is saved.

    Raises:
        ValueError: For tensors on a CPU, other dtypes, or widths that differ.
    """
    row, column = reduce_pairs(softmax_matrix(query, key, scale, exclusion, bound), columns)
    return row, column, row.new_empty(0)


def self_forward(
    query: Tensor, key: Tensor, scale: Tensor | float, exclusion: Exclusion, bound: float = math.inf
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over the negatives of the rows of a symmetric S, at half the products of `pair_forward`.

    S is symmetric when ``query = key diag(w)``.
    """
    matrix = softmax_matrix(query, key, scale, exclusion, bound)
    n, m = matrix.shape
    if n != m:
        raise ValueError(f"a symmetric similarity has as many rows as columns; got {n} and {m}")
    row = _reduce_one_set(matrix) if n > 0 else matrix.scale.new_empty(0)
    return row, row.new_empty(0)


def _kernel(matrix: Matrix) -> Kernel:
    if matrix.exclusion.query_ids is not None:
        return "forward_ids"
    return "forward_bounded" if matrix.reduction == BOUNDED else "forward"


def _nothing(matrix: Matrix, count: int) -> Tensor:
    """The result of a reduction over no pairs."""
    return matrix.scale.new_full((count,), 0.0 if matrix.reduction == SOFTPLUS else -math.inf)


def _start(matrix: Matrix, count: int) -> Tensor:
    """What `_add` leaves as it is."""
    return matrix.scale.new_full((count,), -math.inf if matrix.reduction == ONLINE else 0.0)


def _merge(matrix: Matrix, partials: Tensor) -> Tensor:
    return torch.logsumexp(partials, 0) if matrix.reduction == ONLINE else partials.sum(0)


def _add(matrix: Matrix, total: Tensor, partials: Tensor) -> Tensor:
    part = _merge(matrix, partials)
    return torch.logaddexp(total, part) if matrix.reduction == ONLINE else total + part


def _result(matrix: Matrix, total: Tensor) -> Tensor:
    return total.log() if matrix.reduction == BOUNDED else total


def reduce_pairs(matrix: Matrix, columns: bool) -> tuple[Tensor, Tensor]:
    """One value a row, and on request one a column (else an empty tensor)."""
    n, m = matrix.shape
    if n == 0 or m == 0:
        return _nothing(matrix, n), _nothing(matrix, m if columns else 0)

    def run(tile: Tile) -> tuple[Tensor, Tensor]:
        return _reduce_tiles(matrix, tile, columns)

    return run(choose(_kernel(matrix), matrix, (columns, matrix.reduction), run))


def _reduce_tiles(matrix: Matrix, tile: Tile, columns: bool) -> tuple[Tensor, Tensor]:
    """A launch for as many row blocks as the column partials have room for."""
    n, m = matrix.shape
    row_blocks, column_tiles = triton.cdiv(n, tile.rows), triton.cdiv(m, tile.columns)
    slots = partials_that_fit(row_blocks, m) if columns else row_blocks
    splits = column_splits(slots, column_tiles, matrix.q.device)
    partial = matrix.scale.new_empty(splits, n)
    column_partial = matrix.scale.new_empty(slots if columns else 0, m)
    column = _start(matrix, m if columns else 0)
    for first in range(0, row_blocks, slots):
        count = min(slots, row_blocks - first)
        _launch(matrix, tile, partial, column_partial, (first, count), (0, column_tiles), one_set=False)
        if columns:
            column = _add(matrix, column, column_partial[:count])
    return _result(matrix, _merge(matrix, partial)), _result(matrix, column)


def _reduce_one_set(matrix: Matrix) -> Tensor:
    def run(tile: Tile) -> Tensor:
        return _reduce_circle(matrix, tile)

    return run(choose(_kernel(matrix), matrix, ("one set", matrix.reduction), run))


def _reduce_circle(matrix: Matrix, tile: Tile) -> Tensor:
    """A launch for as many distances around the circle of blocks as the column partials have room for."""
    n, _ = matrix.shape
    blocks = triton.cdiv(n, tile.rows)
    distances = blocks // 2 + 1
    slots = partials_that_fit(distances, n)
    splits = column_splits(blocks, slots, matrix.q.device)
    partial, column_partial = matrix.scale.new_empty(splits, n), matrix.scale.new_empty(slots, n)
    row = _start(matrix, n)
    for first in range(0, distances, slots):
        last = min(first + slots, distances)
        _launch(matrix, tile, partial, column_partial, (0, blocks), (first, last), one_set=True)
        row = _add(matrix, row, partial)
        mirrored = column_partial[1 if first == 0 else 0 : last - first]  # distance 0 is its own mirror image
        if mirrored.shape[0]:
            row = _add(matrix, row, mirrored)
    return _result(matrix, row)


def _launch(
    matrix: Matrix,
    tile: Tile,
    partial: Tensor,
    column_partial: Tensor,
    blocks: tuple[int, int],
    column_tiles: tuple[int, int],
    one_set: bool,
) -> None:
    """Run so many row blocks from a first one, over the column tiles from a first to before a last one."""
    (first_block, count), (first_tile, last_tile) = blocks, column_tiles
    splits, columns = partial.shape[0], column_partial.shape[0] > 0
    with on_device(matrix.q):
        forward_kernel[(count, splits)](
            **matrix_arguments(matrix, tile),
            row_ptr=partial,
            column_ptr=column_partial if columns else matrix.scale,
            column_stride=column_partial.stride(0),
            first_block=first_block,
            first_tile=first_tile,
            last_tile=last_tile,
            tiles_per_split=triton.cdiv(last_tile - first_tile, splits),
            COLUMNS=columns,
            ONE_SET=one_set,
            BLOCK_D=tile.features,
        )
