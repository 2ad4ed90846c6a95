"""Kernels in Triton's language: the reductions of the similarity matrix and their gradients, tile by tile.

Logits are kept in base 2, `x = S * log2(e)`, so that one `exp2` an element is the only transcendental. Rows and columns
past the end are `-inf` like excluded pairs: they enter neither a maximum nor a sum. Most tiles have neither an edge nor
an excluded diagonal, and one scalar comparison finds that out.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)

ONLINE = tl.constexpr(0)  # log-sum-exp with a running maximum
BOUNDED = tl.constexpr(1)  # sum of exp(S), where S is known to be small
SOFTPLUS = tl.constexpr(2)  # sum of softplus(S)

NO_DIAGONAL = tl.constexpr(0)
ONE_DIAGONAL = tl.constexpr(1)  # the period exceeds a tile: at most one excluded diagonal crosses it
MANY_DIAGONALS = tl.constexpr(2)

NO_IDS = tl.constexpr(0)
LEAVE_OUT_EQUAL = tl.constexpr(1)
LEAVE_OUT_DIFFERENT = tl.constexpr(2)


@triton.jit
def load_rows(pointer, rows, count, stride, first, BLOCK_D: tl.constexpr):
    """`BLOCK_D` features of the given rows, zero past the end."""
    features = first + tl.arange(0, BLOCK_D)
    offsets = rows.to(tl.int64)[:, None] * stride + features[None, :]
    return tl.load(pointer + offsets, mask=(rows < count)[:, None], other=0.0)


@triton.jit
def streamed_products(
    q_ptr, k_ptr, rows, columns, N, M, q_stride, k_stride,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`<q_i, k_j>` of a tile, features streamed for both operands."""
    products = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, WIDTH, BLOCK_D):
        q = load_rows(q_ptr, rows, N, q_stride, first, BLOCK_D)
        k = load_rows(k_ptr, columns, M, k_stride, first, BLOCK_D)
        products = tl.dot(q, tl.trans(k), products, input_precision=PRECISION)
    return products


