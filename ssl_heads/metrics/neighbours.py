"""Nearest-neighbour classification."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_heads.functional.normalize import safe_normalize
from ssl_heads.metrics import _check

MAX_SIMILARITIES = 2**24


@torch.no_grad()
def knn_accuracy(train_features: Tensor, train_labels: Tensor, features: Tensor, labels: Tensor, k: int = 10) -> float:
    """Accuracy of the majority vote of the k training rows with the highest cosine similarity.

    Votes are equal; among tied classes the smallest wins. At most 2**24 similarities are held at a time.

    Args:
        train_features: ``(m, d)``.
        train_labels: ``(m,)``, classes 0, 1, ...
        features: ``(n, d)``.
        labels: ``(n,)``, classes 0, 1, ...
        k: number of neighbours, at most m.

    Returns:
        The share of rows classified correctly.

    Raises:
        ValueError: on shapes, devices or labels that do not fit, or ``k`` outside 1 to m.

    Example:
        >>> x, y = torch.eye(3), torch.arange(3)
        >>> knn_accuracy(x, y, x, y, k=1)
        1.0
    """
    _check.labelled("train_features", train_features, "train_labels", train_labels)
    _check.labelled("features", features, "labels", labels)
    _check.same_width("train_features", train_features, "features", features)
    if not 1 <= k <= len(train_features):
        raise ValueError(f"k must lie between 1 and the {len(train_features)} training rows, got {k}")
    keys = safe_normalize(train_features.float(), eps=0.0)
    queries = safe_normalize(features.float(), eps=0.0)
    chunk = max(MAX_SIMILARITIES // len(keys), 1)
    correct = 0
    for query, label in zip(torch.split(queries, chunk), torch.split(labels, chunk), strict=True):
        neighbours = (query @ keys.T).topk(k, dim=1).indices
        vote = train_labels[neighbours].mode(dim=1).values
        correct += int((vote == label).sum())
    return correct / len(labels)
