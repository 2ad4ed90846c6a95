"""Tile shapes: a table by architecture, kernel, width and dtype. Plain Python, Triton is not imported.

Every entry is compiled ahead of time by the tests, which hold registers, spills, shared memory and instructions to a
committed record. None has been timed yet: the choice follows from those figures. See docs/performance_gpu.md.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Kernel = Literal["forward", "forward_bounded", "forward_ids", "gradient", "panel"]
Precision = Literal["half", "float"]


class Tile(NamedTuple):
    """Shape of a tile of S and how a program runs it.

    Attributes:
        rows: Rows of S.
        columns: Columns of S; equal to ``rows`` in the forward kernel, whose one-set schedule swaps them.
        features: Features a step. A tile of q stays on the chip when one step covers the width.
        warps: Warps a program.
        stages: Depth of the pipeline of loads.
    """

    rows: int
    columns: int
    features: int
    warps: int
    stages: int


# Widths up to 256 are padded to the next of these; a wider buffer is padded to a multiple of 64 ("wide": 0).
WIDTHS = (64, 128, 256)
WIDE = 0


def padded_width(width: int) -> int:
    """Features of the buffer that the kernels read."""
    for bucket in WIDTHS:
        if width <= bucket:
            return bucket
    return -(-width // 64) * 64


# Shared memory that one program may use, in bytes. The row of sm_80 serves every device that has no row of its own
# (sm_86, sm_89, sm_120), so it takes no more than the least of them offers.
SHARED_MEMORY = {"sm_80": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}

# (architecture, kernel, precision, width) -> tile. A gradient without an entry takes the panel. The forward kernel with
# ids has entries of its own where the ids, 64 bits each, would not fit beside the large tile; the bounded one, where
# its registers let two programs of four warps share a multiprocessor. Both take "forward" where they have no entry.
TABLE: dict[tuple[str, Kernel, Precision, int], Tile] = {
    ("sm_80", "forward", "half", 64): Tile(128, 128, 64, 8, 3),
    ("sm_80", "forward", "half", 128): Tile(128, 128, 128, 8, 2),
    ("sm_80", "forward", "half", 256): Tile(128, 128, 32, 8, 4),
    ("sm_80", "forward", "half", WIDE): Tile(128, 128, 32, 8, 4),
    ("sm_80", "forward", "float", 64): Tile(64, 64, 32, 8, 3),
    ("sm_80", "forward", "float", 128): Tile(64, 64, 32, 8, 3),
    ("sm_80", "forward", "float", 256): Tile(64, 64, 32, 8, 3),
    ("sm_80", "forward", "float", WIDE): Tile(64, 64, 32, 8, 3),
    ("sm_80", "forward_ids", "float", 64): Tile(32, 32, 64, 4, 2),
    ("sm_80", "forward_ids", "float", 128): Tile(32, 32, 32, 4, 3),
    ("sm_80", "forward_ids", "float", 256): Tile(32, 32, 32, 4, 3),
    ("sm_80", "forward_ids", "float", WIDE): Tile(32, 32, 32, 4, 3),
    ("sm_80", "gradient", "half", 64): Tile(128, 64, 64, 8, 3),
    ("sm_80", "gradient", "half", 128): Tile(64, 64, 128, 4, 2),
    ("sm_80", "gradient", "half", 256): Tile(64, 64, 256, 8, 2),
    ("sm_80", "gradient", "float", 64): Tile(32, 32, 64, 4, 2),
    ("sm_80", "panel", "half", WIDE): Tile(128, 128, 64, 8, 3),
    ("sm_80", "panel", "float", WIDE): Tile(64, 64, 32, 4, 3),
    ("sm_90", "forward", "half", 64): Tile(128, 128, 64, 8, 3),
    ("sm_90", "forward", "half", 128): Tile(128, 128, 128, 8, 3),
    ("sm_90", "forward", "half", 256): Tile(128, 128, 256, 8, 2),
    ("sm_90", "forward", "half", WIDE): Tile(128, 128, 64, 8, 3),
    ("sm_90", "forward", "float", 64): Tile(64, 64, 32, 4, 3),
    ("sm_90", "forward", "float", 128): Tile(64, 64, 32, 4, 3),
    ("sm_90", "forward", "float", 256): Tile(64, 64, 32, 4, 3),
    ("sm_90", "forward", "float", WIDE): Tile(64, 64, 32, 4, 3),
    ("sm_90", "forward_bounded", "half", 64): Tile(128, 128, 64, 4, 3),
    ("sm_90", "forward_bounded", "half", 128): Tile(128, 128, 128, 4, 2),
    ("sm_90", "forward_bounded", "half", 256): Tile(128, 128, 64, 4, 3),
    ("sm_90", "forward_bounded", "half", WIDE): Tile(128, 128, 64, 4, 3),
    ("sm_90", "gradient", "half", 64): Tile(128, 64, 64, 8, 3),
    ("sm_90", "gradient", "half", 128): Tile(128, 64, 128, 8, 3),
    ("sm_90", "gradient", "half", 256): Tile(64, 64, 256, 8, 2),
    ("sm_90", "gradient", "float", 64): Tile(64, 32, 64, 8, 2),
    ("sm_90", "panel", "half", WIDE): Tile(128, 128, 64, 8, 4),
    ("sm_90", "panel", "float", WIDE): Tile(64, 64, 32, 4, 3),
    ("sm_100", "forward", "half", 64): Tile(128, 128, 32, 8, 3),
    ("sm_100", "forward", "half", 128): Tile(128, 128, 64, 8, 3),
    ("sm_100", "forward", "half", 256): Tile(128, 128, 32, 8, 3),
    ("sm_100", "forward", "half", WIDE): Tile(128, 128, 64, 8, 3),
    ("sm_100", "forward", "float", 64): Tile(64, 64, 32, 4, 3),
    ("sm_100", "forward", "float", 128): Tile(64, 64, 32, 4, 3),
    ("sm_100", "forward", "float", 256): Tile(64, 64, 32, 4, 3),
    ("sm_100", "forward", "float", WIDE): Tile(64, 64, 32, 4, 3),
    ("sm_100", "forward_ids", "half", 64): Tile(64, 64, 64, 4, 3),
    ("sm_100", "forward_ids", "half", 128): Tile(64, 64, 64, 4, 3),
    ("sm_100", "forward_ids", "half", 256): Tile(64, 64, 64, 4, 3),
    ("sm_100", "forward_ids", "half", WIDE): Tile(64, 64, 64, 4, 3),
    ("sm_100", "gradient", "half", 64): Tile(128, 64, 64, 8, 3),
    ("sm_100", "gradient", "half", 128): Tile(128, 64, 128, 8, 3),
    ("sm_100", "gradient", "half", 256): Tile(64, 64, 256, 8, 2),
    ("sm_100", "gradient", "float", 64): Tile(64, 32, 64, 8, 2),
    ("sm_100", "panel", "half", WIDE): Tile(128, 64, 64, 8, 4),
    ("sm_100", "panel", "float", WIDE): Tile(64, 64, 32, 4, 3),
    ("gfx942", "forward", "half", 64): Tile(128, 128, 64, 8, 2),
    ("gfx942", "forward", "half", 128): Tile(128, 128, 64, 8, 2),
    ("gfx942", "forward", "half", 256): Tile(128, 128, 64, 8, 2),
    ("gfx942", "forward", "half", WIDE): Tile(128, 128, 64, 8, 2),
    ("gfx942", "forward", "float", 64): Tile(64, 64, 32, 4, 2),
    ("gfx942", "forward", "float", 128): Tile(64, 64, 32, 4, 2),
    ("gfx942", "forward", "float", 256): Tile(64, 64, 32, 4, 2),
    ("gfx942", "forward", "float", WIDE): Tile(64, 64, 32, 4, 2),
    ("gfx942", "gradient", "half", 64): Tile(128, 32, 64, 4, 2),
    ("gfx942", "gradient", "half", 128): Tile(128, 16, 128, 4, 2),
    ("gfx942", "gradient", "half", 256): Tile(64, 16, 256, 4, 2),
    ("gfx942", "gradient", "float", 64): Tile(128, 16, 64, 4, 2),
    ("gfx942", "panel", "half", WIDE): Tile(128, 128, 64, 8, 2),
    ("gfx942", "panel", "float", WIDE): Tile(64, 64, 32, 4, 2),
}
