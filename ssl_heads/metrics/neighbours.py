"""Nearest-neighbour classification."""

from __future__ import annotations

import math

import torch

from ssl_heads._check import same_width
from ssl_heads.metrics._inputs import ArrayLike, finite, labelled, whole
from ssl_heads.metrics._rows import unit_rows

MAX_SIMILARITIES = 2**24


@torch.no_grad()
def knn_accuracy(
    train_features: ArrayLike, train_labels: ArrayLike, features: ArrayLike, labels: ArrayLike, k: int = 10
) -> float:
    """Accuracy of the majority vote of the k training rows with the highest cosine similarity.

    Votes are equal; among tied classes the smallest wins. At most 2**24 similarities are held at a time.

    Args:
        train_features: Shape (m, d).
        train_labels: Shape (m,), classes 0, 1, ...; rows with -1 have no label and do not vote.
        features: Shape (n, d).
        labels: Shape (n,), classes 0, 1, ...; rows with -1 have no label and are not scored.
        k: Number of neighbours, at most m.

    Returns:
        The share of rows classified correctly; NaN if a row of either holds NaN or infinity.

    Raises:
        ValueError: If shapes or labels do not fit, or `k` is not in 1 to m.

    Example:
        >>> x, y = torch.eye(3), torch.arange(3)
        >>> knn_accuracy(x, y, x, y, k=1)
        1.0
    """
    known, classes = labelled("train_features", train_features, "train_labels", train_labels)
    x, y = labelled("features", features, "labels", labels)
    x, y = x.to(known), y.to(known.device)
    same_width("train_features", known, "features", x)
    if not 1 <= whole("k", k) <= len(known):
        raise ValueError(f"k must lie between 1 and the {len(known)} training rows, got {k}")
    if not finite(known, x):
        return math.nan
    keys, queries = unit_rows(known), unit_rows(x)
    chunk = max(MAX_SIMILARITIES // len(keys), 1)
    correct = 0
    with torch.autocast(keys.device.type, enabled=False):  # half precision would change the neighbours
        for query, label in zip(torch.split(queries, chunk), torch.split(y, chunk), strict=True):
            neighbours = (query @ keys.T).topk(k, dim=1).indices
            vote = classes[neighbours].mode(dim=1).values
            correct += int((vote == label).sum())
    return correct / len(y)
