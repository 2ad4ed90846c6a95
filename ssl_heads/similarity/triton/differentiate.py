"""Backward on the host: in registers where a row of the gradient fits beside the tile, through panels where not."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ssl_heads.similarity.exclusion import Exclusion
from ssl_heads.similarity.triton import operands as limits
from ssl_heads.similarity.triton.autotune import choose
from ssl_heads.similarity.triton.configurations import Tile
from ssl_heads.similarity.triton.device import on_device
from ssl_heads.similarity.triton.gradient import finish_kernel, gradient_kernel, panel_kernel
from ssl_heads.similarity.triton.operands import (
    Operands,
    column_splits,
    is_bounded,
    matrix_arguments,
    operands,
    table_tile,
)

# The panel of weights: at most this large, and at most this wide.
PANEL_BYTES = 128 << 20
PANEL_COLUMNS = 65536
# addmm with half operands and a float32 result: torch 2.8 and later
FLOAT32_FROM_HALF = hasattr(torch.ops.aten.addmm, "dtype_out")
# float16 weights are stored 2^14 times as large: their softmax tail would be subnormal.
WEIGHT_SCALE = {torch.float16: 16384.0, torch.bfloat16: 1.0, torch.float32: 1.0}


class Gradients(NamedTuple):
    """What a backward pass returns; None where it was not asked for."""

    query: Tensor | None
    key: Tensor | None
    scale: Tensor
    row_bias: Tensor | None
    column_bias: Tensor | None


class Needs(NamedTuple):
    """The gradients that a backward pass is asked for; that of the scale comes with any of them.

    Those of the embeddings are rounded once, to ``dtype``; None is the dtype of the embeddings.
    """

    query: bool = True
    key: bool = True
    row_bias: bool = False
    column_bias: bool = False
    dtype: torch.dtype | None = None

    def room(self, embeddings: Tensor) -> Tensor:
        """Where the gradient of these embeddings will be written."""
        return embeddings.new_empty(embeddings.shape, dtype=self.dtype)


NEEDS_EMBEDDINGS = Needs()


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
    exclusion: Exclusion,
    row_lse: Tensor | None,
    row_gradient: Tensor | None,
    column_lse: Tensor | None = None,
    column_gradient: Tensor | None = None,
    *,
    scale: Tensor | float = 1.0,
    row_bias: Tensor | None = None,
    column_bias: Tensor | None = None,
    bound: float = math.inf,
    needs: Needs = NEEDS_EMBEDDINGS,
) -> Gradients:
    """Gradients of `pair_forward`, given those of its results.

    With ``W_ij = g_i exp(S_ij - row_lse_i) + h_j exp(S_ij - column_lse_j)`` on negatives: ``scale W k``,
    ``scale W^T q``, ``sum_ij W_ij <q_i, k_j>``, and the row and column sums of W.
    """
    s = operands(query, key, exclusion, scale, row_bias, column_bias)
    upstream = _upstream(s, row_lse, row_gradient, column_lse, column_gradient, is_bounded(bound))
    return _differentiate(s, upstream, query, key, is_bounded(bound), False, needs)


def softplus_backward(
    query: Tensor,
    key: Tensor,
    exclusion: Exclusion,
    row_gradient: Tensor,
    *,
    scale: Tensor | float = 1.0,
    row_bias: Tensor | None = None,
    column_bias: Tensor | None = None,
    needs: Needs = NEEDS_EMBEDDINGS,
) -> Gradients:
    """Gradients of `softplus_forward`: ``W_ij = g_i sigmoid(S_ij)`` on negatives."""
    s = operands(query, key, exclusion, scale, row_bias, column_bias)
    upstream = _upstream(s, None, row_gradient, None, None, False)
    return _differentiate(s, upstream, query, key, False, True, needs)


def self_backward(
    query: Tensor,
    key: Tensor,
    exclusion: Exclusion,
    lse: Tensor,
    gradient: Tensor,
    *,
    scale: Tensor | float = 1.0,
    bias: Tensor | None = None,
    bound: float = math.inf,
    needs_bias: bool = False,
    dtype: torch.dtype | None = None,
) -> Gradients:
    """``query`` holds ``scale (W + W^T) key`` for a symmetric S: both gradients in one kernel, half the products.

    With ``query = key diag(w)`` the gradient of the embeddings is that product times w. ``scale`` and ``row_bias`` are
    complete, ``key`` and ``column_bias`` are None. The product is rounded once, to ``dtype``.
    """
    s = operands(query, key, exclusion, scale, bias, bias)
    upstream = _upstream(s, lse, gradient, lse, gradient, is_bounded(bound))
    needs = Needs(query=True, key=False, row_bias=needs_bias, dtype=dtype)
    result = _differentiate(s, upstream, query, key, is_bounded(bound), False, needs)
    return result._replace(scale=result.scale / 2)  # each pair was counted from both of its ends


def _upstream(
    s: Operands,
    row_lse: Tensor | None,
    row_gradient: Tensor | None,
    column_lse: Tensor | None,
    column_gradient: Tensor | None,
    bounded: bool,
) -> Upstream:
    gradients = [g for g in (row_gradient, column_gradient) if g is not None]
    if not gradients:
        raise ValueError("a backward pass needs the gradient of the rows or of the columns; got neither")
    largest = torch.stack([g.detach().float().abs().amax() for g in gradients if g.numel()] or [s.scale[0]]).amax()
    unit = torch.where(largest == 0, torch.ones_like(largest), largest).reshape(1) / WEIGHT_SCALE[s.q.dtype]
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


def _weight_arguments(s: Operands, u: Upstream, bounded: bool, softplus: bool) -> dict[str, object]:
    return {
        "row_shift_ptr": u.unit if u.row_shift is None else u.row_shift,
        "row_factor_ptr": u.unit if u.row_factor is None else u.row_factor,
        "column_shift_ptr": u.unit if u.column_shift is None else u.column_shift,
        "column_factor_ptr": u.unit if u.column_factor is None else u.column_factor,
        "ROWS": u.row_factor is not None,
        "COLUMNS": u.column_factor is not None,
        "BOUNDED": bounded or softplus,
        "SOFTPLUS": softplus,
    }


def _differentiate(
    s: Operands,
    u: Upstream,
    query: Tensor,
    key: Tensor,
    bounded: bool,
    softplus: bool,
    needs: Needs,
) -> Gradients:
    if 0 in s.shape:
        n, m = s.shape
        zero = s.scale.new_zeros
        return Gradients(needs.room(query).zero_(), needs.room(key).zero_(), zero(1), zero(n), zero(m))
    mode = (u.row_factor is not None, u.column_factor is not None, bounded, softplus)
    if table_tile("gradient", s) is None:

        def run(tile: Tile) -> Gradients:
            return _through_panels(s, u, tile, query, key, bounded, softplus, needs)

        return run(choose("panel", s, mode, run))
    query_gradient, key_gradient = needs.room(query), needs.room(key)
    tile = choose("gradient", s, mode, lambda tile: _in_registers(s, u, query_gradient, tile, bounded, softplus, False))
    row_sums = column_sums = dots = None
    if needs.key or needs.column_bias:
        dots, column_sums = _in_registers(
            s.transposed(), u.transposed(), key_gradient, tile, bounded, softplus, needs.column_bias
        )
    if needs.query or needs.row_bias or dots is None:
        dots, row_sums = _in_registers(s, u, query_gradient, tile, bounded, softplus, needs.row_bias)
    return Gradients(
        query_gradient if needs.query else None,
        key_gradient if needs.key else None,
        dots.sum().reshape(1),
        row_sums,
        column_sums,
    )


def _in_registers(
    s: Operands, u: Upstream, gradient: Tensor, tile: Tile, bounded: bool, softplus: bool, sums: bool
) -> tuple[Tensor, Tensor | None]:
    """Write ``scale W k`` into ``gradient``; ``<q_i, (W k)_i>``, and the row sums of W on request."""
    n, m = s.shape
    column_tiles = triton.cdiv(m, tile.columns)
    row_blocks = triton.cdiv(n, tile.rows)
    splits = min(column_splits(row_blocks, column_tiles, s.q.device), max(1, limits.PARTIAL_BYTES // (4 * n * s.width)))
    raw = s.scale.new_empty(splits, n, s.width)
    row_sums = s.scale.new_empty(splits, n) if sums else None
    with on_device(s.q):
        gradient_kernel[(row_blocks, splits)](
            **matrix_arguments(s, tile),
            **_weight_arguments(s, u, bounded, softplus),
            out_ptr=raw,
            sums_ptr=u.unit if row_sums is None else row_sums,
            tiles=column_tiles,
            tiles_per_split=triton.cdiv(column_tiles, splits),
            SUMS=sums,
        )
    dots = s.scale.new_empty(n)
    _finish(raw, s.q, s, u, gradient, dots)
    return dots, None if row_sums is None else row_sums.sum(0) * u.unit


def _finish(raw: Tensor, q: Tensor, s: Operands, u: Upstream, gradient: Tensor, dots: Tensor) -> None:
    """Add the splits of ``W k``, scale and round them into ``gradient``, and take the row dots."""
    splits, n, width = raw.shape
    with on_device(q):
        finish_kernel[(triton.cdiv(n, 16),)](
            raw, q, s.scale, u.unit, gradient, dots, n, gradient.shape[1], q.stride(0), gradient.stride(0), splits,
            WIDTH=width, BLOCK_M=16, BLOCK_D=64, num_warps=4,
        )  # fmt: skip


def _through_panels(
    s: Operands,
    u: Upstream,
    tile: Tile,
    query: Tensor,
    key: Tensor,
    bounded: bool,
    softplus: bool,
    needs: Needs,
) -> Gradients:
    """Write W panel by panel and leave both products to the library; the workspace does not grow with n m."""
    n, m = s.shape
    panel_columns = min(m, PANEL_COLUMNS)
    panel_stride = -(-panel_columns // 16) * 16
    panel_rows = max(1, PANEL_BYTES // (panel_stride * s.q.element_size() * tile.rows)) * tile.rows
    panel = s.q.new_empty(min(n, panel_rows), panel_stride)

    query_gradient = needs.room(query) if needs.query or not needs.key else None
    key_raw = s.scale.new_zeros(m, s.width) if needs.key else None
    dots = s.scale.new_empty(n if query_gradient is not None else m)
    row_sums = s.scale.new_zeros(n) if needs.row_bias else None
    column_sums = s.scale.new_zeros(m) if needs.column_bias else None
    for top in range(0, n, panel_rows):
        i = slice(top, min(top + panel_rows, n))
        query_raw = s.scale.new_zeros(i.stop - i.start, s.width)
        for left in range(0, m, panel_columns):
            j = slice(left, min(left + panel_columns, m))
            w = panel[: i.stop - i.start, : j.stop - j.start]
            _launch_panel(s, u, tile, w, i, j, bounded, softplus)
            if query_gradient is not None:
                _accumulate(query_raw, w, s.k[j])
            if key_raw is not None:
                _accumulate(key_raw[j], w.t(), s.q[i])
            if row_sums is not None:
                row_sums[i] += w.sum(1, dtype=torch.float32)
            if column_sums is not None:
                column_sums[j] += w.sum(0, dtype=torch.float32)
        if query_gradient is not None:
            _finish(query_raw[None], s.q[i], s, u, query_gradient[i], dots[i])
    key_gradient = None
    if key_raw is not None:
        key_gradient = needs.room(key)
        key_dots = s.scale.new_empty(m) if query_gradient is not None else dots
        _finish(key_raw[None], s.k, s, u, key_gradient, key_dots)
    return Gradients(
        query_gradient,
        key_gradient,
        dots.sum().reshape(1),
        None if row_sums is None else row_sums * u.unit,
        None if column_sums is None else column_sums * u.unit,
    )


def _launch_panel(
    s: Operands, u: Upstream, tile: Tile, panel: Tensor, i: slice, j: slice, bounded: bool, softplus: bool
) -> None:
    programs = triton.cdiv(i.stop - i.start, tile.rows) * triton.cdiv(j.stop - j.start, tile.columns)
    with on_device(s.q):
        panel_kernel[(programs,)](
            **matrix_arguments(s, tile),
            **_weight_arguments(s, u, bounded, softplus),
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
