"""Forward on the host: launch the reductions and merge their partial results."""

from __future__ import annotations

import functools
import math

import torch
import triton
from torch import Tensor

from ssl_heads.similarity.backend import Matrix
from ssl_heads.similarity.triton.arguments import (
    BOUNDED,
    ONLINE,
    SOFTPLUS,
    KernelMatrix,
    column_splits,
    kernel_matrix,
    matrix_arguments,
    partials_that_fit,
)
from ssl_heads.similarity.triton.configurations import Kernel, Tile, choose
from ssl_heads.similarity.triton.kernels import forward_kernel


def pair_forward(matrix: Matrix, columns: bool, one_sweep: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp of the rows, and of the columns on request (else an empty tensor); nothing is saved."""
    row, column = reduce_pairs(kernel_matrix(matrix), columns)
    return row, column, row.new_empty(0)


def self_forward(matrix: Matrix) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of the rows of a symmetric S, at half the products of `pair_forward`; nothing is saved."""
    prepared = kernel_matrix(matrix)
    if len(prepared.q) == 0:
        return prepared.scale.new_empty(0), prepared.scale.new_empty(0)
    run = functools.partial(_reduce_circle, prepared)
    row = run(choose(_kernel(prepared), prepared.q, ("one set", prepared.reduction), run))
    return row, row.new_empty(0)


def reduce_pairs(matrix: KernelMatrix, columns: bool) -> tuple[Tensor, Tensor]:
    """One value a row, and on request one a column (else an empty tensor)."""
    n, m = len(matrix.q), len(matrix.k)
    if n == 0 or m == 0:
        nothing = 0.0 if matrix.reduction == SOFTPLUS else -math.inf
        return matrix.scale.new_full((n,), nothing), matrix.scale.new_full((m if columns else 0,), nothing)
    run = functools.partial(_reduce_tiles, matrix, columns)
    return run(choose(_kernel(matrix), matrix.q, (columns, matrix.reduction), run))


def _kernel(matrix: KernelMatrix) -> Kernel:
    if matrix.exclusion.query_ids is not None:
        return "forward_ids"
    return "forward_bounded" if matrix.reduction == BOUNDED else "forward"


def _reduce_tiles(matrix: KernelMatrix, columns: bool, tile: Tile) -> tuple[Tensor, Tensor]:
    """A launch for as many row blocks as the column partials have room for."""
    n, m = len(matrix.q), len(matrix.k)
    row_blocks, column_tiles = triton.cdiv(n, tile.rows), triton.cdiv(m, tile.columns)
    slots = partials_that_fit(row_blocks, m) if columns else row_blocks
    splits = column_splits(slots, column_tiles, matrix.q.device)
    row_partial, column_partial = matrix.scale.new_empty(splits, n), matrix.scale.new_empty(slots if columns else 0, m)
    column = None if columns else matrix.scale.new_empty(0)
    for first in range(0, row_blocks, slots):
        count = min(slots, row_blocks - first)
        _launch(matrix, tile, row_partial, column_partial, (first, count), (0, column_tiles), one_set=False)
        if columns:
            column = _merge(matrix, column, column_partial[:count])
    assert column is not None
    row = _merge(matrix, None, row_partial)
    return (row.log(), column.log()) if matrix.reduction == BOUNDED else (row, column)


def _reduce_circle(matrix: KernelMatrix, tile: Tile) -> Tensor:
    """A launch for as many distances around the circle of blocks as the column partials have room for."""
    n = len(matrix.q)
    blocks = triton.cdiv(n, tile.rows)
    distances = blocks // 2 + 1
    slots = partials_that_fit(distances, n)
    splits = column_splits(blocks, slots, matrix.q.device)
    # the distances of a launch, and after them the splits of the rows: one merge takes both
    partial, row = matrix.scale.new_empty(slots + splits, n), None
    for first in range(0, distances, slots):
        last = min(first + slots, distances)
        begin = slots - (last - first)
        _launch(matrix, tile, partial[slots:], partial[begin:slots], (0, blocks), (first, last), one_set=True)
        # a block at distance 0 is its own mirror image and writes no column partial
        row = _merge(matrix, row, partial[begin + 1 :] if first == 0 else partial[begin:])
    assert row is not None
    return row.log() if matrix.reduction == BOUNDED else row


def _merge(matrix: KernelMatrix, total: Tensor | None, partials: Tensor) -> Tensor:
    """Add partial results, log-sum-exps for ONLINE and sums otherwise, to the total of earlier launches."""
    part = torch.logsumexp(partials, 0) if matrix.reduction == ONLINE else partials.sum(0)
    if total is None:
        return part
    return torch.logaddexp(total, part) if matrix.reduction == ONLINE else total + part


def _launch(
    matrix: KernelMatrix,
    tile: Tile,
    row_partial: Tensor,
    column_partial: Tensor,
    blocks: tuple[int, int],
    column_tiles: tuple[int, int],
    one_set: bool,
) -> None:
    """Run so many row blocks from a first one, over the column tiles from a first to before a last one."""
    (first_block, count), (first_tile, last_tile) = blocks, column_tiles
    splits, columns = row_partial.shape[0], column_partial.shape[0] > 0
    with torch.cuda.device(matrix.q.get_device()):
        forward_kernel[(count, splits)](
            **matrix_arguments(matrix, tile),
            row_ptr=row_partial,
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
