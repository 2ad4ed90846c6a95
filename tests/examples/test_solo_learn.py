"""solo-learn's own methods, trained by its own Lightning module with the swapped lines.

Release 1.0.2 needs pytorch-lightning below 2, which other packages here do not want. Beside them it lives in a folder:
`pip install --no-deps --target .venv/solo-learn pytorch-lightning==1.9.5 lightning-bolts==0.7.0 "setuptools<80"`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BESIDE = ROOT / ".venv" / "solo-learn"
PROGRAM = """
import json, sys
sys.path.insert(0, "examples")
import solo_learn
from tests.examples.starts import Starts
import pytest
starts = Starts(pytest.MonkeyPatch(), solo_learn, "NonNegProjection")
model, history = solo_learn.main(sys.argv[1:])
z = [model.projector(model.encoder(solo_learn.torch.rand(8, 3, 28, 28)))]
print(json.dumps([history, starts.all_moved(), float(z[0].min())]))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("solo") is None, reason="needs solo-learn"),
    pytest.mark.skipif(not BESIDE.is_dir(), reason=f"needs pytorch-lightning 1.9.5 in {BESIDE}"),
]


def run(*arguments: str) -> tuple[list[float], bool, float]:
    environment = {**os.environ, "PYTHONPATH": f"{BESIDE}{os.pathsep}{ROOT}", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert finished.returncode == 0, finished.stderr[-3000:]
    history, moved, lowest = json.loads(finished.stdout.splitlines()[-1])
    return history, moved, lowest


def test_simclr() -> None:
    history, moved, lowest = run("--method", "simclr", "--images", "320", "--epochs", "3")
    assert history[-1] < history[0] - 0.2
    assert moved
    assert lowest >= 0


def test_mocov2plus() -> None:
    """The first epoch fills the queue with keys, which are harder than its start: the loss decreases from there."""
    history, moved, lowest = run("--method", "mocov2plus", "--images", "384", "--batch-size", "32", "--epochs", "4")
    assert history[-1] < history[1] - 0.05
    assert moved
    assert lowest >= 0
