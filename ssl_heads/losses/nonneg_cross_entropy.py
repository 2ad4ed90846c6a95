"""Cross entropy over non-negative features as a module: every class is a sum of parts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_heads import _check, functional
from ssl_heads.losses._base import Loss


class NonNegCrossEntropy(Loss):
    r"""Cross entropy with the class matrix as the second, non-negative tower.

    .. math:: -\frac{1}{|S|}\sum_{i \in S} \log \text{softmax}(W_+ f_i)_{y_i},
        \quad S = \{i : y_i \ne -1\},\quad W_+ = \text{rep\_relu}(W)

    Asymmetric non-negative factorisation needs both sides non-negative.

    Args:
        in_features: Width of the features, which should not be negative.
        num_classes: Number of classes.
        nonneg_weight: Whether the class matrix is kept non-negative.

    Raises:
        ValueError: If a size is below 1, or shapes do not fit.

    Reference:
        Non-negative contrastive learning (arXiv 2403.12459), section 6.

    Example:
        >>> import torch
        >>> from ssl_heads import NonNegCrossEntropy
        >>> NonNegCrossEntropy(16, 3)(torch.rand(8, 16), torch.arange(8) % 3).shape
        torch.Size([])
    """

    takes = "labels"
    configuration = ("in_features", "num_classes", "nonneg_weight")

    def __init__(self, in_features: int, num_classes: int, nonneg_weight: bool = True) -> None:
        super().__init__()
        self.in_features = _check.integer("in_features", in_features)
        self.num_classes = _check.integer("num_classes", num_classes)
        if min(self.in_features, self.num_classes) < 1:
            raise ValueError(f"in_features and num_classes must be at least 1, got {in_features} and {num_classes}")
        self.nonneg_weight = nonneg_weight
        self.weight = nn.Parameter(torch.empty(num_classes, in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the class matrix anew, as the constructor does."""
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        if self.nonneg_weight:
            # start from abs(w): rep_relu would otherwise zero half of each class vector
            with torch.no_grad():
                self.weight.abs_()

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Features of shape (n, in_features) and labels of shape (n,), -1 for none, to a scalar."""
        return functional.nonneg_cross_entropy(features, self.weight, labels, nonneg_weight=self.nonneg_weight)
