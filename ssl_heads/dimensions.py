"""The table of dimensions: what each fires for, how far that exceeds chance, and its neighbours."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ssl_heads._check import choice, positive
from ssl_heads._samples import blocks, near_misses, strongest_and_spread
from ssl_heads._words import strongest_words, sums_by_word, vocabulary
from ssl_heads.metrics._inputs import (
    ArrayLike,
    as_labels,
    as_matrix,
    as_tensor,
    refuse_rows_that_are_not_finite,
    whole,
)
from ssl_heads.metrics._rows import EPS, unit_rows
from ssl_heads.metrics.chance import expected_modal_share

Order = Literal["expected_activation", "importance", "selectivity"]

ALWAYS_ON = 0.99  # share of the samples
DUPLICATE = 0.95  # cosine of two columns


class Dimensions(NamedTuple):
    """The result of `dimensions`: one row for each of the d dimensions, on the CPU.

    Attributes:
        support: Shape (d,), int64: the samples on which a dimension is active.
        counts: Shape (d, c), int64: those of each class that occurs; c is 0 without labels.
        modal_class: Shape (d,), int64: the most frequent class among them; -1 for none.
        share: Shape (d,), the share of that class among those that have a class; NaN for none.
        chance: Shape (d,), the share that as many samples drawn at random would have.
        ceiling: Shape (d,), the largest share that this support allows: min(1, samples of the class / support).
        selectivity: Shape (d,), (m - o) / (m + o), with m the mean activation on the class of largest mean, and o the
            mean over the other classes' means: 0 for equal classes, 1 for one class; NaN without two classes.
        expected_activation: Shape (d,), as `ssl_heads.metrics.expected_activation`.
        importance: Shape (d,), as given; NaN if none was.
        strongest: Shape (d, k), the samples of largest activation; -1 where there are fewer.
        spread: Shape (d, s), samples at even ranks among the other active ones, from strong to weak; -1 for none.
        near_misses: Shape (d, m), inactive samples that resemble the active ones most in all other dimensions.
        nearest: Shape (d, r), the dimensions of largest cosine over the samples; -1 for none.
        cosine: Shape (d, r), their cosines.
        dead: Shape (d,), bool: active on no sample.
        always_on: Shape (d,), bool: active on at least 99 % of the samples.
        duplicate_of: Shape (d,), the first dimension before it whose cosine with it is at least 0.95; -1 for none.
        words: For each dimension the words of the texts that raise it most, strongest first.
        word_scores: Shape (d, w), their standard scores, at least 3; NaN for none.
        classes: Shape (c,), the classes that occur, in the order of `counts`.
        class_names: Their names.
        samples: The number n of samples.
    """

    support: Tensor
    counts: Tensor
    modal_class: Tensor
    share: Tensor
    chance: Tensor
    ceiling: Tensor
    selectivity: Tensor
    expected_activation: Tensor
    importance: Tensor
    strongest: Tensor
    spread: Tensor
    near_misses: Tensor
    nearest: Tensor
    cosine: Tensor
    dead: Tensor
    always_on: Tensor
    duplicate_of: Tensor
    words: tuple[tuple[str, ...], ...]
    word_scores: Tensor
    classes: Tensor
    class_names: tuple[str, ...]
    samples: int

    def order(self, by: Order = "expected_activation") -> Tensor:
        """The dimensions, largest value first, of shape (d,); those without a value come last.

        Raises:
            ValueError: If `by` is unknown, or no dimension has such a value.
        """
        choice("by", by, get_args(Order))
        values: Tensor = getattr(self, by)
        if bool(values.isnan().all()):
            missing = {"importance": "give importance=", "selectivity": "give labels of at least two classes"}
            raise ValueError(f"no dimension has a value of {by}: {missing.get(by, 'every dimension is dead')}")
        return values.nan_to_num(nan=-math.inf).argsort(descending=True, stable=True)

    def records(self) -> list[dict[str, Any]]:
        """One dictionary a dimension, of Python values; None where there is no value."""
        names = dict(zip(self.classes.tolist(), self.class_names, strict=True))
        scalars = [name for name, value in self._asdict().items() if isinstance(value, Tensor) and value.ndim == 1]
        lists = [name for name, value in self._asdict().items() if isinstance(value, Tensor) and value.ndim == 2]
        columns = {name: getattr(self, name).tolist() for name in (*scalars, *lists)}
        del columns["classes"]
        table = []
        for j in range(len(self.support)):
            row = {"dimension": j, **{name: _plain(values[j]) for name, values in columns.items()}}
            row["modal_class_name"] = names.get(row["modal_class"])
            row["words"] = list(self.words[j])
            table.append(row)
        return table

    def to_csv(self, path: str | Path) -> None:
        """Write one line a dimension; lists are joined by blanks, and what has no value is empty."""
        records = self.records()
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, records[0].keys())
            writer.writeheader()
            for row in records:
                writer.writerow({k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()})

    def to_json(self, path: str | Path) -> None:
        """Write the classes, the number of samples, and one object a dimension; what has no value is null."""
        classes = [{"class": c, "name": name} for c, name in zip(self.classes.tolist(), self.class_names, strict=True)]
        whole = {"samples": self.samples, "classes": classes, "dimensions": self.records()}
        Path(path).write_text(json.dumps(whole, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def _plain(value: Any) -> Any:
    """A value of JSON: NaN, and -1 for no sample, dimension or class, become None, or are left out of a list."""
    if isinstance(value, list):
        return [entry for entry in map(_plain, value) if entry is not None]
    missing = (isinstance(value, float) and math.isnan(value)) or (type(value) is int and value < 0)
    return None if missing else value


class _Sums(NamedTuple):
    """What one pass over the rows adds up: of each class (c, d), of each word (v, d), and of pairs (d, d)."""

    active: Tensor
    by_class: Tensor
    expected: Tensor
    total: Tensor
    gram: Tensor
    words: Tensor


class _Agreement(NamedTuple):
    """How far the active samples are of one class, as in `Dimensions`."""

    counts: Tensor
    modal_class: Tensor
    share: Tensor
    chance: Tensor
    ceiling: Tensor
    selectivity: Tensor


@torch.no_grad()
def dimensions(
    embeddings: ArrayLike,
    labels: ArrayLike | None = None,
    texts: Sequence[str] | None = None,
    *,
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    importance: ArrayLike | None = None,
    num_strongest: int = 12,
    num_spread: int = 12,
    num_near_misses: int = 6,
    num_nearest: int = 5,
    num_words: int = 8,
    eps: float = EPS,
) -> Dimensions:
    r"""Describe every dimension of an embedding by the samples on which it is active.

    .. math:: \text{active}_j = \{i : q_{ij} > \varepsilon\}, \qquad q_i = z_i / \lVert z_i \rVert_2

    Only positive activations count, so that signed embeddings are judged by the same rule as non-negative ones.

    A share is not evidence by itself: a dimension that fires on few samples has a large one by chance, and one that
    fires on more samples than its class has cannot reach 1. So chance and ceiling stand beside it. In the same way the
    strongest samples flatter a dimension, and the evenly spread ones and the near misses do not.

    Memory is that of the embeddings, of a d x d matrix, and of a block of rows: 100,000 x 2,048 fit in 3 GB.

    Args:
        embeddings: Shape (n, d), signed or not; rows are normalised here.
        labels: Shape (n,), classes 0, 1, ..., or -1 for none; or one name a sample, as text.
        texts: One text a sample, for instance its caption.
        class_names: Names of the classes, one for each that occurs; None takes their numbers.
        importance: Shape (d,), for instance of `ssl_heads.FeatureImportance`.
        num_strongest: Samples of largest activation.
        num_spread: Samples at even ranks among the rest.
        num_near_misses: Inactive samples that resemble the active ones.
        num_nearest: Dimensions of largest cosine.
        num_words: Words of a dimension, at most.
        eps: A normalised entry above it is an activation.

    Raises:
        ValueError: If lengths differ, a row holds NaN or infinity, a class has no name, or a number is out of range.

    Example:
        >>> z = torch.eye(3).repeat(4, 1)
        >>> table = dimensions(z, ["cat", "dog", "owl"] * 4)
        >>> [table.class_names[c] for c in table.modal_class], table.support.tolist()
        (['cat', 'dog', 'owl'], [4, 4, 4])
    """
    positive("eps", eps)
    sizes = {"num_strongest": num_strongest, "num_spread": num_spread, "num_near_misses": num_near_misses}
    sizes |= {"num_nearest": num_nearest, "num_words": num_words}
    k, s, m, r, w = (whole(name, size, least=0) for name, size in sizes.items())
    z = as_matrix("embeddings", embeddings)
    refuse_rows_that_are_not_finite("embeddings", z)
    y, classes, names = as_classes_and_names(labels, class_names, z)
    vocabulary_ = vocabulary(as_texts(texts, len(z)))
    n, d = z.shape

    sums = _sums(z, y, len(classes), vocabulary_, eps)
    support = sums.active.sum(dim=0).long()
    mean = sums.total / n
    deviation = (sums.gram.diagonal() / n - mean.square()).clamp_min(0).sqrt()
    words, word_scores = strongest_words(vocabulary_, sums.words, mean, deviation, w)
    strongest, spread = strongest_and_spread(z, k, s, eps)
    nearest, cosine, duplicate_of = _neighbours(sums.gram, min(r, d - 1))
    return Dimensions(
        **_agreement(sums, y, classes)._asdict(),
        support=support,
        expected_activation=sums.expected / n,
        importance=_as_importance(importance, d),
        strongest=strongest,
        spread=spread,
        near_misses=near_misses(z, sums.gram, m, eps),
        nearest=nearest,
        cosine=cosine,
        dead=support == 0,
        always_on=support >= ALWAYS_ON * n,
        duplicate_of=duplicate_of,
        words=words,
        word_scores=word_scores,
        classes=classes,
        class_names=names,
        samples=n,
    )


def as_classes_and_names(
    labels: ArrayLike | None, class_names: Sequence[str] | Mapping[int, str] | None, of: Tensor
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Number (n,) of each row's class among those that occur, -1 for none; these classes; their names."""
    if labels is None:
        return torch.full((len(of),), -1, device="cpu"), torch.empty(0, dtype=torch.int64, device="cpu"), ()
    text = _as_text(labels)
    if text is not None:
        class_names = sorted(set(text))
        number = {name: i for i, name in enumerate(class_names)}
        labels = torch.tensor([number[name] for name in text], device="cpu")
    y = as_labels("labels", labels, "embeddings", of).cpu()
    classes = torch.unique(y[y >= 0])
    known = (
        class_names.keys() if isinstance(class_names, Mapping) else range(len(class_names)) if class_names else classes
    )
    nameless = [c for c in classes.tolist() if c not in known]
    if nameless:
        raise ValueError(f"class_names has no name for class {nameless[0]}: it names {len(known)} classes")
    names = tuple(str(class_names[c]) if class_names else str(c) for c in classes.tolist())
    return torch.where(y >= 0, torch.searchsorted(classes, y), -1), classes, names


