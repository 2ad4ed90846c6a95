"""Products of two tiles at the full rate of the processor.

torch sends float32 products on x86 to MKL, which picks its kernels by vendor: on a processor with AVX-512 that is not
from Intel it runs at less than half the rate that oneDNN reaches, which picks by instruction set. oneDNN ships in every
torch for x86; its entry point is the operator that torch.compile uses for linear layers. Where it is missing, or for
another dtype or device, the product is torch's own.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this processor has AVX-512 and this torch has oneDNN's linear operator."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _onednn(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and onednn_is_faster()


def matmul_nt(x: Tensor, y: Tensor) -> Tensor:
    """`x y^T`: the inner products of rows."""
    if _onednn(x):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, y, None, "none", [], "")
        return product
    return x @ y.mT


def accumulate(total: Tensor, weights: Tensor, x: Tensor) -> None:
    """`total += weights x`."""
    if _onednn(weights):
        total.add_(torch.ops.mkldnn._linear_pointwise(weights, x.mT, None, "none", [], ""))
    else:
        total.addmm_(weights, x)
