"""The benchmark that waits for a GPU: its losses are right, and it runs, here on the CPU with a false clock."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[4] / "benchmarks"))
import gpu


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DEVICE", "cpu")


@pytest.mark.parametrize("work", gpu.WORKS, ids=lambda work: work.name)
def test_fused_losses_are_right(work: gpu.Work) -> None:
    q, k = (gpu.unit_rows(rows, 40, torch.float32) for rows in (50, 70 if work.name == "queue" else 50))
    assert gpu.error(work.fused, work, q, k) < 1e-5
    value, _ = gpu.gradients(work.fused, q, k)
    exact, _ = gpu.gradients(work.eager, q.double(), k.double())
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=0.0)
    assert gpu.error(lambda q, k: -work.fused(q, k), work, q, k) > 1.0


@pytest.mark.parametrize("name", ["F.linear_cross_entropy", "open_clip"])
def test_others_compute_the_same_loss(name: str) -> None:
    work = gpu.WORKS[0]
    package, loss = work.others[name]
    pytest.importorskip(package)
    if not hasattr(torch.nn.functional, "linear_cross_entropy") and package == "torch":
        pytest.skip("torch has no linear_cross_entropy")
    q, k = gpu.unit_rows(50, 40, torch.float32), gpu.unit_rows(50, 40, torch.float32)
    assert gpu.error(loss, work, q, k) < 1e-5


class FalseClock:
    """Runs everything once and reports a millisecond a product."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def race(self, runs: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
        for run in runs.values():
            run()
        return {name: [1.0 + 2.0 * (name == "eager")] * self.rounds for name in runs}


def test_the_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "Stopwatch", FalseClock)
    monkeypatch.setattr(gpu, "peak_extra_mib", lambda run: 0.0)
    monkeypatch.setattr(gpu, "check", lambda: 0)
    monkeypatch.setattr(gpu, "environment", lambda: {"device": "none"})
    monkeypatch.setattr(gpu.torch, "compile", lambda function: function)
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu.torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(gpu, "WORKS", [work for work in gpu.WORKS if work.name in ("CLIP", "queue")])
    monkeypatch.setattr(gpu, "race", smaller(gpu.race))
    monkeypatch.setattr(gpu, "race_prologue", lambda rows, width, watch: original_prologue(12, 40, watch))
    output = tmp_path / "gpu.json"
    monkeypatch.setattr("sys.argv", ["gpu.py", "--rows", "64", "--rounds", "2", "--output", str(output)])
    assert gpu.main() == 0
    records = json.loads(output.read_text())["records"]
    eager = next(r for r in records if r["contestant"] == "eager" and r["pass_"] == "forward+backward")
    assert eager["gemm_ratio"] == 3.0
    assert eager["tflops"] == pytest.approx(3 * 2 * 40 * 40 * 16 / 3e-3 / 1e12)
    fused = [r for r in records if r["contestant"] == "fused" and r["work"] == "CLIP" and "backward" in r["pass_"]]
    assert all(r["gradient_error"] < 5e-3 for r in fused)
    assert not any(r["note"] for r in fused)
    assert math.isnan(next(r for r in records if r["work"] == "prologue")["gemm_ratio"])


original_prologue = gpu.race_prologue


def smaller(race: Callable[..., list[gpu.Record]]) -> Callable[..., list[gpu.Record]]:
    """The same races on 40 rows; each shape once."""
    seen: set[str] = set()

    def run(work: gpu.Work, rows: int, columns: int, width: int, watch: gpu.Stopwatch) -> list[gpu.Record]:
        if work.name in seen:
            return []
        seen.add(work.name)
        return race(work, 40, 40, 16, watch)

    return run


def test_without_a_device_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    assert gpu.main() == 0
    assert "nothing to measure" in capsys.readouterr().out
