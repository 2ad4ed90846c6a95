"""What holds for every metric: what it accepts, what it refuses, what NaN, -1 and eps mean."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_heads import metrics
from ssl_heads.metrics import chance
from ssl_heads.plots import modal_class

N, D, C = 40, 4, 3
FACTORS = torch.randn(N, 2, generator=torch.Generator().manual_seed(1))
IMPORTANCE = torch.tensor([1.0, 3.0, 2.0, 0.5])


def curve(kept: Tensor) -> float:
    return float(kept.double().mean())


def controlled(z: Any, untrained: Any) -> tuple[float, ...]:
    found = metrics.controls({"hoyer": metrics.hoyer, "rank": metrics.effective_rank}, z, untrained)
    return tuple(x for arm in found for x in arm.values())


# Each metric as a function of embeddings (n, d), and of labels where it takes them.
OF_EMBEDDINGS: dict[str, Callable[[Any], Any]] = {
    "absolute_correlations": lambda z: metrics.absolute_correlations(z, FACTORS),
    "absolute_correlations of ranks": lambda z: metrics.absolute_correlations(FACTORS, z, "rank"),
    "alive_dimensions": metrics.alive_dimensions,
    "clarity of activations": lambda z: metrics.clarity(z, KNOWN),
    "clarity of embeddings": lambda z: metrics.clarity(KNOWN, z),
    "controls": lambda z: controlled(z, KNOWN.flip(1)),
    "controls of the untrained": lambda z: controlled(KNOWN.flip(1), z),
    "dci": lambda z: metrics.dci(z, FACTORS),
    "effective_rank": metrics.effective_rank,
    "expected_activation": metrics.expected_activation,
    "hoyer": metrics.hoyer,
    "l0": metrics.l0,
    "linear_r2": lambda z: metrics.linear_r2(z, FACTORS),
    "match_by_importance": lambda z: metrics.match_by_importance(FACTORS[:, [0, 1, 0, 1]], IMPORTANCE, z, IMPORTANCE),
    "match_by_search": lambda z: metrics.match_by_search(z, FACTORS),
    "mean_correlation_coefficient": lambda z: metrics.mean_correlation_coefficient(z, FACTORS),
    "monosemanticity of activations": lambda z: metrics.monosemanticity(z, KNOWN),
    "monosemanticity of embeddings": lambda z: metrics.monosemanticity(KNOWN, z),
    "orthogonality": metrics.orthogonality,
    "seed_stability": lambda z: metrics.seed_stability(z, KNOWN),
    "seed_stability of the other": lambda z: metrics.seed_stability(KNOWN, z),
    "selection_curves": lambda z: metrics.selection_curves(metrics.expected_activation(z)[0], [1, 3], curve)[1:],
    "sepin": lambda z: metrics.sepin(z, KNOWN, [1, 3], batch_size=16),
    "sepin of the other": lambda z: metrics.sepin(KNOWN, z, [1, 3], batch_size=16),
    "redundancy": metrics.redundancy,
    "sparsity": metrics.sparsity,
}
OF_LABELS: dict[str, Callable[[Any, Any], Any]] = {
    "class_consistency": metrics.class_consistency,
    "knn_accuracy of the training set": lambda z, y: metrics.knn_accuracy(z, y, KNOWN, KNOWN_LABELS, k=3),
    "knn_accuracy of the test set": lambda z, y: metrics.knn_accuracy(KNOWN, KNOWN_LABELS, z, y, k=3),
    "k_sparse_probe of the training set": lambda z, y: metrics.k_sparse_probe(z, y, KNOWN, KNOWN_LABELS, [1, 3])[:3],
    "k_sparse_probe of the test set": lambda z, y: metrics.k_sparse_probe(KNOWN, KNOWN_LABELS, z, y, [1, 3])[:3],
    "linear_probe of the training set": lambda z, y: metrics.linear_probe(z, y, KNOWN, KNOWN_LABELS),
    "linear_probe of the test set": lambda z, y: metrics.linear_probe(KNOWN, KNOWN_LABELS, z, y),
    "retrieval": lambda z, y: metrics.retrieval(z, y, k=5),
    "semantic_entropy": metrics.semantic_entropy,
    "semantic_entropy of means": lambda z, y: metrics.semantic_entropy(z, y, "mean"),
    "semantic_entropy of frequencies": lambda z, y: metrics.semantic_entropy(z, y, "frequency"),
    "modal_class": lambda z, y: modal_class(np.asarray(z)[:, 0] if isinstance(z, list) else z[:, 0], y, eps=0.1),
}
OF_EITHER = {**{name: (lambda z, y, f=f: f(z)) for name, f in OF_EMBEDDINGS.items()}, **OF_LABELS}
SIZES = torch.tensor([1, 3, 5])


def embeddings() -> Tensor:
    """Non-negative, half of it zero but no row, and exact in half precision."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randint(0, 17, (N, D), generator=generator) / 16 * (torch.rand(N, D, generator=generator) < 0.5)
    z[(z == 0).all(dim=1), 0] = 0.5
    return z


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """What chance gives is compared with itself here, and need not be precise."""
    monkeypatch.setattr(chance, "DRAWS", 2**10)


