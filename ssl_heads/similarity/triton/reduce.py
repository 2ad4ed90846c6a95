"""Forward on the host: launch the reductions and merge their partial results."""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from ssl_heads.similarity.exclusion import Exclusion
from ssl_heads.similarity.triton import operands as limits
from ssl_heads.similarity.triton.autotune import choose
from ssl_heads.similarity.triton.configurations import Kernel, Tile
from ssl_heads.similarity.triton.device import on_device
from ssl_heads.similarity.triton.forward import forward_kernel
from ssl_heads.similarity.triton.operands import Operands, column_splits, is_bounded, matrix_arguments, operands


def pair_forward(
    query: Tensor,
    key: Tensor,
    exclusion: Exclusion,
    *,
    scale: Tensor | float = 1.0,
    row_bias: Tensor | None = None,
    column_bias: Tensor | None = None,
    columns: bool = False,
    bound: float = math.inf,
) -> tuple[Tensor, Tensor | None]:
    """Log-sum-exp over the negatives of ``S = scale q k^T + a_i + b_j``, by rows and on request by columns.

    Args:
        query: ``(n, d)``, float32, bfloat16 or float16, any strides.
        key: ``(m, d)``, like ``query``.
        exclusion: The pairs that are left out.
        scale: Number or one-element tensor.
        row_bias: ``(n,)`` or None.
        column_bias: ``(m,)`` or None.
        columns: Whether to return the log-sum-exp of the columns.
        bound: ``|S| <= bound``, known to the caller; inf if it is not.

    Returns:
        ``(n,)`` and ``(m,)`` or None, float32; ``-inf`` for a row or column without negatives.

    Raises:
        ValueError: for tensors on a CPU, other dtypes, or widths that differ.
    """
    s = operands(query, key, exclusion, scale, row_bias, column_bias)
    row, column = _reduce(s, columns, is_bounded(bound))
    return row, column if columns else None


def softplus_forward(
    query: Tensor,
    key: Tensor,
    exclusion: Exclusion,
    *,
    scale: Tensor | float = 1.0,
    row_bias: Tensor | None = None,
    column_bias: Tensor | None = None,
) -> Tensor:
    """``sum_j softplus(S_ij)`` over the negatives of each row, float32; arguments as in `pair_forward`."""
    return _reduce(operands(query, key, exclusion, scale, row_bias, column_bias), False, False, softplus=True)[0]


def self_forward(
    query: Tensor,
    key: Tensor,
    exclusion: Exclusion,
    *,
    scale: Tensor | float = 1.0,
    bias: Tensor | None = None,
    bound: float = math.inf,
) -> Tensor:
    """Log-sum-exp over the negatives of the rows of a symmetric S, at half the products of `pair_forward`.

    S is symmetric when ``query = key diag(w)``; ``bias`` is then the bias of rows and of columns.
    """
    s = operands(query, key, exclusion, scale, bias, bias)
    n, m = s.shape
    if n != m:
        raise ValueError(f"a symmetric similarity has as many rows as columns; got {n} and {m}")
    return _reduce_one_set(s, is_bounded(bound))


def _merge(partials: Tensor, bounded: bool) -> Tensor:
    return partials.sum(0) if bounded else torch.logsumexp(partials, 0)


def _add(total: Tensor, part: Tensor, bounded: bool) -> Tensor:
    return total + part if bounded else torch.logaddexp(total, part)


def _kernel(s: Operands, bounded: bool) -> Kernel:
    if s.exclusion.query_ids is not None:
        return "forward_ids"
    return "forward_bounded" if bounded else "forward"


def _reduce(s: Operands, columns: bool, bounded: bool, softplus: bool = False) -> tuple[Tensor, Tensor]:
    n, m = s.shape
    if n == 0 or m == 0:
        nothing = 0.0 if softplus else -math.inf
        return s.scale.new_full((n,), nothing), s.scale.new_full((m if columns else 0,), nothing)

    def run(tile: Tile) -> tuple[Tensor, Tensor]:
        return _reduce_tiles(s, tile, columns, bounded, softplus)

    return run(choose(_kernel(s, bounded), s, (columns, bounded, softplus), run))


def _reduce_tiles(s: Operands, tile: Tile, columns: bool, bounded: bool, softplus: bool) -> tuple[Tensor, Tensor]:
    """A launch for as many row blocks as the column partials have room for."""
    n, m = s.shape
    row_blocks, column_tiles = triton.cdiv(n, tile.rows), triton.cdiv(m, tile.columns)
    slots = min(row_blocks, max(1, limits.PARTIAL_BYTES // (4 * m))) if columns else row_blocks
    splits = column_splits(slots, column_tiles, s.q.device)
    partial = s.scale.new_empty(splits, n)
    column_partial = s.scale.new_empty(slots if columns else 0, m)
    column = s.scale.new_full((m if columns else 0,), 0.0 if bounded else -math.inf)
    for first in range(0, row_blocks, slots):
        count = min(slots, row_blocks - first)
        _launch(s, tile, partial, column_partial, count, first, 0, column_tiles, columns, False, bounded, softplus)
        if columns:
            column = _add(column, _merge(column_partial[:count], bounded), bounded)
    row = _merge(partial, bounded or softplus)
    return (row.log(), column.log()) if bounded else (row, column)


def _reduce_one_set(s: Operands, bounded: bool) -> Tensor:
    if s.shape[0] == 0:
        return s.scale.new_empty(0)

    def run(tile: Tile) -> Tensor:
        return _reduce_circle(s, tile, bounded)

    return run(choose(_kernel(s, bounded), s, ("one set", bounded), run))


def _reduce_circle(s: Operands, tile: Tile, bounded: bool) -> Tensor:
    """A launch for as many distances around the circle of blocks as the column partials have room for."""
    n, _ = s.shape
    blocks = triton.cdiv(n, tile.rows)
    distances = blocks // 2 + 1
    slots = min(distances, max(1, limits.PARTIAL_BYTES // (4 * n)))
    splits = column_splits(blocks, slots, s.q.device)
    partial, column_partial = s.scale.new_empty(splits, n), s.scale.new_empty(slots, n)
    row = s.scale.new_full((n,), 0.0 if bounded else -math.inf)
    for first in range(0, distances, slots):
        last = min(first + slots, distances)
        _launch(s, tile, partial, column_partial, blocks, 0, first, last, True, True, bounded, False)
        row = _add(row, _merge(partial, bounded), bounded)
        mirrored = column_partial[1 if first == 0 else 0 : last - first]  # distance 0 is its own mirror image
        if mirrored.shape[0]:
            row = _add(row, _merge(mirrored, bounded), bounded)
    return row.log() if bounded else row


def _launch(
    s: Operands,
    tile: Tile,
    partial: Tensor,
    column_partial: Tensor,
    blocks: int,
    first_block: int,
    first_tile: int,
    last_tile: int,
    columns: bool,
    one_set: bool,
    bounded: bool,
    softplus: bool,
) -> None:
    splits = partial.shape[0]
    with on_device(s.q):
        forward_kernel[(blocks, splits)](
            **matrix_arguments(s, tile),
            row_ptr=partial,
            column_ptr=column_partial if columns else s.scale,
            column_stride=column_partial.stride(0),
            first_block=first_block,
            first_tile=first_tile,
            last_tile=last_tile,
            tiles_per_split=triton.cdiv(last_tile - first_tile, splits),
            BOUNDED=bounded,
            COLUMNS=columns,
            ONE_SET=one_set,
            SOFTPLUS=softplus,
            BLOCK_D=tile.features,
        )
