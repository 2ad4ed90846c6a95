"""Which dimensions are used most."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_heads.metrics._inputs import ArrayLike, as_matrix, finite
from ssl_heads.metrics._rows import unit_rows


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
    if not finite(x):
        unknown = x.new_full(x.shape[1:], math.nan)
        return ExpectedActivation(unknown, torch.full_like(unknown, -1, dtype=torch.int64))
    mean = unit_rows(x.relu()).mean(dim=0)
    return ExpectedActivation(mean, torch.argsort(mean, descending=True, stable=True))
