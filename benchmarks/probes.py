"""Few labels, and a classifier on frozen features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

UNLABELLED = -1


def few_labels(classes: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """A fixed share of each class keeps its label; the others are not labelled."""
    labels = torch.full_like(classes, UNLABELLED)
    for label in classes.unique():
        members = (classes == label).nonzero()[:, 0]
        kept = members[torch.randperm(len(members), generator=generator)[: max(1, round(fraction * len(members)))]]
        labels[kept] = label
    return labels


def linear_probe(x: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, decay: float = 1e-3) -> float:
    """Accuracy of a logistic regression on standardised features, fitted to its minimum."""
    mean, deviation = x.mean(0), x.std(0) + 1e-6
    x, test = (x - mean) / deviation, (test - mean) / deviation
    layer = nn.Linear(x.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(x), labels) + decay * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return float((layer(test).argmax(1) == test_labels).double().mean())
