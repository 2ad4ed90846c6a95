"""The distributed example under torchrun, as a user starts it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "distributed_simclr.py"
pytest.importorskip("mlxtend")


def run(processes: int, *arguments: str) -> str:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    command = [*torchrun, str(SCRIPT), "--batch-size", "65", "--log-every", "1", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout


def losses(output: str) -> dict[int, float]:
    return {int(step): float(loss) for step, loss in re.findall(r"step (\d+) loss ([\d.]+)", output)}


def test_two_ranks_stop_and_continue(tmp_path: Path) -> None:
    through = run(2, "--steps", "3", "--gather", "all")
    common = ("--steps", "3", "--gather", "ring", "--checkpoint", str(tmp_path / "run.pt"))
    before, after = run(2, *common, "--stop-after", "2"), run(2, *common)
    assert list(losses(before)) == [1, 2]
    assert list(losses(after)) == [3]
    assert losses(before) | losses(after) == pytest.approx(losses(through), abs=2e-5)
    accuracy = float(re.search(r"10-NN accuracy ([\d.]+)", after)[1])
    assert accuracy > 0.5, "chance is 0.1"