def _as_text(labels: Any) -> list[str] | None:
    """The labels as text, if they are: a list of strings, or an array of NumPy of strings."""
    if isinstance(labels, Tensor):
        return None
    first = next(iter(labels), None)
    return [str(label) for label in labels] if isinstance(first, str) else None


def as_texts(texts: Sequence[str] | None, count: int) -> Sequence[str]:
    """One text a sample; none for None."""
    if texts is None:
        return ()
    if isinstance(texts, str) or len(texts) != count:
        given = "one string" if isinstance(texts, str) else f"{len(texts)}"
        raise ValueError(f"texts must hold one text for each of the {count} rows of embeddings, got {given}")
    wrong = {type(text).__name__ for text in texts} - {"str", "str_"}
    if wrong:
        raise ValueError(f"texts must be strings, got {', '.join(sorted(wrong))}")
    return texts


def _as_importance(importance: ArrayLike | None, width: int) -> Tensor:
    if importance is None:
        return torch.full((width,), math.nan, device="cpu")
    s = as_tensor("importance", importance).cpu().float()
    if s.shape != (width,):
        raise ValueError(
            f"importance must hold one number for each of the {width} dimensions, got shape {tuple(s.shape)}"
        )
    return s


def _sums(z: Tensor, y: Tensor, classes: int, vocabulary_: Any, eps: float) -> _Sums:
    d, device = z.shape[1], z.device
    # the last class is that of samples without one
    shapes = ((classes + 1, d), (classes + 1, d), (d,), (d,), (d, d))
    active, by_class, expected, total, gram = (torch.zeros(s, dtype=torch.float64, device=device) for s in shapes)
    words = torch.zeros(len(vocabulary_.words), d, device="cpu")
    y = torch.where(y >= 0, y, classes).to(device)
    for first, q in blocks(z):
        of = y[first : first + len(q)]
        active.index_add_(0, of, (q > eps).double())
        by_class.index_add_(0, of, q.double())
        total += q.sum(dim=0)
        expected += unit_rows(q).sum(dim=0)
        gram += q.T @ q
        if vocabulary_.words:
            words += sums_by_word(vocabulary_, first, q)
    return _Sums(*(x.cpu() for x in (active, by_class, expected, total, gram, words)))


