"""Every kernel compiles for every architecture of the table, and the machine code is what the record says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):
    pytest.skip("the record is of Triton 3.3's compiler and its interface, or newer", allow_module_level=True)
PROGRAM = Path(__file__).with_name("ahead_of_time.py")


def compile_for(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(PROGRAM.parents[3])}
    return subprocess.run(
        [sys.executable, str(PROGRAM), *arguments],
        env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_compiles_as_recorded(architecture: str, tmp_path: Path) -> None:
    run = compile_for(tmp_path, "--only", architecture)
    assert run.returncode == 0, "\n".join(re.findall(r"FAIL.*", run.stdout)) + run.stderr[-3000:]


def test_compiles_for_integers_of_one_and_beyond_32_bits(tmp_path: Path) -> None:
    run = compile_for(tmp_path, "--extremes", "sm_90")
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout == "6 kernels compile\n"
