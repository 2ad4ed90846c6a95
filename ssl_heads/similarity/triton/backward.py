"""Backward on the host: in registers where a row of the gradient fits beside the tile, through panels where not."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ssl_heads.similarity.backend import LogSum, Matrix, Needs
from ssl_heads.similarity.triton.arguments import (
    BOUNDED,
    SOFTPLUS,
    KernelMatrix,
    column_splits,
    kernel_matrix,
    matrix_arguments,
    partials_that_fit,
)
from ssl_heads.similarity.triton.configurations import Tile, architecture, choose, table_tile
from ssl_heads.similarity.triton.forward import reduce_pairs
from ssl_heads.similarity.triton.kernels import finish_kernel, gradient_kernel, panel_kernel

# The panel of weights: at most this large, and at most this wide.
PANEL_BYTES = 128 << 20
PANEL_COLUMNS = 65536
# addmm with half operands and a float32 result: torch 2.8 and later
FLOAT32_FROM_HALF = hasattr(torch.ops.aten.addmm, "dtype_out")
# float16 weights are stored 2^14 times as large: their softmax tail would be subnormal.
WEIGHT_SCALE = {torch.float16: 16384.0, torch.bfloat16: 1.0, torch.float32: 1.0}


class Gradients(NamedTuple):
    """Products with the weights, in float32; empty where they were not asked for.

    No tensor stands for two results, which operators of torch forbid.

    Attributes:
        query: `scale W k`.
        key: `scale W^T q`.
        scale: `sum_ij W_ij <q_i, k_j>`, of shape (1,); it comes with any of the others.
        sums: Row sums of W over `Upstream.unit`, in any number of parts; of a softplus.
    """

    query: Tensor
    key: Tensor
    scale: Tensor
    sums: Tensor


class Side(NamedTuple):
    """Shift in the exponents of the rows, or columns, and factor of their exponentials; None without a gradient.

    Attributes:
        shift: Log-sum-exp in base 2; None where S is bounded, or for a softplus.
        factor: Gradient over `Upstream.unit`; where S is bounded, times `exp(-lse)`.
    """

    shift: Tensor | None = None
    factor: Tensor | None = None


class Upstream(NamedTuple):
    """The upstream gradients as weights take them.

    Attributes:
        rows: Of the rows.
        columns: Of the columns.
        unit: Largest gradient over the scale in which weights are stored: the factor of a product with W.
    """

    rows: Side
    columns: Side
    unit: Tensor

    def transposed(self) -> Upstream:
        """The weights of S^T."""
        return Upstream(self.columns, self.rows, self.unit)


def pair_backward(
    matrix: Matrix, row: LogSum, column: LogSum | None, saved: Tensor, one_sweep: bool, needs: Needs
) -> tuple[Tensor, Tensor, Tensor]:
    """`scale W k`, `scale W^T q` and `sum_ij W_ij <q_i, k_j>`; empty where not needed."""
    prepared = kernel_matrix(matrix)
    found = _differentiate(prepared, _upstream(prepared, row, column), matrix.query.shape[1], needs)
    return found.query, found.key, found.scale


def self_backward(matrix: Matrix, row: LogSum, saved: Tensor, needs_scale: bool) -> tuple[Tensor, Tensor]:
    """`scale (W + W^T) k` for a symmetric S: both gradients in one kernel, half the products; that of the scale."""
    prepared = kernel_matrix(matrix)
    found = _differentiate(prepared, _upstream(prepared, row, row), matrix.query.shape[1], Needs(key=False))
    return found.query, found.scale / 2  # each pair was counted from both of its ends


def softplus(matrix: Matrix, bias: Tensor, gradient: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`sum_ij log(1 + exp(S_ij + bias))`; on request its gradients, with `W_ij = sigmoid(S_ij + bias)`."""
    prepared = kernel_matrix(matrix, bias)
    total = reduce_pairs(prepared, columns=False)[0].sum()
    if not gradient:
        return total, total.new_empty(0), total.new_empty(0), total.new_empty(0), total.new_empty(0)
    factor = WEIGHT_SCALE[prepared.q.dtype]
    unit, factors = total.new_full((1,), 1 / factor), total.new_full((len(prepared.q),), factor)
    found = _differentiate(prepared, Upstream(Side(factor=factors), Side(), unit), matrix.query.shape[1], Needs())
    return total, found.query, found.key, found.scale, found.sums.sum().reshape(1) * unit