LABELS = torch.arange(N) % C
KNOWN, KNOWN_LABELS = embeddings().flip(0), LABELS.flip(0)


def numbers(result: Any) -> Iterator[Any]:
    """Every number in what a metric returns."""
    if isinstance(result, tuple):
        for part in result:
            yield from numbers(part)
    else:
        yield from result.flatten().tolist() if isinstance(result, Tensor) else [result]


def unknown(number: float) -> bool:
    return math.isnan(number) if isinstance(number, float) else number == -1


def test_every_metric_is_in_the_tables() -> None:
    public = {name for name in metrics.__all__ if inspect.isfunction(getattr(metrics, name))}
    # labels alone, truth values that cannot be NaN, gates within [0, 1], and a module
    others = {
        "expected_modal_share",
        "gate_statistics",
        "match_gain",
        "match_score",
        "tapa_score",
        "untrained_copy",
    }
    assert public - {name.split()[0] for name in OF_EITHER} == others


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["one entry", "all entries"])
@pytest.mark.parametrize("name", OF_EITHER)
def test_what_is_not_finite_makes_every_number_nan(name: str, where: str, value: float) -> None:
    z = embeddings()
    z[5, 0] = value
    result = OF_EITHER[name](torch.full_like(z, value) if where == "all entries" else z, LABELS)
    assert all(map(unknown, numbers(result))), result


@pytest.mark.parametrize("name", ["dci", "linear_r2", "mean_correlation_coefficient", "match_by_search"])
def test_factors_that_are_not_finite_do_so_too(name: str) -> None:
    factors = FACTORS.clone()
    factors[3, 1] = math.nan
    assert all(map(unknown, numbers(getattr(metrics, name)(embeddings(), factors))))
    importance = IMPORTANCE * math.nan
    assert all(map(unknown, numbers(metrics.match_by_importance(KNOWN, importance, KNOWN, IMPORTANCE))))


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "NumPy": lambda z: z.numpy(),
    "NumPy, float64, read only": lambda z: np.broadcast_to(z.double().numpy(), z.shape),
    "NumPy, reversed twice, big-endian": lambda z: z.flip(0).numpy().astype(">f4")[::-1],
    "float64": Tensor.double,
    "float16": Tensor.half,
    "bfloat16": Tensor.bfloat16,
    "a parameter": torch.nn.Parameter,
    "columns first": lambda z: z.T.contiguous().T,
    "COO": Tensor.to_sparse,
    "lists": Tensor.tolist,
    "a list of rows": lambda z: list(z),
    "a list of arrays": lambda z: list(z.numpy()),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", OF_EITHER)
def test_embeddings_as_people_have_them(name: str, form: str) -> None:
    if (name, form) in {("modal_class", "lists"), ("modal_class", "COO")}:
        return  # of one dimension, which these have no slice for
    expected, found = OF_EITHER[name](embeddings(), LABELS), OF_EITHER[name](FORMS[form](embeddings()), LABELS)
    assert type(found) is type(expected)
    assert list(numbers(found)) == pytest.approx(list(numbers(expected)), abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.int16, torch.bool, torch.uint16])
