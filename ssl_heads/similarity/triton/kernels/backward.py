"""Gradients of the reductions: the tiles are computed again, weighted, and multiplied with the other side.

With upstream gradients ``g`` of the rows and ``h`` of the columns the weight of a pair is

    W_ij = g_i exp(S_ij - row_lse_i) + h_j exp(S_ij - column_lse_j),        W_ij = g_i sigmoid(S_ij)  (SOFTPLUS),

and 0 where the pair is left out. The launcher divides ``g`` and ``h`` by their largest magnitude (``unit``), so that
weights are O(1) when they are rounded for the tensor cores; `finish_kernel` multiplies it back. Where S is bounded the
launcher also folds ``exp(-lse)`` into these factors, and one exponential serves both terms.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ssl_heads.similarity.triton.kernels.tile import (
    BOUNDED,
    LOG2_E,
    ONLINE,
    SOFTPLUS,
    load_rows,
    streamed_products,
    tile_logits,
)


@triton.jit
def load_upstream(shift_ptr, factor_ptr, positions, count, PRESENT: tl.constexpr, REDUCTION: tl.constexpr):
    """What the exponent subtracts and what the exponential is multiplied by; nothing past the end."""
    shift = tl.zeros(positions.shape, tl.float32)
    factor = tl.zeros(positions.shape, tl.float32)
    if PRESENT:
        factor = tl.load(factor_ptr + positions, mask=positions < count, other=0.0)
        if REDUCTION == ONLINE:
            shift = tl.load(shift_ptr + positions, mask=positions < count, other=0.0)
    return shift, factor


@triton.jit
def softmax(x, shift):
    """``2^(x - shift)``, clamped to 1: above about 1e7, float32 rounding could make the difference positive."""
    return tl.exp2(tl.minimum(x - shift, 0.0))


@triton.jit
def pair_weights(
    x, row_shift, row_factor, column_shift, column_factor,
    REDUCTION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``W`` of a tile; one exponential an element where S is bounded or one side alone has a gradient."""
    if REDUCTION == SOFTPLUS:
        tail = tl.exp2(-tl.abs(x))
        weights = tl.where(x > 0, 1.0, tail) / (1.0 + tail) * (row_factor[:, None] + column_factor[None, :])
    elif REDUCTION == BOUNDED:
        weights = tl.exp2(x) * (row_factor[:, None] + column_factor[None, :])
    elif ROWS and COLUMNS:
        weights = softmax(x, row_shift[:, None]) * row_factor[:, None]
        weights += softmax(x, column_shift[None, :]) * column_factor[None, :]
    elif ROWS:
        weights = softmax(x, row_shift[:, None]) * row_factor[:, None]
    else:
        weights = softmax(x, column_shift[None, :]) * column_factor[None, :]
    return weights