def _upstream(matrix: KernelMatrix, row: LogSum, column: LogSum | None) -> Upstream:
    parts = [row] if column is None or column is row else [row, column]
    gradients = torch.cat([part.gradient.float() for part in parts])
    largest = gradients.abs().amax().reshape(1) if len(gradients) else matrix.scale  # without rows any unit does
    unit = torch.where(largest == 0, 1.0, largest) / WEIGHT_SCALE[matrix.q.dtype]
    rows = _side(row, unit, matrix.reduction)
    columns = Side() if column is None else rows if column is row else _side(column, unit, matrix.reduction)
    return Upstream(rows, columns, unit)


def _side(log_sum: LogSum, unit: Tensor, reduction: int) -> Side:
    empty = log_sum.value == -math.inf  # a row without negatives has no gradient
    value = log_sum.value.masked_fill(empty, 0.0)
    factor = (log_sum.gradient.float() / unit).masked_fill(empty, 0.0)
    return Side(None, factor * torch.exp(-value)) if reduction == BOUNDED else Side(value / math.log(2), factor)


def _weight_arguments(upstream: Upstream) -> dict[str, object]:
    rows, columns, unit = upstream
    return {
        "row_shift_ptr": unit if rows.shift is None else rows.shift,
        "row_factor_ptr": unit if rows.factor is None else rows.factor,
        "column_shift_ptr": unit if columns.shift is None else columns.shift,
        "column_factor_ptr": unit if columns.factor is None else columns.factor,
        "ROWS": rows.factor is not None,
        "COLUMNS": columns.factor is not None,
    }


def _differentiate(matrix: KernelMatrix, upstream: Upstream, width: int, needs: Needs) -> Gradients:
    """Products of W with the rows of both sides, as wide as the embeddings were before they were padded."""
    n, m = len(matrix.q), len(matrix.k)
    if n == 0 or m == 0:
        zeros = matrix.scale.new_zeros
        query = zeros(n, width) if needs.query else zeros(0)
        return Gradients(query, zeros(m, width) if needs.key else zeros(0), zeros(1), zeros(0))
    mode = (upstream.rows.factor is not None, upstream.columns.factor is not None, matrix.reduction)
    if table_tile(architecture(matrix.q.device), "gradient", matrix.q.dtype, matrix.q.shape[1]) is None:

        def run(tile: Tile) -> Gradients:
            return _through_panels(matrix, upstream, tile, width, needs)

        return run(choose("panel", matrix.q, mode, run))
    tile = choose("gradient", matrix.q, mode, lambda tile: _in_registers(matrix, upstream, width, tile))
    query, key = matrix.scale.new_empty(0), matrix.scale.new_empty(0)
    if needs.key:
        key, dots, sums = _in_registers(matrix.transposed(), upstream.transposed(), width, tile)
    if needs.query or not needs.key:
        query, dots, sums = _in_registers(matrix, upstream, width, tile)
    return Gradients(query if needs.query else query.new_empty(0), key, dots.sum().reshape(1), sums)


