"""Which rows belong together: ids of samples, labels of classes, and -1 for a row that belongs to nothing."""

from __future__ import annotations

import torch
from torch import Tensor

NONE = -1
"""The id of a row whose sample is not known, the label of a row without one; other negative integers are ids."""


def group_index(labels: Tensor) -> Tensor:
    """Labels renumbered from 0, a number of its own for each -1: equal numbers belong together, and nothing else does.

    The shape of no intermediate result depends on the data, and ranks that hold the same labels find the same numbers.
    """
    ordered, order = labels.sort(stable=True)
    rank = torch.zeros_like(order)
    rank[1:] = ((ordered[1:] != ordered[:-1]) | (ordered[1:] == NONE)).long().cumsum(0)
    return torch.zeros_like(order).scatter(0, order, rank)


def group_sizes(group: Tensor) -> Tensor:
    """For each row the number of rows of its group, itself included, from the numbers of `group_index`."""
    return torch.zeros_like(group).index_add(0, group, torch.ones_like(group))[group]


def counted(values: Tensor, rows: Tensor) -> Tensor:
    """The values of the rows that count, and 0 for the others.

    A NaN stays also where its row does not count: the gradient is NaN in either case, and the loss shows it.
    """
    return torch.where(rows | values.isnan(), values, 0)