@triton.jit
def gradient_kernel(
    q_ptr, k_ptr,  # (N, WIDTH), (M, WIDTH): rows 16-byte aligned, zero-padded features
    scale_ptr,  # (1,) fp32
    bias_ptr,  # (1,) fp32, read by SOFTPLUS
    query_ids_ptr, key_ids_ptr,  # (N,), (M,) integers
    row_shift_ptr, row_factor_ptr, column_shift_ptr, column_factor_ptr,  # (N,), (N,), (M,), (M,) fp32
    out_ptr,  # (splits, N, WIDTH) fp32: W k
    sums_ptr,  # (splits, N) fp32: row sums of W
    N, M, q_stride, k_stride, offset, period, tiles, tiles_per_split,
    REDUCTION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SUMS: tl.constexpr,
    DIAGONAL: tl.constexpr, IDS: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``W k`` of one row block and one column split, accumulated in registers."""
    block = tl.program_id(0)
    split = tl.program_id(1)
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    scale = tl.load(scale_ptr) * LOG2_E
    row_shift, row_factor = load_upstream(row_shift_ptr, row_factor_ptr, rows, N, ROWS, REDUCTION)
    q = load_rows(q_ptr, rows, N, q_stride, 0, WIDTH)
    out = tl.zeros((BLOCK_M, WIDTH), tl.float32)
    sums = tl.zeros((BLOCK_M,), tl.float32)

    begin = split * tiles_per_split
    end = tl.minimum(begin + tiles_per_split, tiles)
    for tile in range(begin, end):
        columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        column_shift, column_factor = load_upstream(column_shift_ptr, column_factor_ptr, columns, M, COLUMNS, REDUCTION)
        k = load_rows(k_ptr, columns, M, k_stride, 0, WIDTH)
        products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        x = tile_logits(
            products, scale, bias_ptr, block * BLOCK_M, tile * BLOCK_N, N, M, query_ids_ptr, key_ids_ptr,
            offset, period, REDUCTION, DIAGONAL, IDS, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        weights = pair_weights(x, row_shift, row_factor, column_shift, column_factor, REDUCTION, ROWS, COLUMNS)
        if SUMS:
            sums += tl.sum(weights, 1)
        out = tl.dot(weights.to(k.dtype), k, out, input_precision=PRECISION)

    position = split.to(tl.int64) * N + rows.to(tl.int64)
    features = tl.arange(0, WIDTH)
    tl.store(out_ptr + position[:, None] * WIDTH + features[None, :], out, mask=(rows < N)[:, None])
    if SUMS:
        tl.store(sums_ptr + position, sums, mask=rows < N)


@triton.jit
def panel_kernel(
    q_ptr, k_ptr,  # (N, WIDTH), (M, WIDTH): rows 16-byte aligned, zero-padded features
    scale_ptr,  # (1,) fp32
    bias_ptr,  # (1,) fp32, read by SOFTPLUS
    query_ids_ptr, key_ids_ptr,  # (N,), (M,) integers
    row_shift_ptr, row_factor_ptr, column_shift_ptr, column_factor_ptr,  # (N,), (N,), (M,), (M,) fp32
    panel_ptr,  # (last_row - first_row, last_column - first_column) in the dtype of q
    N, M, q_stride, k_stride, panel_stride, offset, period, first_row, last_row, first_column, last_column,
    REDUCTION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr,
    DIAGONAL: tl.constexpr, IDS: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of ``W``, written to a panel that library products read."""
    row_blocks = tl.cdiv(last_row - first_row, BLOCK_M)
    column_blocks = tl.cdiv(last_column - first_column, BLOCK_N)
    # groups of GROUP row blocks walk the columns together and share the tiles of k in the cache
    program = tl.program_id(0)
    group = program // (GROUP * column_blocks)
    height = tl.minimum(row_blocks - group * GROUP, GROUP)
    within = program - group * GROUP * column_blocks
    top = first_row + (group * GROUP + within % height) * BLOCK_M
    left = first_column + (within // height) * BLOCK_N
    rows = top + tl.arange(0, BLOCK_M)
    columns = left + tl.arange(0, BLOCK_N)

    products = streamed_products(
        q_ptr, k_ptr, rows, columns, N, M, q_stride, k_stride, WIDTH, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION
    )
    scale = tl.load(scale_ptr) * LOG2_E
    row_shift, row_factor = load_upstream(row_shift_ptr, row_factor_ptr, rows, N, ROWS, REDUCTION)
    column_shift, column_factor = load_upstream(column_shift_ptr, column_factor_ptr, columns, M, COLUMNS, REDUCTION)
    x = tile_logits(
        products, scale, bias_ptr, top, left, N, M, query_ids_ptr, key_ids_ptr,
        offset, period, REDUCTION, DIAGONAL, IDS, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    weights = pair_weights(x, row_shift, row_factor, column_shift, column_factor, REDUCTION, ROWS, COLUMNS)
    # the launcher bounds the panel in bytes, so 32 bits hold its offsets
    offsets = (rows - first_row)[:, None] * panel_stride + (columns - first_column)[None, :]
    inside = (rows < last_row)[:, None] & (columns < last_column)[None, :]
    tl.store(panel_ptr + offsets, weights.to(panel_ptr.dtype.element_ty), mask=inside)


@triton.jit
def finish_kernel(
    raw_ptr,  # (splits, N, WIDTH) fp32: W k
    q_ptr,  # (N, WIDTH)
    scale_ptr, unit_ptr,  # (1,) fp32
    gradient_ptr,  # (N, D) in the dtype of the caller's embeddings
    dot_ptr,  # (N,) fp32: <q_i, (W k)_i>, whose sum is the gradient of the scale
    N, D, q_stride, gradient_stride, splits,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Add the splits in their order, scale, round once; the row dot is taken before rounding."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    unit = tl.load(unit_ptr)
    scale = tl.load(scale_ptr)
    dot = tl.zeros((BLOCK_M,), tl.float32)
    for first in range(0, WIDTH, BLOCK_D):
        features = first + tl.arange(0, BLOCK_D)
        inside = (rows < N)[:, None] & (features < D)[None, :]
        raw = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        position = rows.to(tl.int64)
        for _ in range(0, splits):
            raw += tl.load(raw_ptr + position[:, None] * WIDTH + features[None, :], mask=inside, other=0.0)
            position += N
        raw = raw * unit
        q = tl.load(q_ptr + rows.to(tl.int64)[:, None] * q_stride + features[None, :], mask=inside, other=0.0)
        dot += tl.sum(raw * q.to(tl.float32), 1)
        offsets = rows.to(tl.int64)[:, None] * gradient_stride + features[None, :]
        tl.store(gradient_ptr + offsets, (raw * scale).to(gradient_ptr.dtype.element_ty), mask=inside)
    tl.store(dot_ptr + rows, dot, mask=rows < N)