def _in_registers(matrix: KernelMatrix, upstream: Upstream, width: int, tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
    """`scale W k`, the dots `<q_i, (W k)_i>`, and for a softplus the row sums of W, else nothing."""
    n, padded = matrix.q.shape
    row_blocks, column_tiles = triton.cdiv(n, tile.rows), triton.cdiv(len(matrix.k), tile.columns)
    splits = partials_that_fit(column_splits(row_blocks, column_tiles, matrix.q.device), n * padded)
    raw = matrix.scale.new_empty(splits, n, padded)
    sums = matrix.scale.new_empty(splits, n if matrix.reduction == SOFTPLUS else 0)
    with torch.cuda.device(matrix.q.get_device()):
        gradient_kernel[(row_blocks, splits)](
            **matrix_arguments(matrix, tile),
            **_weight_arguments(upstream),
            out_ptr=raw,
            sums_ptr=sums,
            tiles=column_tiles,
            tiles_per_split=triton.cdiv(column_tiles, splits),
            SUMS=matrix.reduction == SOFTPLUS,
        )
    gradient, dots = matrix.scale.new_empty(n, width), matrix.scale.new_empty(n)
    _finish(raw, matrix.q, matrix.scale, upstream.unit, gradient, dots)
    return gradient, dots, sums


def _finish(raw: Tensor, q: Tensor, scale: Tensor, unit: Tensor, gradient: Tensor, dots: Tensor) -> None:
    """Add the splits of `W k`, scale them into `gradient`, and take the row dots."""
    splits, n, width = raw.shape
    with torch.cuda.device(q.get_device()):
        finish_kernel[(triton.cdiv(n, 16),)](
            raw, q, scale, unit, gradient, dots, n, gradient.shape[1], q.stride(0), gradient.stride(0), splits,
            WIDTH=width, BLOCK_M=16, BLOCK_D=64, num_warps=4,
        )  # fmt: skip


def _through_panels(matrix: KernelMatrix, upstream: Upstream, tile: Tile, width: int, needs: Needs) -> Gradients:
    """Write W panel by panel and leave both products to the library; the workspace does not grow with n m.

    A panel is in the dtype of the rows: the row sums of a softplus are of rounded weights here, as both products are,
    where the kernel in registers sums before it rounds.
    """
    q, k, scale, unit = matrix.q, matrix.k, matrix.scale, upstream.unit
    (n, padded), m = q.shape, len(k)
    panel_columns = min(m, PANEL_COLUMNS)
    panel_stride = -(-panel_columns // 16) * 16
    panel_rows = max(1, PANEL_BYTES // (panel_stride * q.element_size() * tile.rows)) * tile.rows
    panel = q.new_empty(min(n, panel_rows), panel_stride)

    of_query = needs.query or not needs.key
    query, key = (
        scale.new_empty(n if of_query else 0, width),
        scale.new_empty(m, width) if needs.key else scale.new_empty(0),
    )
    key_raw = scale.new_zeros(m if needs.key else 0, padded)
    dots, sums = scale.new_empty(n if of_query else m), scale.new_zeros(n if matrix.reduction == SOFTPLUS else 0)
    for top in range(0, n, panel_rows):
        i = slice(top, min(top + panel_rows, n))
        query_raw = scale.new_zeros(i.stop - i.start, padded)
        for left in range(0, m, panel_columns):
            j = slice(left, min(left + panel_columns, m))
            w = panel[: i.stop - i.start, : j.stop - j.start]
            _launch_panel(matrix, upstream, tile, w, i, j)
            if of_query:
                _accumulate(query_raw, w, k[j])
            if needs.key:
                _accumulate(key_raw[j], w.t(), q[i])
            if matrix.reduction == SOFTPLUS:
                sums[i] += w.sum(1, dtype=torch.float32)
        if of_query:
            _finish(query_raw[None], q[i], scale, unit, query[i], dots[i])
    if needs.key:
        _finish(key_raw[None], k, scale, unit, key, scale.new_empty(m) if of_query else dots)
    return Gradients(query if needs.query else scale.new_empty(0), key, dots.sum().reshape(1), sums)


def _launch_panel(matrix: KernelMatrix, upstream: Upstream, tile: Tile, panel: Tensor, i: slice, j: slice) -> None:
    programs = triton.cdiv(i.stop - i.start, tile.rows) * triton.cdiv(j.stop - j.start, tile.columns)
    with torch.cuda.device(matrix.q.get_device()):
        panel_kernel[(programs,)](
            **matrix_arguments(matrix, tile),
            **_weight_arguments(upstream),
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
    """`total += a b` with float32 accumulation."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    elif a.is_cuda and torch.version.hip is None and FLOAT32_FROM_HALF:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.float(), b.float())
