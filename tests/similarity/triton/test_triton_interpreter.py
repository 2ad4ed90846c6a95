"""The kernels against float64 in Triton's interpreter: one session a file, with the variable set before the import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
HERE = Path(__file__).parent
FILES = sorted(path.name for path in (HERE / "interpreted").glob("test_*.py"))


@pytest.mark.parametrize("name", FILES)
def test_in_the_interpreter(name: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    arguments = ["-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", str(HERE / "interpreted" / name)]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=HERE.parents[2], env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
