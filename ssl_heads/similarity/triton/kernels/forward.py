"""Row and column reductions of the similarity matrix, tile by tile; no tile leaves the chip."""

from __future__ import annotations

import triton
import triton.language as tl

from ssl_heads.similarity.triton.kernels.tile import (
    BOUNDED,
    LN_2,
    LOG2_E,
    ONLINE,
    SOFTPLUS,
    load_rows,
    softplus,
    streamed_products,
    tile_logits,
)


@triton.jit
def forward_kernel(
    q_ptr, k_ptr,  # (N, WIDTH), (M, WIDTH): rows 16-byte aligned, zero-padded features
    scale_ptr,  # (1,) fp32
    bias_ptr,  # (1,) fp32, read by SOFTPLUS
    query_ids_ptr, key_ids_ptr,  # (N,), (M,) integers
    row_ptr,  # (splits, N) fp32: one partial result a column split
    column_ptr,  # (slots, M) fp32: one partial result a row block, or with ONE_SET a block distance
    N, M, q_stride, k_stride, column_stride, offset, period, first_block, first_tile, last_tile, tiles_per_split,
    REDUCTION: tl.constexpr, COLUMNS: tl.constexpr, ONE_SET: tl.constexpr, DIAGONAL: tl.constexpr, IDS: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Reduce the tiles of one row block and one column split.

    A partial result is ``log sum_j exp(S_ij)`` for ONLINE, ``sum_j exp(S_ij)`` for BOUNDED, ``sum_j softplus(S_ij)``
    for SOFTPLUS. With ONE_SET, S is symmetric: row block ``b`` meets the blocks ``b, b + 1, ...`` around a circle, up
    to the one opposite, and each tile off the diagonal serves its rows and, as columns, the rows of the other block.
    """
    block = first_block + tl.program_id(0)
    split = tl.program_id(1)
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    scale = tl.load(scale_ptr) * LOG2_E
    blocks = tl.cdiv(N, BLOCK_M)
    maximum = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    if WIDTH == BLOCK_D:
        q = load_rows(q_ptr, rows, N, q_stride, 0, BLOCK_D)

    begin = first_tile + split * tiles_per_split
    end = tl.minimum(begin + tiles_per_split, last_tile)
    for tile in range(begin, end):
        column_block = tile
        if ONE_SET:
            column_block = (block + tile) % blocks
        columns = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
        counted = M
        if ONE_SET:
            # two blocks half a circle apart meet twice: the second meeting counts nothing
            counted = tl.where((2 * tile == blocks) & (block >= tile), 0, M)
        if WIDTH == BLOCK_D:
            k = load_rows(k_ptr, columns, M, k_stride, 0, BLOCK_D)
            products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        else:
            products = streamed_products(
                q_ptr, k_ptr, rows, columns, N, M, q_stride, k_stride, WIDTH, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION
            )
        x = tile_logits(
            products, scale, bias_ptr, block * BLOCK_M, column_block * BLOCK_N, N, counted, query_ids_ptr, key_ids_ptr,
            offset, period, REDUCTION, DIAGONAL, IDS, BLOCK_M, BLOCK_N,
        )  # fmt: skip

        if REDUCTION == SOFTPLUS:
            total += tl.sum(softplus(x * LN_2), 1)
        elif REDUCTION == BOUNDED:
            p = tl.exp2(x)
            total += tl.sum(p, 1)
            if COLUMNS:
                column_partial = tl.sum(p, 0)
        else:
            new_maximum = tl.maximum(maximum, tl.max(x, 1))
            shift = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
            total = total * tl.exp2(maximum - shift) + tl.sum(tl.exp2(x - shift[:, None]), 1)
            maximum = new_maximum
            if COLUMNS:
                column_maximum = tl.max(x, 0)
                shift = tl.where(column_maximum == float("-inf"), 0.0, column_maximum)
                column_partial = (shift + tl.log2(tl.sum(tl.exp2(x - shift[None, :]), 0))) * LN_2
        if COLUMNS:
            slot = tl.program_id(0)
            store = columns < M
            if ONE_SET:
                slot = tile - first_tile
                store = store & (tile > 0)
            tl.store(column_ptr + tl.cast(slot, tl.int64) * column_stride + columns, column_partial, mask=store)

    if REDUCTION == ONLINE:
        shift = tl.where(maximum == float("-inf"), 0.0, maximum)
        total = (shift + tl.log2(total)) * LN_2
    tl.store(row_ptr + split.to(tl.int64) * N + rows, total, mask=rows < N)
