"""The similarity matrix as the kernels take it: aligned buffers, biases, what is left out, and the tile to use.

Nothing on the host side of the kernels waits for the device. Buffers are allocated by shape, choices are made from
shapes, dtypes and device properties, and every sum has a fixed order: two runs are bitwise equal, and a CUDA graph can
capture them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssl_heads.similarity.exclusion import Exclusion
from ssl_heads.similarity.triton import tiles
from ssl_heads.similarity.triton.configurations import WIDE, WIDTHS, Kernel, Precision, Tile, padded_width
from ssl_heads.similarity.triton.device import INTERPRETED, architecture, multiprocessors, require_device, tile_for

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# exp(S) of |S| <= 64 neither overflows in a float32 sum of 10^10 terms nor underflows, in itself or as an inverse.
LARGEST_EXACT_BOUND = 64.0
# Partial results of one launch.
PARTIAL_BYTES = 64 << 20


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
        """Rows and columns of S."""
        return self.q.shape[0], self.k.shape[0]

    @property
    def width(self) -> int:
        """Features of the padded buffers."""
        return self.q.shape[1]

    def transposed(self) -> Operands:
        """S^T."""
        offset, period, query_ids, key_ids, keep_equal = self.exclusion
        exclusion = Exclusion(-offset, period, key_ids, query_ids, keep_equal)
        return Operands(self.k, self.q, self.scale, self.column_bias, self.row_bias, exclusion)


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
    if query.dtype not in DTYPES or query.dtype != key.dtype:
        raise ValueError(
            "the kernels take query and key of one dtype, float32, bfloat16 or float16; "
            f'got {query.dtype} and {key.dtype}: convert them, or pass impl="tiled"'
        )
    if query.dim() != 2 or key.dim() != 2 or query.shape[1] != key.shape[1]:
        raise ValueError(f"query (n, d) and key (m, d) share d; got {tuple(query.shape)} and {tuple(key.shape)}")
    if not isinstance(scale, Tensor):
        scale = torch.full((1,), scale, dtype=torch.float32, device=query.device)
    q = aligned(query)
    k = q if key is query else aligned(key)
    return Operands(
        q, k, scale.detach().float().reshape(1), vector(row_bias), vector(column_bias), _contiguous(exclusion)
    )


def vector(x: Tensor | None) -> Tensor | None:
    """A vector as the kernels read it: contiguous, float32."""
    return None if x is None else x.detach().float().contiguous()


def _contiguous(exclusion: Exclusion) -> Exclusion:
    if exclusion.query_ids is None or exclusion.key_ids is None:
        return exclusion
    return exclusion._replace(query_ids=exclusion.query_ids.contiguous(), key_ids=exclusion.key_ids.contiguous())


def is_bounded(bound: float) -> bool:
    """Whether ``|S| <= bound`` lets one exponential without a shift serve rows and columns exactly."""
    return bound <= LARGEST_EXACT_BOUND


def table_tile(kernel: Kernel, s: Operands) -> Tile | None:
    """The entry of the table of configurations, or None where a gradient goes through panels."""
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


def matrix_arguments(s: Operands, tile: Tile) -> dict[str, object]:
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