@triton.jit
def leave_out(
    x, first_row, first_column, N, M, query_ids_ptr, key_ids_ptr, offset, period,
    DIAGONAL: tl.constexpr, IDS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`-inf` past the end, where `j == i + offset (mod period)`, and where the ids are equal, or are different."""
    i = tl.arange(0, BLOCK_M)[:, None]
    j = tl.arange(0, BLOCK_N)[None, :]
    if (first_row + BLOCK_M > N) | (first_column + BLOCK_N > M):
        x = tl.where((first_row + i < N) & (first_column + j < M), x, float("-inf"))
    if DIAGONAL != NO_DIAGONAL:
        # the tile's own diagonal j - i, at least -BLOCK_M, that is left out first
        shift = (tl.cast(first_row, tl.int64) + offset - first_column + BLOCK_M) % period
        shift = tl.where(shift < 0, shift + period, shift)  # the device's remainder keeps the sign of the dividend
        diagonal = (shift - BLOCK_M).to(tl.int32)
        if DIAGONAL == ONE_DIAGONAL:
            if diagonal < BLOCK_N:
                x = tl.where(j == i + diagonal, float("-inf"), x)
        else:
            x = tl.where((j - i - diagonal) % tl.cast(period, tl.int32) == 0, float("-inf"), x)
    if IDS != NO_IDS:
        rows = first_row + tl.arange(0, BLOCK_M)
        columns = first_column + tl.arange(0, BLOCK_N)
        query_ids = tl.load(query_ids_ptr + rows, mask=rows < N, other=0)
        key_ids = tl.load(key_ids_ptr + columns, mask=columns < M, other=0)
        excluded = query_ids[:, None] == key_ids[None, :]
        if IDS == LEAVE_OUT_DIFFERENT:
            excluded = query_ids[:, None] != key_ids[None, :]
        x = tl.where(excluded, float("-inf"), x)
    return x


@triton.jit
def tile_logits(
    products, scale, bias_ptr, first_row, first_column, N, M, query_ids_ptr, key_ids_ptr, offset, period,
    REDUCTION: tl.constexpr, DIAGONAL: tl.constexpr, IDS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`S_ij` in base 2, `-inf` for the pairs that are left out; softplus alone has a bias."""
    x = products * scale
    if REDUCTION == SOFTPLUS:
        x += tl.load(bias_ptr) * LOG2_E
    return leave_out(
        x, first_row, first_column, N, M, query_ids_ptr, key_ids_ptr, offset, period, DIAGONAL, IDS, BLOCK_M, BLOCK_N
    )


@triton.jit
def softplus(x):
    """`log(1 + exp(x))` of a natural logit, with full relative accuracy where it is small."""
    tail = tl.exp2(-tl.abs(x) * LOG2_E)
    series = tail * (1.0 - tail * (0.5 - tail * (0.3333333333 - tail * 0.25)))
    return tl.maximum(x, 0.0) + tl.where(tail < 0.03, series, tl.log2(1.0 + tail) * LN_2)


# -------------------------------------------------------------------------------------------------------------- forward


@triton.jit
def forward_kernel(
    q_ptr, k_ptr,  # (N, WIDTH), (M, WIDTH): rows 16-byte aligned, zero-padded features
    scale_ptr,  # (1,) float32
    bias_ptr,  # (1,) float32, read by SOFTPLUS
    query_ids_ptr, key_ids_ptr,  # (N,), (M,) integers
    row_ptr,  # (splits, N) float32: one partial result a column split
    column_ptr,  # (slots, M) float32: one partial result a row block, or with ONE_SET a block distance
    N, M, q_stride, k_stride, column_stride, offset, period, first_block, first_tile, last_tile, tiles_per_split,
    REDUCTION: tl.constexpr, COLUMNS: tl.constexpr, ONE_SET: tl.constexpr, DIAGONAL: tl.constexpr, IDS: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Reduce the tiles of one row block and one column split.

    A partial result is `log sum_j exp(S_ij)` for ONLINE, `sum_j exp(S_ij)` for BOUNDED, `sum_j softplus(S_ij)`
    for SOFTPLUS. With ONE_SET, S is symmetric: row block `b` meets the blocks `b, b + 1, ...` around a circle, up
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


# ------------------------------------------------------------------------------------------------------------- backward
#
# The tiles are computed again, weighted, and multiplied with the other side. With upstream gradients g of the rows and
# h of the columns the weight of a pair is
#
#     W_ij = g_i exp(S_ij - row_lse_i) + h_j exp(S_ij - column_lse_j),        W_ij = g_i sigmoid(S_ij)  (SOFTPLUS),
#
# and 0 where the pair is left out. The launcher divides g and h by their largest magnitude (unit), so that weights are
# O(1) when they are rounded for the tensor cores; finish_kernel multiplies it back. Where S is bounded the launcher
# also folds exp(-lse) into these factors, and one exponential serves both terms.


@triton.jit
def load_upstream(shift_ptr, factor_ptr, positions, count, PRESENT: tl.constexpr, REDUCTION: tl.constexpr):
    """Shift in the exponent and factor of the exponential; zero past the end."""
    shift = tl.zeros(positions.shape, tl.float32)
    factor = tl.zeros(positions.shape, tl.float32)
    if PRESENT:
        factor = tl.load(factor_ptr + positions, mask=positions < count, other=0.0)
        if REDUCTION == ONLINE:
            shift = tl.load(shift_ptr + positions, mask=positions < count, other=0.0)
    return shift, factor


@triton.jit
def softmax(x, shift):
    """`2^(x - shift)`, clamped to 1: above about 1e7, float32 rounding could make the difference positive."""
    return tl.exp2(tl.minimum(x - shift, 0.0))


@triton.jit
def pair_weights(
    x, row_shift, row_factor, column_shift, column_factor,
    REDUCTION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`W` of a tile; one exponential an element where S is bounded or one side alone has a gradient."""
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
    scale_ptr,  # (1,) float32
    bias_ptr,  # (1,) float32, read by SOFTPLUS
    query_ids_ptr, key_ids_ptr,  # (N,), (M,) integers
    row_shift_ptr, row_factor_ptr, column_shift_ptr, column_factor_ptr,  # (N,), (N,), (M,), (M,) float32
    out_ptr,  # (splits, N, WIDTH) float32: W k
    sums_ptr,  # (splits, N) float32: row sums of W
    N, M, q_stride, k_stride, offset, period, tiles, tiles_per_split,
    REDUCTION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SUMS: tl.constexpr,
    DIAGONAL: tl.constexpr, IDS: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`W k` of one row block and one column split, accumulated in registers."""
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
    scale_ptr,  # (1,) float32
    bias_ptr,  # (1,) float32, read by SOFTPLUS
    query_ids_ptr, key_ids_ptr,  # (N,), (M,) integers
    row_shift_ptr, row_factor_ptr, column_shift_ptr, column_factor_ptr,  # (N,), (N,), (M,), (M,) float32
    panel_ptr,  # (last_row - first_row, last_column - first_column) in the dtype of q
    N, M, q_stride, k_stride, panel_stride, offset, period, first_row, last_row, first_column, last_column,
    REDUCTION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr,
    DIAGONAL: tl.constexpr, IDS: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of `W`, written to a panel that library products read."""
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
    raw_ptr,  # (splits, N, WIDTH) float32: W k
    q_ptr,  # (N, WIDTH)
    scale_ptr, unit_ptr,  # (1,) float32
    gradient_ptr,  # (N, D): scale W k, float32 from the launcher
    dot_ptr,  # (N,) float32: <q_i, (W k)_i>, whose sum is the gradient of the scale
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
