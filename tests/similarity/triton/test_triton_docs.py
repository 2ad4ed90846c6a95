"""The page about performance says what the record of compiled figures and the model say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gpu_model

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "performance_gpu.md").read_text(encoding="utf-8")


def test_compiled_figures() -> None:
    record = json.loads(Path(__file__).with_name("aot_golden.json").read_text())["kernels"]
    found = 0
    for line in PAGE.splitlines():
        name, *figures = [cell.strip() for cell in line.strip("|").split("|")]
        if name in record:
            row = record[name]
            assert figures == [
                str(row["registers"]), f"{row['shared'] / 1024:.1f}", str(row["matrix"]), str(row["exponentials"]),
                str(row.get("exchanges", "")),
            ], name  # fmt: skip
            found += 1
    assert found > 15


def test_model(capsys: pytest.CaptureFixture[str]) -> None:
    gpu_model.print_model()
    assert capsys.readouterr().out.strip() in PAGE


@pytest.mark.parametrize(
    ("name", "path", "elements"),
    [
        ("sm_90 forward_bounded bf16 768 bounded columns", gpu_model.BOUNDED, 128),
        ("sm_90 forward bf16 768 online columns", gpu_model.ONLINE, 64),
    ],
)
def test_costs_of_the_model_are_those_of_the_machine_code(name: str, path: gpu_model.Path, elements: int) -> None:
    compiled = json.loads(Path(__file__).with_name("aot_golden.json").read_text())["kernels"][name]
    assert compiled["exchanges"] / elements == pytest.approx(path.exchanges, abs=0.02)
    assert compiled["exponentials"] // elements == path.exponentials
