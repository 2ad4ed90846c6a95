"""The table of dimensions against a literal version, its files, and what it refuses."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import ssl_heads
from ssl_heads import _samples, dimensions, metrics

EPS = 1e-5


def codes(n: int = 300, d: int = 12, seed: int = 0) -> torch.Tensor:
    """Sparse codes with a dead, an always-on and a repeated dimension."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.rand(n, d, generator=generator) * (torch.rand(n, d, generator=generator) < 0.3)
    z[:, 3] = 0
    z[:, 5] = 0.2
    z[:, 7] = z[:, 1] * 1.001
    return z


def test_every_column_equals_a_literal_version() -> None:
    z, y = codes(), torch.arange(300) % 4
    table = dimensions(z, y, num_strongest=5, num_spread=4, num_near_misses=3, num_nearest=2)
    q = (z.double() / z.double().norm(dim=1, keepdim=True)).numpy()
    gram = q.T @ q
    for j in range(12):
        active = np.flatnonzero(q[:, j] > EPS)
        assert table.support[j] == len(active)
        counts = np.bincount(y[active], minlength=4)
        assert table.counts[j].tolist() == counts.tolist()
        order = active[np.argsort(-q[active, j].astype(np.float32), kind="stable")]
        strongest = [i for i in table.strongest[j].tolist() if i >= 0]
        assert np.allclose(q[strongest, j], q[order[:5], j])
        spread = order[5:][np.round(np.linspace(0, len(order) - 6, 4)).astype(int)] if len(order) > 5 else []
        assert np.allclose(q[[i for i in table.spread[j].tolist() if i >= 0], j], q[spread, j], atol=1e-6)
        off = np.flatnonzero(q[:, j] <= EPS)
        best = np.sort((q @ gram[j])[off])[::-1][:3] if len(active) else []
        misses = [i for i in table.near_misses[j].tolist() if i >= 0]
        assert set(misses) <= set(off.tolist())
        assert np.allclose((q @ gram[j])[misses], best, rtol=1e-5)
        if len(active):
            assert table.share[j] == pytest.approx(counts.max() / len(active))
            assert table.ceiling[j] == pytest.approx(min(1, 75 / len(active)))
            means = np.array([q[y.numpy() == c, j].mean() for c in range(4)])
            others = np.delete(means, means.argmax()).mean()
            assert table.selectivity[j] == pytest.approx((means.max() - others) / (means.max() + others), rel=1e-5)
            cosines = np.delete(gram[j], [3, j]) / np.sqrt(np.delete(np.diag(gram), [3, j]) * gram[j, j])
            assert table.cosine[j].tolist() == pytest.approx(np.sort(cosines)[::-1][:2].tolist(), rel=1e-5)


def test_the_table_agrees_with_the_metrics() -> None:
    z, y = codes(), torch.arange(300) % 4
    table, consistency = dimensions(z, y), metrics.class_consistency(z, y)
    assert torch.equal(table.support, consistency.support)
    torch.testing.assert_close(table.share, consistency.per_dimension, equal_nan=True)
    activation = metrics.expected_activation(z)
    torch.testing.assert_close(table.expected_activation.float(), activation.per_dimension)
    assert torch.equal(table.order(), activation.order)
    alive = ~table.dead
    sizes = table.support[alive]
    torch.testing.assert_close(table.chance[alive], metrics.expected_modal_share(y, sizes), atol=3e-3, rtol=0)


def test_blocks_do_not_change_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    z, y = codes()[:, :7], torch.arange(300) % 4  # without the repeated one, whose neighbours are ties
    texts = [f"a {'red' if i % 3 else 'blue'} thing" for i in range(300)]
    whole = dimensions(z, y, texts)
    monkeypatch.setattr(_samples, "MOST_ENTRIES", 7 * 12)
    parts = dimensions(z, y, texts)
    for name, a, b in zip(whole._fields, whole, parts, strict=True):
        if isinstance(a, torch.Tensor):
            torch.testing.assert_close(a, b, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}")


def test_flags() -> None:
    table = dimensions(codes())
    assert table.dead.nonzero().flatten().tolist() == [3]
    assert table.always_on.nonzero().flatten().tolist() == [5]
    assert table.duplicate_of.tolist() == [1 if j == 7 else -1 for j in range(12)]


def test_signed_embeddings_are_judged_by_their_positive_part() -> None:
    z = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
    table = dimensions(z)
    assert table.support.tolist() == (z > 0).sum(dim=0).tolist()
    torch.testing.assert_close(table.expected_activation.float(), metrics.expected_activation(z).per_dimension)


