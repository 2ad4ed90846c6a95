"""The distributed example under torchrun, as a user starts it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import distributed_simclr
import pytest
import torch

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


@pytest.mark.parametrize(("images", "batch_size", "world"), [(65, 64, 2), (17, 16, 4), (100, 32, 3), (64, 64, 8)])
def test_every_rank_has_its_share_of_every_batch(images: int, batch_size: int, world: int) -> None:
    args = distributed_simclr.parse(["--batch-size", str(batch_size)])
    data, batches = torch.arange(images), distributed_simclr.batches_of(images, args)
    parts = [[distributed_simclr.own_images(data, b, args, r, world) for r in range(world)] for b in range(batches)]
    assert min(len(part) for batch in parts for part in batch) >= 2
    assert max(sum(map(len, batch)) for batch in parts) <= batch_size
    assert sorted(torch.cat([part for batch in parts for part in batch]).tolist()) == list(range(images))
