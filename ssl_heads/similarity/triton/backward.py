"""Backward on the host: in registers where a row of the gradient fits beside the tile, through panels where not."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ssl_heads.similarity.backend import Needs
from ssl_heads.similarity.exclusion import Exclusion
from ssl_heads.similarity.triton.arguments import (
    BOUNDED,
    SOFTPLUS,
    Matrix,
    column_splits,
    matrix_arguments,
    partials_that_fit,
    softmax_matrix,
    softplus_matrix,
    table_tile,
)
from ssl_heads.similarity.triton.autotune import choose
from ssl_heads.similarity.triton.configurations import Tile
from ssl_heads.similarity.triton.device import on_device
from ssl_heads.similarity.triton.forward import reduce_pairs
from ssl_heads.similarity.triton.kernels.backward import finish_kernel, gradient_kernel, panel_kernel

# The panel of weights: at most this large, and at most this wide.
PANEL_BYTES = 128 << 20
PANEL_COLUMNS = 65536
# addmm with half operands and a float32 result: torch 2.8 and later
FLOAT32_FROM_HALF = hasattr(torch.ops.aten.addmm, "dtype_out")
# float16 weights are stored 2^14 times as large: their softmax tail would be subnormal.
WEIGHT_SCALE = {torch.float16: 16384.0, torch.bfloat16: 1.0, torch.float32: 1.0}


class Gradients(NamedTuple):
    """Products with the weights, in float32; None where a side was not asked for.

    Attributes:
        query: ``scale W k``.
        key: ``scale W^T q``.
        scale: ``sum_ij W_ij <q_i, k_j>``, of shape (1,); it comes with any of the others.
        bias: ``sum_ij W_ij``, of shape (1,), of a softplus.
    """

    query: Tensor | None
    key: Tensor | None
    scale: Tensor
    bias: Tensor | None


class Upstream(NamedTuple):
    """What the exponents subtract and the exponentials are multiplied by; a side without gradient is None.

    Attributes:
        row_shift: Log-sum-exp of the rows in base 2.
        row_factor: Gradient of the rows over ``unit``; where S is bounded, times ``exp(-lse)``.
        column_shift: Like ``row_shift``.
        column_factor: Like ``row_factor``.
        unit: Largest gradient over the scale in which weights are stored: what a product with W is multiplied by.
    """

    row_shift: Tensor | None
    row_factor: Tensor | None
    column_shift: Tensor | None
    column_factor: Tensor | None
    unit: Tensor

    def transposed(self) -> Upstream:
        """The weights of S^T."""
        return Upstream(self.column_shift, self.column_factor, self.row_shift, self.row_factor, self.unit)


def pair_backward(
    query: Tensor,
    key: Tensor,
    scale: Tensor | float,
    row: Tensor,
    column: Tensor,
    saved: Tensor,
    row_gradient: Tensor,
    column_gradient: Tensor,
    exclusion: Exclusion,
    one_sweep: bool,
    bound: float,
    needs: Needs,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `pair_forward`, given those of its results; see `ssl_heads.similarity.backend.Backend`."""
    matrix = softmax_matrix(query, key, scale, exclusion, bound)
    by_column = (column, column_gradient) if column.numel() > 0 else (None, None)
    found = _differentiate(matrix, _upstream(matrix, row, row_gradient, *by_column), query.shape[1], needs)
    nothing = row.new_empty(0)
    by_query = nothing if found.query is None else found.query
    return by_query, nothing if found.key is None else found.key, found.scale


def self_backward(
    query: Tensor,
    key: Tensor,
    scale: Tensor | float,
    row: Tensor,
    saved: Tensor,
    row_gradient: Tensor,
    exclusion: Exclusion,
    bound: float,
    needs_scale: bool,
) -> tuple[Tensor, Tensor]:
    """``scale (W + W^T) k`` for a symmetric S: both gradients in one kernel, half the products; that of the scale."""
    matrix = softmax_matrix(query, key, scale, exclusion, bound)
    upstream = _upstream(matrix, row, row_gradient, row, row_gradient)
    found = _differentiate(matrix, upstream, query.shape[1], Needs(key=False))
    assert found.query is not None
    return found.query, found.scale / 2  # each pair was counted from both of its ends


