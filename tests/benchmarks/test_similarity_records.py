"""The pages quote the committed records and nothing else."""

from __future__ import annotations

import csv
import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "benchmarks" / "records"


def load(name: str) -> ModuleType:
    """A script of benchmarks/, which is not a package."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize(("path", "function"), [("docs/performance.md", "page"), ("README.md", "readme")])
def test_a_page_is_what_its_records_give(path: str, function: str) -> None:
    text = (ROOT / path).read_text()
    assert getattr(load("report_similarity"), function)(text, RECORDS) == text, "run benchmarks/report_similarity.py"


def test_every_record_has_its_error_beside_its_time() -> None:
    for name in ("similarity_bars.csv", "similarity_sweep.csv"):
        with (RECORDS / name).open() as file:
            records = list(csv.DictReader(file))
        assert {"ssl-heads", "papers' form"} <= {r["contestant"] for r in records}
        for record in records:
            assert record["torch"]
            assert record["date"]
            if record["median_ms"] != "nan" and int(record["rows"]) <= 8192:
                assert float(record["gradient_error"]) < 1e-4, record


def test_the_benchmark_runs_and_our_gradient_is_right() -> None:
    """The smallest piece of work, for real: everyone is timed and the errors are those of fp32."""
    similarity = load("similarity")
    records = similarity.run(similarity.nt_xent(16, 8, repeats=1))
    assert records[0].contestant == "ssl-heads"
    assert records[0].gradient_error < 1e-5
    assert all(r.peak_extra_mb > 0 for r in records)
