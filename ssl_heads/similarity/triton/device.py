"""What the kernels must know of a device; asked of the tensor's device at each call, never at import."""

from __future__ import annotations

import contextlib
import functools

import torch
import triton
from torch import Tensor

from ssl_heads.similarity.triton.configurations import TABLE, WIDE, Kernel, Precision, Tile
from ssl_heads.similarity.triton.kernels.tile import load_rows

INTERPRETED = not isinstance(load_rows, triton.JITFunction)
"""Whether Triton was imported with TRITON_INTERPRET=1: kernels then run on the CPU, slowly, for tests."""

# One program of the interpreter costs milliseconds: small tiles, so that small tests cross several of them.
INTERPRETER_TILES: dict[Kernel, Tile] = {
    "forward": Tile(32, 32, 64, 4, 1),
    "forward_bounded": Tile(32, 32, 64, 4, 1),
    "forward_ids": Tile(32, 32, 64, 4, 1),
    "gradient": Tile(32, 32, 0, 4, 1),
    "panel": Tile(32, 32, 64, 4, 1),
}


def require_device(x: Tensor) -> None:
    """Raise ``ValueError`` for a tensor that the kernels cannot run on."""
    if x.device.type != "cuda" and not INTERPRETED:
        raise ValueError(
            f'impl="triton" needs CUDA or ROCm tensors and got one on {x.device}: move the embeddings to a GPU, '
            'or pass impl="auto" or impl="tiled" (for tests, TRITON_INTERPRET=1 set before the import runs on the CPU)'
        )


def on_device(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device: make it the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


@functools.lru_cache
def architecture(device: torch.device) -> str:
    """Row of the table of configurations: the device's own, or the one that asks for least."""
    if device.type == "cpu":
        return "interpreter"
    if torch.version.hip is not None:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise ValueError(f'the kernels need compute capability 8.0, {device} has {major}.{minor}: pass impl="tiled"')
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")


@functools.lru_cache
def multiprocessors(device: torch.device) -> int:
    """Programs that run side by side."""
    return 2 if device.type == "cpu" else torch.cuda.get_device_properties(device).multi_processor_count


def tile_for(architecture: str, kernel: Kernel, precision: Precision, width: int) -> Tile | None:
    """The entry of the table, or None: a gradient of this width is computed through panels."""
    if architecture == "interpreter":
        if kernel == "gradient" and width == WIDE:
            return None
        return INTERPRETER_TILES[kernel]
    if kernel == "panel":
        width = WIDE
    own = TABLE.get((architecture, kernel, precision, width))
    if own is None and kernel in ("forward_bounded", "forward_ids"):
        return TABLE[architecture, "forward", precision, width]
    return own
