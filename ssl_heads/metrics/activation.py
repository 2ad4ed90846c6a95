"""Which dimensions are used most."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssl_heads.metrics._inputs import ArrayLike, as_matrix
from ssl_heads.metrics._rows import sum_of, unit_rows
from ssl_heads.metrics.streaming import StreamingMetric


class ExpectedActivation(NamedTuple):
    """The result of `expected_activation`.

    Attributes:
        per_dimension: Shape (d,), the expected activation of each dimension.
        order: Shape (d,), the dimensions by descending expected activation.
    """

    per_dimension: Tensor
    order: Tensor


def expected_activation(features: ArrayLike) -> ExpectedActivation:
    r"""Mean activation of each dimension over normalised rows, and the order that it gives.

    .. math:: \mathrm{EA}_j = \frac1n \sum_i \frac{\max(f_{ij}, 0)}{\lVert \max(f_i, 0) \rVert_2}

    Take it on the training set and keep the leading dimensions, for selection and for truncation.

    Args:
        features: Shape (n, d); negative entries count as zero. With NaN or infinity the mean is NaN and the order -1.

    Raises:
        ValueError: If `features` is not a non-empty matrix.

    Reference:
        Non-negative Contrastive Learning (ICLR 2024), feature selection.

    Example:
        >>> expected_activation(torch.tensor([[0.0, 2.0], [3.0, 4.0]])).order
        tensor([1, 0])
    """
    x = as_matrix("features", features)
    metric = StreamingExpectedActivation()
    metric.update(x)
    found = metric.compute()
    return ExpectedActivation(found.per_dimension.to(x.dtype).to(x.device), found.order.to(x.device))


class StreamingExpectedActivation(StreamingMetric):
    """`expected_activation` of rows that come part by part; float64, on the CPU.

    Attributes:
        total: Shape (d,), the sum of normalised activations.

    Example:
        >>> metric = StreamingExpectedActivation()
        >>> metric.update(torch.tensor([[0.0, 2.0]]))
        >>> metric.update(torch.tensor([[3.0, 4.0]]))
        >>> metric.compute().order
        tensor([1, 0])
    """

    sums = ("total",)
    total: Tensor

    @torch.no_grad()
    def update(self, features: ArrayLike) -> None:
        """Take in rows (n, d)."""
        x = as_matrix("features", features)
        part = self._part(x)
        if part.finite:
            part.total = sum_of(unit_rows(x.relu()))
        self.merge(part)

    def compute(self) -> ExpectedActivation:
        """The numbers of all rows seen."""
        if not self._known():
            return ExpectedActivation(self._unknown(), self._unknown(-1))
        mean = self.total / self.rows
        return ExpectedActivation(mean, torch.argsort(mean, descending=True, stable=True))
