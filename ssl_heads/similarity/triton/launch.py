"""Host side of the kernels: plain tensors in, plain tensors out; nothing here waits for the device.

Buffers are allocated by shape, choices are made from shapes, dtypes and device properties, and every sum has a fixed
order: two runs are bitwise equal, and a CUDA graph can capture them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ssl_heads.similarity.exclusion import Exclusion
from ssl_heads.similarity.triton import tiles
from ssl_heads.similarity.triton.configurations import WIDE, WIDTHS, Kernel, Precision, Tile, padded_width
from ssl_heads.similarity.triton.device import (
    INTERPRETED,
    architecture,
    multiprocessors,
    on_device,
    require_device,
    tile_for,
)
from ssl_heads.similarity.triton.forward import forward_kernel
from ssl_heads.similarity.triton.gradient import finish_kernel, gradient_kernel, panel_kernel

# exp(S) of |S| <= 64 neither overflows in a float32 sum of 10^10 terms nor underflows, in itself or as an inverse.
LARGEST_EXACT_BOUND = 64.0
# Column partials of one launch, and the panel of weights.
PARTIAL_BYTES = 64 << 20
PANEL_BYTES = 128 << 20
PANEL_COLUMNS = 65536
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
    """The gradients that a backward pass is asked for; that of the scale comes with any of them."""

    query: bool = True
    key: bool = True
    row_bias: bool = False
    column_bias: bool = False


NEEDS_EMBEDDINGS = Needs()


class Operands(NamedTuple):
    """Everything that defines S: the same fields whether rows are queries or, transposed, keys."""

    q: Tensor
    k: Tensor
    scale: Tensor
    row_bias: Tensor | None
    column_bias: Tensor | None
    exclusion: Exclusion

    @property
    def shape(self) -> tuple[int, int]:
        return self.q.shape[0], self.k.shape[0]

    @property
    def width(self) -> int:
        return self.q.shape[1]

    def transposed(self) -> Operands:
        """S^T."""
        offset, period, query_ids, key_ids, keep_equal = self.exclusion
        exclusion = Exclusion(-offset, period, key_ids, query_ids, keep_equal)
        return Operands(self.k, self.q, self.scale, self.column_bias, self.row_bias, exclusion)


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


# ------------------------------------------------------------------------------------------------------------ operands


def aligned(x: Tensor) -> Tensor:
    """``x`` itself if the kernels can read it, else a copy with zero-padded features and 16-byte aligned rows."""
    if INTERPRETED and x.dtype == torch.bfloat16:
        x = x.float()  # the interpreter has no bfloat16 arithmetic; the values are rounded already
    rows, width = x.shape
    readable = x.stride(1) == 1 and x.stride(0) % 16 == 0 and x.data_ptr() % 16 == 0
    if readable and width == padded_width(width):
        return x
    buffer = x.new_zeros(rows, padded_width(width))
    buffer[:, :width] = x
    return buffer


def operands(
    query: Tensor,
    key: Tensor,
    exclusion: Exclusion,
    scale: Tensor | float,
    row_bias: Tensor | None,
    column_bias: Tensor | None,
) -> Operands:
    """Check the inputs and bring them into the form that the kernels read."""
    require_device(query)
    if query.dtype not in WEIGHT_SCALE or query.dtype != key.dtype:
        raise ValueError(
            f"the kernels take query and key of one dtype, float32, bfloat16 or float16; got {query.dtype} and {key.dtype}: "
            'convert them, or pass impl="tiled"'
        )
    if query.dim() != 2 or key.dim() != 2 or query.shape[1] != key.shape[1]:
        raise ValueError(f"query (n, d) and key (m, d) share d; got {tuple(query.shape)} and {tuple(key.shape)}")
    if not isinstance(scale, Tensor):
        scale = torch.full((1,), scale, dtype=torch.float32, device=query.device)
    q = aligned(query)
    k = q if key is query else aligned(key)
    return Operands(
        q, k, scale.detach().float().reshape(1), _vector(row_bias), _vector(column_bias), _contiguous(exclusion)
    )


def _vector(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach().float().contiguous()


def _contiguous(exclusion: Exclusion) -> Exclusion:
    if exclusion.query_ids is None or exclusion.key_ids is None:
        return exclusion
    return exclusion._replace(query_ids=exclusion.query_ids.contiguous(), key_ids=exclusion.key_ids.contiguous())


def is_bounded(bound: float) -> bool:
    """Whether ``|S| <= bound`` lets one exponential without a shift serve rows and columns exactly."""
    return bound <= LARGEST_EXACT_BOUND


def _tile(kernel: Kernel, s: Operands) -> Tile | None:
    precision: Precision = "float" if s.q.dtype == torch.float32 else "half"
    width = s.width if s.width in WIDTHS else WIDE
    return tile_for(architecture(s.q.device), kernel, precision, width)


def _dot_precision(s: Operands) -> str:
    """How float32 products use the tensor cores: three tf32 products unless the user allows one."""
    exact = torch.get_float32_matmul_precision() == "highest"
    if torch.version.hip is not None:
        return "ieee" if exact else "tf32"
    return "tf32x3" if exact else "tf32"


def _exclusion_arguments(s: Operands, tile: Tile) -> dict[str, object]:
    offset, period, query_ids, key_ids, keep_equal = s.exclusion
    diagonal = tiles.NO_DIAGONAL
    if period > 0:
        diagonal = tiles.ONE_DIAGONAL if period >= tile.rows + tile.columns else tiles.MANY_DIAGONALS
    ids = tiles.NO_IDS
    if query_ids is not None:
        ids = tiles.LEAVE_OUT_DIFFERENT if keep_equal else tiles.LEAVE_OUT_EQUAL
    return {
        "query_ids_ptr": s.scale if query_ids is None else query_ids,
        "key_ids_ptr": s.scale if key_ids is None else key_ids,
        "offset": offset,
        "period": period,
        "DIAGONAL": diagonal.value,
        "IDS": ids.value,
    }


def _matrix_arguments(s: Operands, tile: Tile) -> dict[str, object]:
    """The arguments that all tile kernels share."""
    return {
        "q_ptr": s.q,
        "k_ptr": s.k,
        "scale_ptr": s.scale,
        "row_bias_ptr": s.scale if s.row_bias is None else s.row_bias,
        "column_bias_ptr": s.scale if s.column_bias is None else s.column_bias,
        "N": s.shape[0],
        "M": s.shape[1],
        "q_stride": s.q.stride(0),
        "k_stride": s.k.stride(0),
        "HAS_ROW_BIAS": s.row_bias is not None,
        "HAS_COLUMN_BIAS": s.column_bias is not None,
        "WIDTH": s.width,
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.columns,
        "PRECISION": _dot_precision(s),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        **_exclusion_arguments(s, tile),
    }


def column_splits(row_blocks: int, tiles_per_row: int, device: torch.device) -> int:
    """Programs a row block: about four waves of programs, at least four tiles a program."""
    wanted = -(-4 * multiprocessors(device) // max(row_blocks, 1))
    return max(1, min(wanted, tiles_per_row // 4))


# ------------------------------------------------------------------------------------------------------------- forward


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


def _reduce(s: Operands, columns: bool, bounded: bool, softplus: bool = False) -> tuple[Tensor, Tensor]:
    n, m = s.shape
    additive = bounded or softplus
    nothing = 0.0 if additive else -math.inf
    row, column = s.scale.new_full((n,), nothing), s.scale.new_full((m if columns else 0,), nothing)
    if n and m:
        tile = _tile("forward" if s.exclusion.query_ids is None else "forward_ids", s)
        assert tile is not None
        row_blocks, column_tiles = triton.cdiv(n, tile.rows), triton.cdiv(m, tile.columns)
        slots = max(1, PARTIAL_BYTES // (4 * m)) if columns else row_blocks
        splits = column_splits(min(slots, row_blocks), column_tiles, s.q.device)
        partial = s.scale.new_empty(splits, n)
        column_partial = s.scale.new_empty(min(slots, row_blocks) if columns else 0, m)
        for first in range(0, row_blocks, slots):
            count = min(slots, row_blocks - first)
            _launch_forward(
                s, tile, partial, column_partial, count, splits, first, 0, column_tiles, columns, False, bounded, softplus
            )
            if columns:
                column = _add(column, _merge(column_partial[:count], bounded), bounded)
        row = _merge(partial, additive)
    return (row.log(), column.log()) if bounded else (row, column)


def _reduce_one_set(s: Operands, bounded: bool) -> Tensor:
    n, _ = s.shape
    row = s.scale.new_full((n,), 0.0 if bounded else -math.inf)
    if n:
        tile = _tile("forward" if s.exclusion.query_ids is None else "forward_ids", s)
        assert tile is not None
        blocks = triton.cdiv(n, tile.rows)
        distances = blocks // 2 + 1
        slots = max(1, PARTIAL_BYTES // (4 * n))
        splits = column_splits(blocks, min(slots, distances), s.q.device)
        partial = s.scale.new_empty(splits, n)
        column_partial = s.scale.new_empty(min(slots, distances), n)
        for first in range(0, distances, slots):
            last = min(first + slots, distances)
            _launch_forward(s, tile, partial, column_partial, blocks, splits, 0, first, last, True, True, bounded, False)
            row = _add(row, _merge(partial, bounded), bounded)
            mirrored = column_partial[1 if first == 0 else 0 : last - first]  # distance 0 is its own mirror image
            if mirrored.shape[0]:
                row = _add(row, _merge(mirrored, bounded), bounded)
    return row.log() if bounded else row


def _launch_forward(
    s: Operands,
    tile: Tile,
    partial: Tensor,
    column_partial: Tensor,
    blocks: int,
    splits: int,
    first_block: int,
    first_tile: int,
    last_tile: int,
    columns: bool,
    one_set: bool,
    bounded: bool,
    softplus: bool,
) -> None:
    with on_device(s.q):
        forward_kernel[(blocks, splits)](
            **_matrix_arguments(s, tile),
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


# ------------------------------------------------------------------------------------------------------------ backward


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
) -> Gradients:
    """``query`` holds ``scale (W + W^T) key`` for a symmetric S: both gradients in one kernel, half the products.

    With ``query = key diag(w)`` the gradient of the embeddings is that product times w. ``scale`` and ``row_bias`` are
    complete, ``key`` and ``column_bias`` are None.
    """
    s = operands(query, key, exclusion, scale, bias, bias)
    upstream = _upstream(s, lse, gradient, lse, gradient, is_bounded(bound))
    needs = Needs(query=True, key=False, row_bias=needs_bias)
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
        return Gradients(torch.zeros_like(query), torch.zeros_like(key), zero(1), zero(n), zero(m))
    tile = _tile("gradient", s)
    if tile is None:
        return _through_panels(s, u, query, key, bounded, softplus, needs)
    query_gradient = key_gradient = row_sums = column_sums = None
    dots: Tensor | None = None
    if needs.key or needs.column_bias:
        key_gradient, dots, column_sums = _in_registers(
            s.transposed(), u.transposed(), key, tile, bounded, softplus, needs.column_bias
        )
    if needs.query or needs.row_bias or dots is None:
        query_gradient, dots, row_sums = _in_registers(s, u, query, tile, bounded, softplus, needs.row_bias)
    return Gradients(query_gradient, key_gradient, dots.sum().reshape(1), row_sums, column_sums)


def _in_registers(
    s: Operands, u: Upstream, like: Tensor, tile: Tile, bounded: bool, softplus: bool, sums: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``scale W k`` in the dtype of ``like``, ``<q_i, (W k)_i>``, and the row sums of W on request."""
    n, m = s.shape
    column_tiles = triton.cdiv(m, tile.columns)
    row_blocks = triton.cdiv(n, tile.rows)
    splits = min(column_splits(row_blocks, column_tiles, s.q.device), max(1, PARTIAL_BYTES // (4 * n * s.width)))
    raw = s.scale.new_empty(splits, n, s.width)
    row_sums = s.scale.new_empty(splits, n) if sums else None
    with on_device(s.q):
        gradient_kernel[(row_blocks, splits)](
            **_matrix_arguments(s, tile),
            **_weight_arguments(s, u, bounded, softplus),
            out_ptr=raw,
            sums_ptr=u.unit if row_sums is None else row_sums,
            tiles=column_tiles,
            tiles_per_split=triton.cdiv(column_tiles, splits),
            SUMS=sums,
        )
    gradient, dots = like.new_empty(like.shape), s.scale.new_empty(n)
    _finish(raw, s.q, s, u, gradient, dots)
    return gradient, dots, None if row_sums is None else row_sums.sum(0) * u.unit


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
    query: Tensor,
    key: Tensor,
    bounded: bool,
    softplus: bool,
    needs: Needs,
) -> Gradients:
    """Write W panel by panel and leave both products to the library; the workspace does not grow with n m."""
    n, m = s.shape
    tile = _tile("panel", s)
    assert tile is not None
    panel_columns = min(m, PANEL_COLUMNS)
    panel_stride = -(-panel_columns // 16) * 16
    panel_rows = max(1, PANEL_BYTES // (panel_stride * s.q.element_size() * tile.rows)) * tile.rows
    panel = s.q.new_empty(min(n, panel_rows), panel_stride)

    query_gradient = query.new_empty(query.shape) if needs.query or not needs.key else None
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
        key_gradient = key.new_empty(key.shape)
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
            **_matrix_arguments(s, tile),
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
    elif a.is_cuda and torch.version.hip is None:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.float(), b.float())