def test_words_are_those_that_raise_the_dimension() -> None:
    generator = torch.Generator().manual_seed(0)
    red = torch.rand(400, generator=generator) < 0.2
    z = torch.stack([red * 1.0, torch.rand(400, generator=generator), torch.ones(400)], dim=1)
    texts = [f"a {'red' if on else 'grey'} car" for on in red]
    table = dimensions(z, texts=texts)
    assert table.words[0] == ("red",)
    q = (z / z.norm(dim=1, keepdim=True))[:, 0].double()
    score = (q[red].mean() - q.mean()) * red.sum().sqrt() / q.std(unbiased=False)
    assert float(table.word_scores[0, 0]) == pytest.approx(float(score), rel=1e-4)


def test_names_are_classes() -> None:
    names = ["owl", "cat", "dog"] * 20
    table = dimensions(torch.eye(3).repeat(20, 1), np.array(names))
    assert [table.class_names[c] for c in table.modal_class] == ["owl", "cat", "dog"]
    mapped = dimensions(torch.eye(3).repeat(20, 1), [4, 7, 9] * 20, class_names={4: "a", 7: "b", 9: "c"})
    assert mapped.class_names == ("a", "b", "c")
    assert mapped.modal_class.tolist() == [4, 7, 9]


def test_rows_without_a_label_are_active_and_have_no_class() -> None:
    table = dimensions(torch.ones(6, 2), [0, 0, 1, -1, -1, -1])
    assert table.support.tolist() == [6, 6]
    assert table.counts.tolist() == [[2, 1]] * 2
    assert table.share.tolist() == pytest.approx([2 / 3] * 2)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_samples(n: int) -> None:
    table = dimensions(codes(n), torch.zeros(n), ["one text"] * n)
    assert table.strongest.shape == (12, 12)
    assert not bool(table.selectivity.isfinite().any())
    assert torch.equal(table.share[~table.dead], torch.ones(int((~table.dead).sum()), dtype=torch.float64))


def test_all_dead() -> None:
    table = dimensions(torch.zeros(5, 4), [0, 0, 1, 1, 1])
    assert bool(table.dead.all())
    assert table.modal_class.tolist() == [-1] * 4
    assert bool((table.strongest == -1).all())
    assert bool((table.nearest == -1).all())
    assert table.order().tolist() == [0, 1, 2, 3]


def test_files_hold_every_number(tmp_path: Path) -> None:
    table = dimensions(codes(), ["x", "y", "z"] * 100, importance=torch.arange(12.0))
    table.to_csv(tmp_path / "table.csv")
    table.to_json(tmp_path / "table.json")
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    content = json.loads((tmp_path / "table.json").read_text())
    assert [int(row["support"]) for row in rows] == table.support.tolist()
    assert [row["share"] for row in content["dimensions"]] == [None if math.isnan(x) else x for x in table.share]
    assert content["dimensions"][0]["strongest"] == [i for i in table.strongest[0].tolist() if i >= 0]
    assert rows[0]["strongest"] == " ".join(map(str, content["dimensions"][0]["strongest"]))
    assert rows[3]["share"] == ""
    assert content["dimensions"][3]["dead"] is True
    assert [c["name"] for c in content["classes"]] == ["x", "y", "z"]


def test_orders() -> None:
    z, s = codes(), torch.randn(12, generator=torch.Generator().manual_seed(0))
    table = dimensions(z, torch.arange(300) % 4, importance=s)
    assert torch.equal(table.order("importance"), s.argsort(descending=True))
    selectivity = table.selectivity[table.order("selectivity")]
    assert bool(selectivity[-1].isnan())  # of the dead dimension
    assert torch.equal(selectivity[:-1], selectivity[:-1].sort(descending=True).values)


MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "nan": (lambda: dimensions(torch.tensor([[1.0, math.nan]])), "1 of 1 rows of embeddings hold NaN"),
    "labels": (lambda: dimensions(torch.eye(3), [0, 1]), r"expected labels \(3,\)"),
    "names": (lambda: dimensions(torch.eye(2), ["a", "b", "c"]), r"expected labels \(2,\)"),
    "texts": (lambda: dimensions(torch.eye(3), texts=["a"]), "one text for each of the 3 rows of embeddings, got 1"),
    "text": (lambda: dimensions(torch.eye(3), texts="abc"), "got one string"),
    "no string": (lambda: dimensions(torch.eye(1), texts=[None]), "texts must be strings"),  # type: ignore[list-item]
    "importance": (lambda: dimensions(torch.eye(3), importance=[1.0]), "one number for each of the 3 dimensions"),
    "nameless": (lambda: dimensions(torch.eye(2), [0, 4], class_names=["a"]), "no name for class 4"),
    "count": (lambda: dimensions(torch.eye(2), num_spread=-1), "num_spread must be at least 0"),
    "order": (lambda: dimensions(torch.eye(2)).order("importance"), "give importance="),
    "no classes": (lambda: dimensions(torch.eye(2)).order("selectivity"), "labels of at least two classes"),
    "unknown order": (lambda: dimensions(torch.eye(2)).order("size"), "by must be one of"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_said_plainly(mistake: str) -> None:
    call, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        call()


def test_dimensions_is_the_function() -> None:
    assert callable(ssl_heads.dimensions)
