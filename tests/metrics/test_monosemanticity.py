"""Monosemanticity and clarity: what the closed forms give equals the loops over pairs."""

from __future__ import annotations

import csv
import importlib
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssl_heads.metrics import StreamingMonosemanticity, _rows, clarity, monosemanticity


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a, b) / (a.norm() * b.norm()))


def monosemanticity_by_pairs(activations: Tensor, embeddings: Tensor) -> list[float]:
    """The released loop, in float64: activations from 0 to 1, one pair at a time."""
    scores = []
    for column in activations.double().T:
        span = column.max() - column.min()
        a = ((column - column.min()) / span).tolist() if span > 0 else [0.0] * len(column)
        alike = weights = 0.0
        for n in range(len(a)):
            for m in range(n + 1, len(a)):
                alike += a[n] * a[m] * cosine(embeddings[n].double(), embeddings[m].double())
                weights += a[n] * a[m]
        scores.append(alike / weights if weights > 0 else math.nan)
    return scores


def clarity_by_pairs(activations: Tensor, embeddings: Tensor, eps: float) -> list[float]:
    scores = []
    for j in range(activations.shape[1]):
        active = [n for n, row in enumerate(activations) if row.any() and abs(row[j]) / row.norm() > eps]
        pairs = [cosine(embeddings[n], embeddings[m]) for n in active for m in active if n != m]
        scores.append(sum(pairs) / len(pairs) if pairs else math.nan)
    return scores


@pytest.fixture
def codes() -> Tensor:
    z = torch.randn(40, 9, dtype=torch.float64).clamp(min=0)
    z[:, 2], z[:, 3], z[5] = 0, 0, 0
    z[7, 3] = 0.5  # one row has no pair
    return z


@pytest.mark.parametrize("chunk", [8192, 7])
@pytest.mark.parametrize("form", ["non-negative", "signed", "shifted"])
def test_the_closed_form_equals_the_double_loop(
    form: str, chunk: int, codes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_rows, "CHUNK", chunk)
    e = torch.randn(40, 6, dtype=torch.float64)
    z = {"non-negative": codes, "signed": torch.randn_like(codes), "shifted": codes + 100}[form]
    found = monosemanticity(z, e)
    assert found.tolist() == pytest.approx(monosemanticity_by_pairs(z, e), abs=1e-12, nan_ok=True)
    metric = StreamingMonosemanticity()
    for rows, of in zip(z.split(9), e.split(9), strict=True):
        metric.update(rows, of)
    assert metric.compute().tolist() == pytest.approx(found.tolist(), abs=1e-12, nan_ok=True)


def test_float32_activations_are_summed_in_float64(codes: Tensor) -> None:
    z, e = codes.float(), torch.randn(40, 6)
    assert monosemanticity(z, e).tolist() == pytest.approx(monosemanticity_by_pairs(z, e), abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("eps", [1e-5, 0.4])
def test_clarity_equals_the_double_loop(eps: float, codes: Tensor) -> None:
    e = torch.randn(40, 6, dtype=torch.float64)
    found, expected = clarity(codes, e, eps=eps), clarity_by_pairs(codes, e, eps)
    assert found.per_dimension.tolist() == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert found.mean == pytest.approx(sum(x for x in expected if x == x) / 7, abs=1e-12)
    assert found.baseline == pytest.approx(clarity_by_pairs(torch.ones(40, 1), e, eps)[0], abs=1e-12)
    counted = clarity(codes, e, eps=eps, min_support=15)
    assert counted.per_dimension.isnan().tolist() == (counted.support < 15).tolist()


def test_what_is_alike_scores_one_and_what_is_not_the_baseline() -> None:
    labels = torch.arange(5).repeat(8)
    e = torch.eye(5)[labels]
    assert torch.allclose(monosemanticity(e, e), torch.ones(5, dtype=torch.float64))
    found = clarity(e, e)
    assert found.mean == pytest.approx(1)
    assert found.baseline == pytest.approx(7 / 39)
    everywhere = clarity(torch.ones(40, 2), e)
    assert everywhere.per_dimension.tolist() == pytest.approx([everywhere.baseline] * 2)


def test_dead_and_constant_dimensions_have_no_score() -> None:
    z = torch.tensor([[0.0, 0.3, 0.0], [0.0, 0.3, 0.0], [0.0, 0.3, 0.7]])
    e = torch.randn(3, 4)
    assert monosemanticity(z, e).isnan().all()
    assert clarity(z, e).per_dimension.isnan().tolist() == [True, False, True]
    assert math.isnan(clarity(torch.zeros(3, 2), e).mean)
    assert math.isnan(clarity(torch.ones(1, 2), e[:1]).baseline)


@pytest.mark.parametrize("metric", [monosemanticity, clarity])
def test_bad_input_is_refused(metric) -> None:  # type: ignore[no-untyped-def]
    z, e = torch.rand(6, 3), torch.randn(6, 4)
    with pytest.raises(ValueError, match=r"same samples, got shapes \(6, 3\) and \(5, 4\)"):
        metric(z, e[:5])
    with pytest.raises(ValueError, match=r"2 of 6 rows of embeddings are zero and have no direction; one is row 1"):
        metric(z, torch.where(torch.tensor([0, 1, 0, 0, 1, 0]).bool()[:, None], 0.0, e))
    with pytest.raises(ValueError, match="eps"):
        metric(z, e, eps=-1.0)
    with pytest.raises(ValueError, match="min_support must be at least 2, got 1"):
        clarity(z, e, min_support=1)


def test_the_benchmark_compares_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    benchmark = importlib.import_module("monosemanticity")
    for form in ("closed", "pairs"):
        assert float(benchmark.run(benchmark.Cell(form, 50, 8, 4, 0))["largest_difference"]) < 1e-12
    with (root / "benchmarks" / "records" / "monosemanticity.csv").open() as file:
        records = list(csv.DictReader(file))
    assert {"closed", "pairs"} == {record["form"] for record in records}
    page = (root / "docs" / "metrics.md").read_text()
    assert benchmark.table(benchmark.Records(root / "benchmarks" / "records" / "monosemanticity.csv", ["form"])) in page
    assert all(float(r["largest_difference"]) < 1e-12 for r in records if r["largest_difference"] != "nan")