@pytest.mark.parametrize("name", OF_EITHER)
def test_whole_numbers_are_embeddings(name: str, dtype: torch.dtype) -> None:
    whole = embeddings().mul(16)
    z = whole.bool().float() if dtype == torch.bool else whole
    expected, found = OF_EITHER[name](z, LABELS), OF_EITHER[name](z.to(dtype), LABELS)
    assert list(numbers(found)) == pytest.approx(list(numbers(expected)), nan_ok=True)


LABEL_FORMS: dict[str, Callable[[Tensor], Any]] = {
    "NumPy": lambda y: y.numpy(),
    "a list": Tensor.tolist,
    "a tuple": lambda y: tuple(y.tolist()),
    "a list of tensors": lambda y: list(y),
    "int32": Tensor.int,
    "uint8": lambda y: y.to(torch.uint8),
    "uint16": lambda y: y.numpy().astype(np.uint16),
    "whole floats": Tensor.double,
    "a column": lambda y: y[:, None],
    "a column of NumPy's floats": lambda y: y[:, None].float().numpy(),
}


@pytest.mark.parametrize("form", LABEL_FORMS)
@pytest.mark.parametrize("name", OF_LABELS)
def test_labels_as_people_have_them(name: str, form: str) -> None:
    given = LABEL_FORMS[form](LABELS)
    expected, found = OF_LABELS[name](embeddings(), LABELS), OF_LABELS[name](embeddings(), given)
    assert list(numbers(found)) == list(numbers(expected))
    shares = metrics.expected_modal_share(given, SIZES.tolist())
    assert torch.equal(shares, metrics.expected_modal_share(LABELS, SIZES))


@pytest.mark.parametrize("name", OF_LABELS)
def test_a_row_without_a_label_is_left_out(name: str) -> None:
    z, y = embeddings(), LABELS.clone()
    y[::4] = -1
    expected = OF_LABELS[name](z[y >= 0], y[y >= 0])
    assert list(numbers(OF_LABELS[name](z, y))) == list(numbers(expected))
    if name != "modal_class":
        z[0] = math.nan
        assert all(math.isnan(x) or x == -1 for x in numbers(OF_LABELS[name](z, y)))
        z[0] = 0.0
        with pytest.raises(ValueError, match=r"all -1.*none"):
            OF_LABELS[name](z, torch.full((N,), -1))
    assert torch.equal(metrics.expected_modal_share(y, SIZES), metrics.expected_modal_share(y[y >= 0], SIZES))


