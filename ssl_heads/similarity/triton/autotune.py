"""Tiles by measurement, only when asked: ``SSL_HEADS_AUTOTUNE=1`` times a few neighbours of the table's entry.

A choice is made once a process for each kernel, device, dtype and width, at the first call, with that call's tensors.
Timing waits for the device, so make the first call outside of a CUDA graph.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import triton
from triton.runtime.errors import OutOfResources

from ssl_heads.similarity.triton.arguments import Matrix, table_tile
from ssl_heads.similarity.triton.configurations import Kernel, Tile

CHOSEN: dict[tuple[object, ...], Tile] = {}


def choose(kernel: Kernel, matrix: Matrix, mode: tuple[object, ...], run: Callable[[Tile], object]) -> Tile:
    """The table's tile, or with ``SSL_HEADS_AUTOTUNE=1`` the fastest of its neighbours at running ``run(tile)``."""
    tile = table_tile(kernel, matrix)
    assert tile is not None
    if os.environ.get("SSL_HEADS_AUTOTUNE") != "1":
        return tile
    key = (kernel, matrix.q.device, matrix.q.dtype, matrix.width, *mode)
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
    try:
        return float(triton.testing.do_bench(lambda: run(tile)))
    except OutOfResources:
        return float("inf")
