"""The similarity matrix as the kernels take it: aligned buffers, scale, bias, what is left out, and the tile to use.

Nothing on the host side of the kernels waits for the device. Buffers are allocated by shape, choices are made from
shapes, dtypes and device properties, and every sum has a fixed order: two runs are bitwise equal, and a CUDA graph can
capture them. Triton launches on the current device, so each launch makes the tensors' device the current one.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ssl_heads.similarity.backend import Matrix
from ssl_heads.similarity.exclusion import Exclusion
from ssl_heads.similarity.triton import kernels
from ssl_heads.similarity.triton.configurations import Tile, padded_width

INTERPRETED = not isinstance(kernels.load_rows, triton.JITFunction)
"""Whether Triton was imported with TRITON_INTERPRET=1: kernels then run on the CPU, slowly, for tests."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# exp(S) of |S| <= 64 neither overflows in a float32 sum of 10^10 terms nor underflows, in itself or as an inverse.
LARGEST_EXACT_BOUND = 64.0
# Partial results of one launch.
PARTIAL_BYTES = 64 << 20

ONLINE, BOUNDED, SOFTPLUS = kernels.ONLINE.value, kernels.BOUNDED.value, kernels.SOFTPLUS.value


def require_device(x: Tensor) -> None:
    """Raise `ValueError` for a tensor that the kernels cannot run on.

    Tests on the CPU set TRITON_INTERPRET=1 before the import.
    """
    if x.device.type != "cuda" and not INTERPRETED:
        raise ValueError(
            f'impl="triton" needs CUDA or ROCm tensors and got one on {x.device}: move the embeddings to a GPU, '
            'or pass impl="auto" or impl="tiled"'
        )


class KernelMatrix(NamedTuple):
    """S as the kernels take it, and how it is reduced; the same fields where rows are queries or, transposed, keys."""

    q: Tensor
    k: Tensor
    scale: Tensor
    bias: Tensor
    exclusion: Exclusion
    reduction: int

    def transposed(self) -> KernelMatrix:
        """S^T."""
        return self._replace(q=self.k, k=self.q, exclusion=self.exclusion.transposed())


def kernel_matrix(matrix: Matrix, bias: Tensor | None = None) -> KernelMatrix:
    """S for a log-sum-exp, or with a bias for a sum of softplus.

    Raises:
        ValueError: If a tensor is on a CPU, or the rows are of other dtypes or of widths that differ.
    """
    query, key, scale, exclusion, bound = matrix
    require_device(query)
    if query.dtype not in DTYPES or query.dtype != key.dtype:
        raise ValueError(
            "the kernels take query and key of one dtype, float32, bfloat16 or float16; "
            f'got {query.dtype} and {key.dtype}: convert them, or pass impl="tiled"'
        )
    if query.dim() != 2 or key.dim() != 2 or query.shape[1] != key.shape[1]:
        raise ValueError(f"query (n, d) and key (m, d) share d, got {tuple(query.shape)} and {tuple(key.shape)}")
    q = aligned(query)
    k = q if key is query else aligned(key)
    if not isinstance(scale, Tensor):
        scale = torch.full((1,), scale, device=q.device)
    if exclusion.query_ids is not None and exclusion.key_ids is not None:
        exclusion = exclusion.with_ids(
            exclusion.query_ids.contiguous(), exclusion.key_ids.contiguous(), exclusion.keep_equal
        )
    scale = scale.detach().float().reshape(1)
    if bias is not None:
        return KernelMatrix(q, k, scale, bias.detach().float().reshape(1), exclusion, SOFTPLUS)
    # one exponential without a shift where the bound makes it exact
    return KernelMatrix(q, k, scale, scale, exclusion, BOUNDED if bound <= LARGEST_EXACT_BOUND else ONLINE)


def aligned(x: Tensor) -> Tensor:
    """`x` itself if the kernels can read it, else a copy with zero-padded features and 16-byte aligned rows."""
    if INTERPRETED and x.dtype == torch.bfloat16:
        x = x.float()  # the interpreter has no bfloat16 arithmetic; the values are rounded already
    rows, width = x.shape
    padded = padded_width(width)
    if width == padded and x.stride(1) == 1 and x.stride(0) % 16 == 0 and x.data_ptr() % 16 == 0:
        return x
    buffer = x.new_zeros(rows, padded)
    buffer[:, :width] = x
    return buffer


def matrix_arguments(matrix: KernelMatrix, tile: Tile) -> dict[str, object]:
    """The arguments that all tile kernels share."""
    exact = torch.get_float32_matmul_precision() == "highest"
    return {
        "q_ptr": matrix.q,
        "k_ptr": matrix.k,
        "scale_ptr": matrix.scale,
        "bias_ptr": matrix.bias,
        "N": len(matrix.q),
        "M": len(matrix.k),
        "q_stride": matrix.q.stride(0),
        "k_stride": matrix.k.stride(0),
        "REDUCTION": matrix.reduction,
        "WIDTH": matrix.q.shape[1],
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.columns,
        # float32 products on tensor cores: three tf32 products unless the user allows one
        "PRECISION": "tf32" if not exact else "tf32x3" if torch.version.hip is None else "ieee",
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        **_exclusion_arguments(matrix, tile),
    }


def _exclusion_arguments(matrix: KernelMatrix, tile: Tile) -> dict[str, object]:
    offset, period, query_ids, key_ids, keep_equal = matrix.exclusion
    diagonal, ids = kernels.NO_DIAGONAL, kernels.NO_IDS
    if period > 0:
        diagonal = kernels.ONE_DIAGONAL if period >= tile.rows + tile.columns else kernels.MANY_DIAGONALS
    if query_ids is not None:
        ids = kernels.LEAVE_OUT_DIFFERENT if keep_equal else kernels.LEAVE_OUT_EQUAL
    return {
        "query_ids_ptr": matrix.scale if query_ids is None else query_ids,
        "key_ids_ptr": matrix.scale if key_ids is None else key_ids,
        "offset": offset,
        "period": period,
        "DIAGONAL": diagonal.value,
        "IDS": ids.value,
    }


@functools.lru_cache
def multiprocessors(device: torch.device) -> int:
    """Programs that run side by side."""
    return 2 if device.type == "cpu" else torch.cuda.get_device_properties(device).multi_processor_count


def column_splits(row_blocks: int, tiles_per_row: int, device: torch.device) -> int:
    """Programs a row block: about four waves of programs, at least four tiles a program."""
    wanted = -(-4 * multiprocessors(device) // max(row_blocks, 1))
    return max(1, min(wanted, tiles_per_row // 4))


def partials_that_fit(wanted: int, elements: int) -> int:
    """How many float32 partial results of so many elements one launch may write."""
    return min(wanted, max(1, PARTIAL_BYTES // (4 * elements)))