LABELS_REFUSED: dict[str, tuple[Any, str]] = {
    "parts": (LABELS + 0.5, r"integers, got 0\.5"),
    "NaN": (LABELS * math.nan, "integers, got nan; a label that is missing is -1"),
    "names": (["cat", "dog"] * (N // 2), r"text 'cat'; number the names: names = sorted\(set\("),
    "NumPy's names": (np.array(["cat", "dog"] * (N // 2)), r"text .*'cat'.*number the names"),
    "holes": ([None] * N, "got list"),
    "one-hot": (torch.nn.functional.one_hot(LABELS), r"\(40, 3\).*argmax\(1\)"),
    "below -1": (LABELS - 2, r"-1 for none, got -2"),
    "none at all": (LABELS[:0], r"got shape \(0,\)"),
    "one too few": (LABELS[1:], r"\(39,\)"),
    "without values": (LABELS.to("meta"), "meta"),
}


@pytest.mark.parametrize("form", LABELS_REFUSED)
@pytest.mark.parametrize("name", OF_LABELS)
def test_labels_that_are_none_are_refused_in_one_line(name: str, form: str) -> None:
    given, message = LABELS_REFUSED[form]
    with pytest.raises(ValueError, match=message) as caught:
        OF_LABELS[name](embeddings(), given)
    assert "\n" not in str(caught.value)
    if form != "one too few":
        with pytest.raises(ValueError, match=message):
            metrics.expected_modal_share(given, SIZES)


class Gated(tuple):
    embeddings = KNOWN


REFUSED: dict[str, tuple[Any, str]] = {
    "a vector": (KNOWN[:, 0], r"shape \(n, d\), got torch\.float32 of shape \(40,\)"),
    "batches": ([KNOWN, KNOWN], r"got torch\.float32 of shape \(2, 40, 4\)"),
    "unequal batches": ([KNOWN, KNOWN[1:]], "rows of one shape, got list"),
    "ragged": ([[1.0, 2.0], [3.0]], "rows of one shape, got list"),
    "no rows": (KNOWN[:0], r"\(0, 4\)"),
    "no columns": (KNOWN[:, :0], r"\(40, 0\)"),
    "names": (np.array([["a", "b"]]), "got ndarray"),
    "nothing": (None, "got NoneType"),
    "a dictionary": ({"z": KNOWN}, "got dict"),
    "complex": (KNOWN + 1j, "complex64"),
    "without values": (KNOWN.to("meta"), r"meta.*no values"),
    "a head's output": (Gated(), r"Gated; pass its \.embeddings"),
}


@pytest.mark.parametrize("form", REFUSED)
@pytest.mark.parametrize("name", [name for name in OF_EITHER if name != "modal_class"])
def test_what_is_no_matrix_is_refused_in_one_line(name: str, form: str) -> None:
    given, message = REFUSED[form]
    with pytest.raises(ValueError, match=message) as caught:
        OF_EITHER[name](given, LABELS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", OF_EITHER)
def test_modes_and_a_default_device_change_nothing(name: str) -> None:
    z = torch.randn(N, D, generator=torch.Generator().manual_seed(3))
    expected = list(numbers(OF_EITHER[name](z, LABELS)))
    with torch.inference_mode():
        assert list(numbers(OF_EITHER[name](z.clone(), LABELS))) == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert list(numbers(OF_EITHER[name](z, LABELS))) == expected
    given = z.tolist() if name != "modal_class" else z
    with torch.device("meta"):
        found = OF_EITHER[name](given, LABELS.tolist())
    assert list(numbers(found)) == expected


ROW_NORMALISED = [
    "alive_dimensions",
    "expected_activation",
    "hoyer",
    "l0",
    "orthogonality",
    "redundancy",
    "sparsity",
    *sorted(name for name in OF_LABELS if name != "modal_class" and "probe" not in name),
]


@pytest.mark.parametrize("scale", [1e-37, 1e-8, 1e30])
@pytest.mark.parametrize("name", [*ROW_NORMALISED, "effective_rank", "mean_correlation_coefficient", "linear_r2"])
def test_the_scale_of_the_embeddings_changes_nothing(name: str, scale: float) -> None:
    expected = list(numbers(OF_EITHER[name](embeddings(), LABELS)))
    assert list(numbers(OF_EITHER[name](embeddings() * scale, LABELS))) == pytest.approx(expected, rel=1e-5)


def test_degenerate_embeddings() -> None:
    """Zeros, one row, one class: the number that the definition gives, or an error."""
    zeros, row, one = torch.zeros(N, D), torch.rand(1, D), torch.zeros(N, dtype=torch.int64)
    assert (metrics.sparsity(zeros), metrics.alive_dimensions(zeros), metrics.effective_rank(zeros)) == (1.0, 0, 0.0)
    assert metrics.mean_correlation_coefficient(zeros, FACTORS).mean == 0
    assert metrics.linear_r2(zeros, FACTORS) <= 0
    assert metrics.dci(zeros, FACTORS)[:2] == (0, 0)
    assert (metrics.alive_dimensions(row), metrics.effective_rank(row)) == (D, pytest.approx(1))
    assert metrics.class_consistency(row, [0]).mean == 1
    assert metrics.knn_accuracy(row, [0], row, [0], k=1) == 1
    for name in ("absolute_correlations", "mean_correlation_coefficient", "match_by_search"):
        with pytest.raises(ValueError, match=r"one sample has no correlation.*\(1, 4\)"):
            getattr(metrics, name)(row, row)
    for name in ("dci", "linear_r2"):
        with pytest.raises(ValueError, match="factor 0 does not vary"):
            getattr(metrics, name)(KNOWN, one[:, None])
    assert metrics.knn_accuracy(KNOWN, one, KNOWN, one) == 1


def test_all_dead_one_class_and_three_samples() -> None:
    """A number of its definition, NaN where that has none, or one line that says what is wrong."""
    dead, one = torch.zeros(N, D), torch.zeros(N, dtype=torch.int64)
    assert all(map(math.isnan, numbers((metrics.hoyer(dead), metrics.orthogonality(dead), metrics.redundancy(dead)))))
    assert metrics.l0(dead) == 0
    assert all(map(math.isnan, numbers(metrics.semantic_entropy(dead, LABELS))))
    assert all(map(math.isnan, numbers(metrics.monosemanticity(dead, KNOWN))))
    assert math.isnan(metrics.clarity(dead, KNOWN).mean)
    assert metrics.match_score(dead, KNOWN > 0).mean == 0
    assert math.isnan(metrics.seed_stability(dead, dead).mean)
    assert metrics.seed_stability(dead, KNOWN).mean == 0
    assert metrics.linear_probe(dead, LABELS, dead, LABELS) == pytest.approx(14 / N)  # the largest class
    assert metrics.k_sparse_probe(dead, LABELS, dead, LABELS).accuracy.tolist() == [0.5] * 4
    assert metrics.sepin(dead, dead, [1]).mean.tolist() == [0]
    assert metrics.controls({"l0": metrics.l0}, dead, KNOWN).random == {"l0": 0}

    assert metrics.class_consistency(KNOWN, one).ceiling.tolist() == [1] * D
    assert metrics.semantic_entropy(KNOWN, one).mean == 0
    assert metrics.retrieval(KNOWN, one, k=5) == (1, 1, pytest.approx(5 / (N - 1)))
    for probe in (metrics.linear_probe, metrics.k_sparse_probe):
        with pytest.raises(ValueError, match="two classes or more"):
            probe(KNOWN, one, KNOWN, one)

    three, labels = KNOWN[:3], [0, 0, 1]
    assert metrics.retrieval(three, labels, k=2).recall == 1
    assert 0 <= metrics.linear_probe(three, labels, three, labels) <= 1
    assert metrics.seed_stability(three, three).mean == pytest.approx(1)
    with pytest.raises(ValueError, match="between 1 and the 2 other rows, got 10"):
        metrics.retrieval(three, labels)


@pytest.mark.parametrize("name", OF_LABELS)
def test_labels_of_other_rows_are_refused(name: str) -> None:
    for labels in (LABELS[:-1], torch.cat([LABELS, LABELS])):
        with pytest.raises(ValueError, match=r"\(40,\)|\(40, 4\)"):
            OF_LABELS[name](embeddings(), labels)


@pytest.mark.parametrize("name", ["clarity", "controls", "monosemanticity", "seed_stability", "sepin"])
def test_other_samples_are_refused(name: str) -> None:
    first = {"l0": metrics.l0} if name == "controls" else None
    arguments = [KNOWN, KNOWN[:-1]] if first is None else [first, KNOWN, KNOWN[:-1]]
    with pytest.raises(ValueError, match=r"same samples, got shapes \(40, 4\) and \(39, 4\)"):
        getattr(metrics, name)(*arguments)


@pytest.mark.parametrize("value", [1.5, "3", None])
def test_counts_are_whole_numbers(value: Any) -> None:
    with pytest.raises(ValueError, match=r"k must be a whole number, got"):
        metrics.knn_accuracy(KNOWN, LABELS, KNOWN, LABELS, k=value)
    with pytest.raises(ValueError, match=r"min_support must be a whole number, got"):
        metrics.class_consistency(KNOWN, LABELS, min_support=value)
