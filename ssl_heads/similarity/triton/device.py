"""What the kernels must know of a device; asked of the tensor's device at each call, never at import."""

from __future__ import annotations

import functools

import torch

from ssl_heads.similarity.triton.configurations import TABLE, Kernel, Precision, Tile

# One program of the interpreter costs milliseconds: small tiles, so that small tests cross several of them.
INTERPRETER_TILES: dict[Kernel, Tile] = {
    "forward": Tile(32, 32, 64, 4, 1),
    "gradient": Tile(32, 32, 0, 4, 1),
    "panel": Tile(32, 32, 64, 4, 1),
}


@functools.lru_cache
def architecture(device: torch.device) -> str:
    """Row of the table of configurations: the device's own, or the one that asks for least."""
    if device.type == "cpu":
        return "interpreter"
    if torch.version.hip is not None:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")


@functools.lru_cache
def multiprocessors(device: torch.device) -> int:
    """Programs that run side by side."""
    return 2 if device.type == "cpu" else torch.cuda.get_device_properties(device).multi_processor_count


def tile_for(architecture: str, kernel: Kernel, precision: Precision, width: int) -> Tile | None:
    """The entry of the table, or None: a gradient of this width is computed through panels."""
    if architecture == "interpreter":
        if kernel == "gradient" and width == 0:
            return None
        return INTERPRETER_TILES[kernel]
    if kernel == "panel":
        width = 0
    return TABLE.get((architecture, kernel, precision, width))
