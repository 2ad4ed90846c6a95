"""The similarity matrix as the kernels take it: aligned buffers, scale, bias, what is left out, and the tile to use.

Nothing on the host side of the kernels waits for the device. Buffers are allocated by shape, choices are made from
shapes, dtypes and device properties, and every sum has a fixed order: two runs are bitwise equal, and a CUDA graph can
capture them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssl_heads.similarity.exclusion import Exclusion
from ssl_heads.similarity.triton.configurations import WIDE, WIDTHS, Kernel, Precision, Tile, padded_width
from ssl_heads.similarity.triton.device import INTERPRETED, architecture, multiprocessors, require_device, tile_for
from ssl_heads.similarity.triton.kernels import tile as kernel_tile

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# exp(S) of |S| <= 64 neither overflows in a float32 sum of 10^10 terms nor underflows, in itself or as an inverse.
LARGEST_EXACT_BOUND = 64.0
# Partial results of one launch.
PARTIAL_BYTES = 64 << 20

ONLINE, BOUNDED, SOFTPLUS = kernel_tile.ONLINE.value, kernel_tile.BOUNDED.value, kernel_tile.SOFTPLUS.value


class Matrix(NamedTuple):
    """Everything that defines S, and how it is reduced; the same fields where rows are queries or, transposed, keys."""

    q: Tensor
    k: Tensor
    scale: Tensor
    bias: Tensor
    exclusion: Exclusion
    reduction: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of S."""
        return self.q.shape[0], self.k.shape[0]

    @property
    def width(self) -> int:
        """Features of the padded buffers."""
        return self.q.shape[1]

    def transposed(self) -> Matrix:
        """S^T."""
        offset, period, query_ids, key_ids, keep_equal = self.exclusion
        exclusion = Exclusion(-offset, period, key_ids, query_ids, keep_equal)
        return self._replace(q=self.k, k=self.q, exclusion=exclusion)


def softmax_matrix(query: Tensor, key: Tensor, scale: Tensor | float, exclusion: Exclusion, bound: float) -> Matrix:
    """S for a log-sum-exp: one exponential without a shift where ``|S| <= bound`` makes it exact."""
    scale = _number(scale, query)
    reduction = BOUNDED if bound <= LARGEST_EXACT_BOUND else ONLINE
    return Matrix(*_aligned_rows(query, key), scale, scale, _contiguous(exclusion), reduction)


def softplus_matrix(query: Tensor, key: Tensor, scale: Tensor | float, bias: Tensor, exclusion: Exclusion) -> Matrix:
    """S for a sum of ``softplus(S + bias)``."""
    numbers = _number(scale, query), _number(bias, query)
    return Matrix(*_aligned_rows(query, key), *numbers, _contiguous(exclusion), SOFTPLUS)


def _number(value: Tensor | float, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().float().reshape(1)
    return torch.full((1,), value, dtype=torch.float32, device=like.device)


def _aligned_rows(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    require_device(query)
    if query.dtype not in DTYPES or query.dtype != key.dtype:
        raise ValueError(
            "the kernels take query and key of one dtype, float32, bfloat16 or float16; "
            f'got {query.dtype} and {key.dtype}: convert them, or pass impl="tiled"'
        )
    if query.dim() != 2 or key.dim() != 2 or query.shape[1] != key.shape[1]:
        raise ValueError(f"query (n, d) and key (m, d) share d; got {tuple(query.shape)} and {tuple(key.shape)}")
    q = aligned(query)
    return q, q if key is query else aligned(key)


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


def _contiguous(exclusion: Exclusion) -> Exclusion:
    if exclusion.query_ids is None or exclusion.key_ids is None:
        return exclusion
    return exclusion._replace(query_ids=exclusion.query_ids.contiguous(), key_ids=exclusion.key_ids.contiguous())


def table_tile(kernel: Kernel, matrix: Matrix) -> Tile | None:
    """The entry of the table of configurations, or None where a gradient goes through panels."""
    precision: Precision = "float" if matrix.q.dtype == torch.float32 else "half"
    width = matrix.width if matrix.width in WIDTHS else WIDE
    return tile_for(architecture(matrix.q.device), kernel, precision, width)


def _dot_precision() -> str:
    """How float32 products use the tensor cores: three tf32 products unless the user allows one."""
    exact = torch.get_float32_matmul_precision() == "highest"
    if torch.version.hip is not None:
        return "ieee" if exact else "tf32"
    return "tf32x3" if exact else "tf32"


def _exclusion_arguments(matrix: Matrix, tile: Tile) -> dict[str, object]:
    offset, period, query_ids, key_ids, keep_equal = matrix.exclusion
    diagonal = kernel_tile.NO_DIAGONAL
    if period > 0:
        diagonal = kernel_tile.ONE_DIAGONAL if period >= tile.rows + tile.columns else kernel_tile.MANY_DIAGONALS
    ids = kernel_tile.NO_IDS
    if query_ids is not None:
        ids = kernel_tile.LEAVE_OUT_DIFFERENT if keep_equal else kernel_tile.LEAVE_OUT_EQUAL
    return {
        "query_ids_ptr": matrix.scale if query_ids is None else query_ids,
        "key_ids_ptr": matrix.scale if key_ids is None else key_ids,
        "offset": offset,
        "period": period,
        "DIAGONAL": diagonal.value,
        "IDS": ids.value,
    }


def matrix_arguments(matrix: Matrix, tile: Tile) -> dict[str, object]:
    """The arguments that all tile kernels share."""
    return {
        "q_ptr": matrix.q,
        "k_ptr": matrix.k,
        "scale_ptr": matrix.scale,
        "bias_ptr": matrix.bias,
        "N": matrix.shape[0],
        "M": matrix.shape[1],
        "q_stride": matrix.q.stride(0),
        "k_stride": matrix.k.stride(0),
        "REDUCTION": matrix.reduction,
        "WIDTH": matrix.width,
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.columns,
        "PRECISION": _dot_precision(),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        **_exclusion_arguments(matrix, tile),
    }


def column_splits(row_blocks: int, tiles_per_row: int, device: torch.device) -> int:
    """Programs a row block: about four waves of programs, at least four tiles a program."""
    wanted = -(-4 * multiprocessors(device) // max(row_blocks, 1))
    return max(1, min(wanted, tiles_per_row // 4))


def partials_that_fit(wanted: int, elements: int) -> int:
    """How many float32 partial results of so many elements one launch may write."""
    return min(wanted, max(1, PARTIAL_BYTES // (4 * elements)))
