"""What every kernel does with one tile of the similarity matrix: load rows, multiply, scale, leave pairs out.

Logits are kept in base 2, ``x = S * log2(e)``, so that one ``exp2`` an element is the only transcendental.
Rows and columns past the end are ``-inf`` like excluded pairs: they enter neither a maximum nor a sum. Most tiles have
neither an edge nor an excluded diagonal, and one scalar comparison finds that out.
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
    """``BLOCK_D`` features of the given rows, zero past the end."""
    features = first + tl.arange(0, BLOCK_D)
    offsets = rows.to(tl.int64)[:, None] * stride + features[None, :]
    return tl.load(pointer + offsets, mask=(rows < count)[:, None], other=0.0)


@triton.jit
def streamed_products(
    q_ptr, k_ptr, rows, columns, N, M, q_stride, k_stride,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``<q_i, k_j>`` of a tile, features streamed for both operands."""
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
    """``-inf`` past the end, where ``j == i + offset (mod period)``, and where the ids are equal, or are different."""
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
    """``S_ij`` in base 2, ``-inf`` for the pairs that are left out; softplus alone has a bias."""
    x = products * scale
    if REDUCTION == SOFTPLUS:
        x += tl.load(bias_ptr) * LOG2_E
    return leave_out(
        x, first_row, first_column, N, M, query_ids_ptr, key_ids_ptr, offset, period, DIAGONAL, IDS, BLOCK_M, BLOCK_N
    )


@triton.jit
def softplus(x):
    """``log(1 + exp(x))`` of a natural logit, with full relative accuracy where it is small."""
    tail = tl.exp2(-tl.abs(x) * LOG2_E)
    series = tail * (1.0 - tail * (0.5 - tail * (0.3333333333 - tail * 0.25)))
    return tl.maximum(x, 0.0) + tl.where(tail < 0.03, series, tl.log2(1.0 + tail) * LN_2)
