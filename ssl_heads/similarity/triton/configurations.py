"""The tile of a kernel: a table by architecture, kernel, dtype and width, and on request a measurement.

Importing this module imports no Triton. Every entry is compiled ahead of time by the tests, which hold registers,
spills, shared memory and instructions to a committed record. None has been timed yet: the choice follows from those
figures. See docs/performance_gpu.md.

With `SSL_HEADS_AUTOTUNE=1` a few neighbours of the table's entry are timed: once a process for each kernel, device,
dtype and width, at the first call, with that call's tensors. Timing waits for the device, so make the first call
outside of a CUDA graph.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Kernel = Literal["forward", "forward_bounded", "forward_ids", "gradient", "panel"]
Precision = Literal["half", "float"]


class Tile(NamedTuple):
    """Shape of a tile of S and how a program runs it.

    Attributes:
        rows: Rows of S.
        columns: Columns of S; equal to `rows` in the forward kernel, whose one-set schedule swaps them.
        features: Features a step. A tile of q stays on the chip when one step covers the width.
        warps: Warps a program.
        stages: Depth of the pipeline of loads.
    """

    rows: int
    columns: int
    features: int
    warps: int
    stages: int


# Widths up to 256 are padded to the next of these, wider buffers to a multiple of 64.
WIDTHS = (64, 128, 256)


def padded_width(width: int) -> int:
    """Features of the buffer that the kernels read."""
    for bucket in WIDTHS:
        if width <= bucket:
            return bucket
    return -(-width // 64) * 64


# Major compute capability -> rows of the table. Every other one from 8 on (sm_86, sm_89, sm_120) takes those of sm_80.
OF_CAPABILITY = {9: "sm_90", 10: "sm_100"}

# Shared memory that one program may use, in bytes; for sm_80 the least that any device with its tiles offers.
SHARED_MEMORY = {"sm_80": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}

# (architecture, kernel, precision, width) -> tile. ANY is every width that has no entry of its own. A gradient without
# an entry takes the panel. The forward kernel with ids has entries of its own where the ids, 64 bits each, would not
# fit beside the large tile; the bounded one, where its registers let two programs of four warps share a multiprocessor.
# Without an entry "forward_ids" and "forward_bounded" take that of "forward".
ANY = 0
TABLE: dict[tuple[str, Kernel, Precision, int], Tile] = {
    ("sm_80", "forward", "half", 64): Tile(128, 128, 64, 8, 3),
    ("sm_80", "forward", "half", 128): Tile(128, 128, 128, 8, 2),
    ("sm_80", "forward", "half", ANY): Tile(128, 128, 32, 8, 4),
    ("sm_80", "forward", "float", ANY): Tile(64, 64, 32, 8, 3),
    ("sm_80", "forward_ids", "float", 64): Tile(32, 32, 64, 4, 2),
    ("sm_80", "forward_ids", "float", ANY): Tile(32, 32, 32, 4, 3),
    ("sm_80", "gradient", "half", 64): Tile(128, 64, 64, 8, 3),
    ("sm_80", "gradient", "half", 128): Tile(64, 64, 128, 4, 2),
    ("sm_80", "gradient", "half", 256): Tile(64, 64, 256, 8, 2),
    ("sm_80", "gradient", "float", 64): Tile(32, 32, 64, 4, 2),
    ("sm_80", "panel", "half", ANY): Tile(128, 128, 64, 8, 3),
    ("sm_80", "panel", "float", ANY): Tile(64, 64, 32, 4, 3),
    ("sm_90", "forward", "half", 128): Tile(128, 128, 128, 8, 3),
    ("sm_90", "forward", "half", 256): Tile(128, 128, 256, 8, 2),
    ("sm_90", "forward", "half", ANY): Tile(128, 128, 64, 8, 3),
    ("sm_90", "forward", "float", ANY): Tile(64, 64, 32, 4, 3),
    ("sm_90", "forward_bounded", "half", 128): Tile(128, 128, 128, 4, 2),
    ("sm_90", "forward_bounded", "half", ANY): Tile(128, 128, 64, 4, 3),
    ("sm_90", "gradient", "half", 64): Tile(128, 64, 64, 8, 3),
    ("sm_90", "gradient", "half", 128): Tile(128, 64, 128, 8, 3),
    ("sm_90", "gradient", "half", 256): Tile(64, 64, 256, 8, 2),
    ("sm_90", "gradient", "float", 64): Tile(64, 32, 64, 8, 2),
    ("sm_90", "panel", "half", ANY): Tile(128, 128, 64, 8, 4),
    ("sm_90", "panel", "float", ANY): Tile(64, 64, 32, 4, 3),
    ("sm_100", "forward", "half", 64): Tile(128, 128, 32, 8, 3),
    ("sm_100", "forward", "half", 256): Tile(128, 128, 32, 8, 3),
    ("sm_100", "forward", "half", ANY): Tile(128, 128, 64, 8, 3),
    ("sm_100", "forward", "float", ANY): Tile(64, 64, 32, 4, 3),
    ("sm_100", "forward_ids", "half", ANY): Tile(64, 64, 64, 4, 3),
    ("sm_100", "gradient", "half", 64): Tile(128, 64, 64, 8, 3),
    ("sm_100", "gradient", "half", 128): Tile(128, 64, 128, 8, 3),
    ("sm_100", "gradient", "half", 256): Tile(64, 64, 256, 8, 2),
    ("sm_100", "gradient", "float", 64): Tile(64, 32, 64, 8, 2),
    ("sm_100", "panel", "half", ANY): Tile(128, 64, 64, 8, 4),
    ("sm_100", "panel", "float", ANY): Tile(64, 64, 32, 4, 3),
    ("gfx942", "forward", "half", ANY): Tile(128, 128, 64, 8, 2),
    ("gfx942", "forward", "float", ANY): Tile(64, 64, 32, 4, 2),
    ("gfx942", "gradient", "half", 64): Tile(128, 32, 64, 4, 2),
    ("gfx942", "gradient", "half", 128): Tile(128, 16, 128, 4, 2),
    ("gfx942", "gradient", "half", 256): Tile(64, 16, 256, 4, 2),
    ("gfx942", "gradient", "float", 64): Tile(128, 16, 64, 4, 2),
    ("gfx942", "panel", "half", ANY): Tile(128, 128, 64, 8, 2),
    ("gfx942", "panel", "float", ANY): Tile(64, 64, 32, 4, 2),
}
# One program of Triton's interpreter costs milliseconds: small tiles, so that small tests cross several of them.
INTERPRETER_TILE = Tile(32, 32, 64, 4, 1)


def of_nvidia(major: int) -> str | None:
    """Rows of the table for a major compute capability; None before bfloat16."""
    return OF_CAPABILITY.get(major, "sm_80") if major >= 8 else None


def of_amd(name: str) -> str | None:
    """Rows of the table for a `gcnArchName`, as `gfx942:sramecc+:xnack-`; None for a processor that has none."""
    processor = name.split(":")[0]
    return processor if processor.startswith("gfx") and processor in SHARED_MEMORY else None


def of_device(device: torch.device) -> str | None:
    """Rows of the table for a GPU; None where the kernels have no tiles for it."""
    if torch.version.hip is not None:
        return of_amd(torch.cuda.get_device_properties(device).gcnArchName)
    return of_nvidia(torch.cuda.get_device_capability(device)[0])


@functools.lru_cache
def architecture(device: torch.device) -> str:
    """Rows of the table for a device."""
    if device.type == "cpu":
        return "interpreter"
    found = of_device(device)
    if found is None:
        amd = ", ".join(name for name in SHARED_MEMORY if of_amd(name))
        raise ValueError(
            f"the kernels need an NVIDIA GPU of compute capability 8.0 or newer, or an AMD GPU of {amd}; "
            f'{device} is another: pass impl="tiled"'
        )
    return found


@functools.lru_cache
def table_tile(architecture: str, kernel: Kernel, dtype: torch.dtype, width: int) -> Tile | None:
    """The entry of the table; None for a gradient that goes through panels."""
    if architecture == "interpreter":
        return None if kernel == "gradient" and width not in WIDTHS else INTERPRETER_TILE
    precision: Precision = "float" if dtype == torch.float32 else "half"
    own = TABLE.get((architecture, kernel, precision, width)) or TABLE.get((architecture, kernel, precision, ANY))
    if own is None and kernel in ("forward_bounded", "forward_ids"):
        return table_tile(architecture, "forward", dtype, width)
    return own


# ------------------------------------------------------------------------------------------------------ by measurement

CHOSEN: dict[tuple[object, ...], Tile] = {}


def choose(kernel: Kernel, q: Tensor, mode: tuple[object, ...], run: Callable[[Tile], object]) -> Tile:
    """The table's tile for rows `q`, or with `SSL_HEADS_AUTOTUNE=1` its fastest neighbour at running `run(tile)`."""
    tile = table_tile(architecture(q.device), kernel, q.dtype, q.shape[1])
    assert tile is not None
    if os.environ.get("SSL_HEADS_AUTOTUNE") != "1":
        return tile
    key = (kernel, q.device, q.dtype, q.shape[1], *mode)
    if key not in CHOSEN:
        CHOSEN[key] = min(neighbours(kernel, tile), key=lambda candidate: milliseconds(run, candidate))
    return CHOSEN[key]


def neighbours(kernel: Kernel, tile: Tile) -> list[Tile]:
    """The tile itself first, then one change at a time."""
    found = [tile, *(tile._replace(stages=stages) for stages in (tile.stages - 1, tile.stages + 1) if stages > 0)]
    found += [tile._replace(warps=warps) for warps in (4, 8) if warps != tile.warps]
    if kernel == "panel":
        found.append(tile._replace(columns=256))
    if kernel == "gradient":
        found += [tile._replace(rows=rows) for rows in (64, 128) if rows != tile.rows]
        found += [tile._replace(columns=columns) for columns in (32, 64) if columns != tile.columns]
    elif tile.features > 32:
        found.append(tile._replace(features=tile.features // 2))
    return found


def milliseconds(run: Callable[[Tile], object], tile: Tile) -> float:
    """Time of one run; infinite where the tile does not fit the device."""
    import triton

    try:
        return float(triton.testing.do_bench(lambda: run(tile)))
    except triton.runtime.errors.OutOfResources:
        return float("inf")