def _agreement(sums: _Sums, y: Tensor, classes: Tensor) -> _Agreement:
    counts, d = sums.active[:-1], sums.active.shape[1]
    unknown = torch.full((d,), math.nan, dtype=torch.float64, device="cpu")
    if len(classes) == 0:
        none = torch.full((d,), -1, device="cpu")
        return _Agreement(counts.T.long(), none, unknown, unknown, unknown, unknown)
    rows = torch.bincount(y[y >= 0], minlength=len(classes))
    labelled, (most, modal) = counts.sum(dim=0), counts.max(dim=0)
    chance = expected_modal_share(y, labelled.long().clamp_min(1))
    fires = labelled > 0
    return _Agreement(
        counts=counts.T.long(),
        modal_class=torch.where(fires, classes[modal], -1),
        share=most / labelled,
        chance=torch.where(fires, chance, math.nan),
        ceiling=torch.where(fires, (rows[modal] / labelled).clamp_max(1.0), math.nan),
        selectivity=_selectivity(sums.by_class[:-1] / rows[:, None]),
    )


def _selectivity(means: Tensor) -> Tensor:
    """From the mean activation of each class (c, d)."""
    most = means.amax(dim=0)
    others = (means.sum(dim=0) - most) / (len(means) - 1) if len(means) > 1 else torch.full_like(most, math.nan)
    return (most - others) / (most + others)


def _neighbours(gram: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest dimensions (d, r), their cosines, and the first dimension that each repeats (d,)."""
    length = gram.diagonal().sqrt()
    alive = length > 0
    scale = torch.where(alive, 1 / length, 0.0)
    table = (gram * scale * scale[:, None]).clamp_max(1.0)
    before = (table >= DUPLICATE).tril(-1)
    duplicate_of = torch.where(before.any(dim=1), before.int().argmax(dim=1), -1)
    best = table.fill_diagonal_(-1.0).masked_fill_(~alive, -1.0).topk(count, dim=1)
    known = (best.values >= 0) & alive[:, None]
    return best.indices.where(known, -1), best.values.where(known, math.nan), duplicate_of
