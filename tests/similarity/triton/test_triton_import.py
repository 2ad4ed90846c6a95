"""Outside of the interpreter: nothing imports Triton before it is needed, and a CPU tensor is refused with advice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssl_heads.similarity.triton.configurations import SHARED_MEMORY, TABLE, WIDTHS, table_tile


def run(code: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_importing_the_package_does_not_import_triton() -> None:
    modules = "ssl_heads", "ssl_heads.rowwise", "ssl_heads.similarity.triton.configurations"
    assert run(f"import sys, {', '.join(modules)}; print('triton' in sys.modules)") == "False\n"


CALLS = """
import torch
from ssl_heads import similarity
from ssl_heads.rowwise import host
x = torch.zeros(4, 8)
for call in (
    lambda: similarity.log_sum_exp(x, x, impl="triton"),
    lambda: similarity.self_log_sum_exp(x, impl="triton"),
    lambda: similarity.softplus_sum(x, x, 1.0, x[0, 0], exclusion=similarity.Exclusion(), impl="triton"),
    lambda: host.prologue(x),
):
    try:
        call()
    except ValueError as error:
        print(error)
"""


def test_a_cpu_tensor_is_refused() -> None:
    pytest.importorskip("triton")
    messages = run(CALLS).splitlines()
    assert len(messages) == 4
    assert all("cpu" in message and 'impl="tiled"' in message for message in messages)


def test_the_table_is_complete() -> None:
    wide = 768
    for architecture in SHARED_MEMORY:
        for dtype in (torch.bfloat16, torch.float32):
            for width in (*WIDTHS, wide):
                for kernel in ("forward", "forward_bounded", "forward_ids"):
                    tile = table_tile(architecture, kernel, dtype, width)
                    assert tile is not None
                    assert tile.rows == tile.columns, "the one-set schedule swaps rows and columns"
                    assert width % tile.features == 0
                assert table_tile(architecture, "panel", dtype, width) is not None
        assert table_tile(architecture, "gradient", torch.bfloat16, 128) is not None
        assert table_tile(architecture, "gradient", torch.bfloat16, wide) is None
    for (_, kernel, _, width), tile in TABLE.items():
        if kernel == "gradient":
            assert tile.features == width, "a gradient in registers takes the whole width in one step"
