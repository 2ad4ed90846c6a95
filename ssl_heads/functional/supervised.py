"""Cross entropy over non-negative features and classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_heads import _check
from ssl_heads.functional.activation import rep_relu
from ssl_heads.similarity import promote


def nonneg_cross_entropy(features: Tensor, weight: Tensor, labels: Tensor, *, nonneg_weight: bool = True) -> Tensor:
    r"""Cross entropy whose class matrix is non-negative.

    .. math:: -\frac{1}{n}\sum_i \log \text{softmax}(W_+ f_i)_{y_i},\quad W_+ = \text{rep\_relu}(W)

    Args:
        features: Shape (n, h), used as they come.
        weight: Shape (classes, h).
        labels: Integers of shape (n,).
        nonneg_weight: Whether the weight goes through rep_relu.

    Returns:
        A scalar in fp32 (fp64 for fp64 inputs).

    Raises:
        ValueError: If shapes do not fit, the batch is empty, or (on the CPU) a label is not a class.

    Example:
        >>> import torch
        >>> from ssl_heads.functional import nonneg_cross_entropy
        >>> round(nonneg_cross_entropy(torch.eye(2), torch.eye(2), torch.arange(2)).item(), 4)
        0.3133
    """
    _check.rows("features", features)
    _check.integers("labels", labels, len(features), "features", features)
    if weight.ndim != 2 or weight.shape[1] != features.shape[1]:
        raise ValueError(
            f"weight must have shape (classes, {features.shape[1]}) for features of shape {tuple(features.shape)}, "
            f"got {tuple(weight.shape)}"
        )
    _check.same_device("weight", weight, "features", features)
    _check.classes("labels", labels, weight.shape[0])
    x = promote(features)
    w = promote(weight).to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        logits = x @ (rep_relu(w) if nonneg_weight else w).mT
    return F.cross_entropy(logits, labels.long())