def softplus_sum(
    query: Tensor, key: Tensor, scale: Tensor | float, bias: Tensor, exclusion: Exclusion, gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``sum_ij softplus(S_ij + bias)``; on request its gradients, with ``W_ij = sigmoid(S_ij + bias)``."""
    matrix = softplus_matrix(query, key, scale, bias, exclusion)
    total = reduce_pairs(matrix, columns=False)[0].sum()
    nothing = total.new_empty(0)
    if not gradient:
        return total, nothing, nothing, nothing, nothing
    ones = total.new_ones(query.shape[0])
    found = _differentiate(matrix, _upstream(matrix, None, ones, None, None), query.shape[1], Needs())
    assert found.query is not None
    assert found.key is not None
    assert found.bias is not None
    return total, found.query, found.key, found.scale, found.bias


def _upstream(
    matrix: Matrix,
    row_lse: Tensor | None,
    row_gradient: Tensor | None,
    column_lse: Tensor | None,
    column_gradient: Tensor | None,
) -> Upstream:
    gradients = [g for g in (row_gradient, column_gradient) if g is not None]
    largest = torch.stack([g.detach().float().abs().amax() for g in gradients if g.numel()] or [matrix.scale[0]]).amax()
    unit = torch.where(largest == 0, torch.ones_like(largest), largest).reshape(1) / WEIGHT_SCALE[matrix.q.dtype]
    bounded = matrix.reduction == BOUNDED
    rows = _shift_and_factor(row_lse, row_gradient, unit, bounded)
    return Upstream(*rows, *_shift_and_factor(column_lse, column_gradient, unit, bounded), unit)


def _shift_and_factor(
    lse: Tensor | None, gradient: Tensor | None, unit: Tensor, bounded: bool
) -> tuple[Tensor | None, Tensor | None]:
    if gradient is None:
        return None, None
    factor = gradient.detach().float() / unit
    if lse is None:
        return None, factor
    empty = lse == -math.inf  # a row without negatives has no gradient
    lse = lse.masked_fill(empty, 0.0)
    factor = factor.masked_fill(empty, 0.0)
    return (None, factor * torch.exp(-lse)) if bounded else (lse / math.log(2), factor)


def _weight_arguments(u: Upstream) -> dict[str, object]:
    return {
        "row_shift_ptr": u.unit if u.row_shift is None else u.row_shift,
        "row_factor_ptr": u.unit if u.row_factor is None else u.row_factor,
        "column_shift_ptr": u.unit if u.column_shift is None else u.column_shift,
        "column_factor_ptr": u.unit if u.column_factor is None else u.column_factor,
        "ROWS": u.row_factor is not None,
        "COLUMNS": u.column_factor is not None,
    }


def _differentiate(matrix: Matrix, u: Upstream, width: int, needs: Needs) -> Gradients:
    """Products of W with the rows of both sides, as wide as the embeddings were before they were padded."""
    n, m = matrix.shape
    if n == 0 or m == 0:
        zeros = matrix.scale.new_zeros
        query = zeros(n, width) if needs.query else None
        return Gradients(query, zeros(m, width) if needs.key else None, zeros(1), zeros(1))
    mode = (u.row_factor is not None, u.column_factor is not None, matrix.reduction)
    if table_tile("gradient", matrix) is None:

        def run(tile: Tile) -> Gradients:
            return _through_panels(matrix, u, tile, width, needs)

        return run(choose("panel", matrix, mode, run))
    tile = choose("gradient", matrix, mode, lambda tile: _in_registers(matrix, u, width, tile))
    query = key = dots = sums = None
    if needs.key:
        key, dots, sums = _in_registers(matrix.transposed(), u.transposed(), width, tile)
    if needs.query or dots is None:
        query, dots, sums = _in_registers(matrix, u, width, tile)
    return Gradients(query if needs.query else None, key, dots.sum().reshape(1), _sum_of_weights(sums, u))


def _sum_of_weights(sums: Tensor | None, u: Upstream) -> Tensor | None:
    return None if sums is None else sums.sum().reshape(1) * u.unit


def _in_registers(matrix: Matrix, u: Upstream, width: int, tile: Tile) -> tuple[Tensor, Tensor, Tensor | None]:
    """``scale W k``, the dots ``<q_i, (W k)_i>``, and for a softplus the row sums of W."""
    n, m = matrix.shape
    column_tiles = triton.cdiv(m, tile.columns)
    row_blocks = triton.cdiv(n, tile.rows)
    splits = partials_that_fit(column_splits(row_blocks, column_tiles, matrix.q.device), n * matrix.width)
    raw = matrix.scale.new_empty(splits, n, matrix.width)
    sums = matrix.scale.new_empty(splits, n) if matrix.reduction == SOFTPLUS else None
    with on_device(matrix.q):
        gradient_kernel[(row_blocks, splits)](
            **matrix_arguments(matrix, tile),
            **_weight_arguments(u),
            out_ptr=raw,
            sums_ptr=u.unit if sums is None else sums,
            tiles=column_tiles,
            tiles_per_split=triton.cdiv(column_tiles, splits),
            SUMS=sums is not None,
        )
    gradient, dots = matrix.scale.new_empty(n, width), matrix.scale.new_empty(n)
    _finish(raw, matrix.q, matrix.scale, u, gradient, dots)
    return gradient, dots, sums


def _finish(raw: Tensor, q: Tensor, scale: Tensor, u: Upstream, gradient: Tensor, dots: Tensor) -> None:
    """Add the splits of ``W k``, scale them into ``gradient``, and take the row dots."""
    splits, n, width = raw.shape
    with on_device(q):
        finish_kernel[(triton.cdiv(n, 16),)](
            raw, q, scale, u.unit, gradient, dots, n, gradient.shape[1], q.stride(0), gradient.stride(0), splits,
            WIDTH=width, BLOCK_M=16, BLOCK_D=64, num_warps=4,
        )  # fmt: skip


def _through_panels(matrix: Matrix, u: Upstream, tile: Tile, width: int, needs: Needs) -> Gradients:
    """Write W panel by panel and leave both products to the library; the workspace does not grow with n m."""
    n, m = matrix.shape
    panel_columns = min(m, PANEL_COLUMNS)
    panel_stride = -(-panel_columns // 16) * 16
    panel_rows = max(1, PANEL_BYTES // (panel_stride * matrix.q.element_size() * tile.rows)) * tile.rows
    panel = matrix.q.new_empty(min(n, panel_rows), panel_stride)
    empty, zeros = matrix.scale.new_empty, matrix.scale.new_zeros

    query = empty(n, width) if needs.query or not needs.key else None
    key_raw = zeros(m, matrix.width) if needs.key else None
    dots = empty(n if query is not None else m)
    sums = zeros(n) if matrix.reduction == SOFTPLUS else None
    for top in range(0, n, panel_rows):
        i = slice(top, min(top + panel_rows, n))
        query_raw = zeros(i.stop - i.start, matrix.width)
        for left in range(0, m, panel_columns):
            j = slice(left, min(left + panel_columns, m))
            w = panel[: i.stop - i.start, : j.stop - j.start]
            _launch_panel(matrix, u, tile, w, i, j)
            if query is not None:
                _accumulate(query_raw, w, matrix.k[j])
            if key_raw is not None:
                _accumulate(key_raw[j], w.t(), matrix.q[i])
            if sums is not None:
                sums[i] += w.sum(1, dtype=torch.float32)
        if query is not None:
            _finish(query_raw[None], matrix.q[i], matrix.scale, u, query[i], dots[i])
    key = None
    if key_raw is not None:
        key, key_dots = empty(m, width), empty(m) if query is not None else dots
        _finish(key_raw[None], matrix.k, matrix.scale, u, key, key_dots)
    return Gradients(query if needs.query else None, key, dots.sum().reshape(1), _sum_of_weights(sums, u))


def _launch_panel(matrix: Matrix, u: Upstream, tile: Tile, panel: Tensor, i: slice, j: slice) -> None:
    programs = triton.cdiv(i.stop - i.start, tile.rows) * triton.cdiv(j.stop - j.start, tile.columns)
    with on_device(matrix.q):
        panel_kernel[(programs,)](
            **matrix_arguments(matrix, tile),
            **_weight_arguments(u),
            panel_ptr=panel,
            panel_stride=panel.stride(0),
            first_row=i.start,
            last_row=i.stop,
            first_column=j.start,
            last_column=j.stop,
            GROUP=8,
            BLOCK_D=tile.features,
        )


def _accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a b`` with float32 accumulation."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    elif a.is_cuda and torch.version.hip is None and FLOAT32_FROM_HALF:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.float(), b.float())
