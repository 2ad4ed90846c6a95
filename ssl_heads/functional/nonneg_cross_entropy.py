"""Cross entropy over non-negative features and classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_heads import _check
from ssl_heads._modes import without_autocast
from ssl_heads._numerics import promote
from ssl_heads.functional.activation import rep_relu
from ssl_heads.functional.groups import NONE, counted


def nonneg_cross_entropy(features: Tensor, weight: Tensor, labels: Tensor, *, nonneg_weight: bool = True) -> Tensor:
    r"""Cross entropy whose class matrix is non-negative.

    .. math:: -\frac{1}{|S|}\sum_{i \in S} \log \text{softmax}(W_+ f_i)_{y_i},
        \quad S = \{i : y_i \ne -1\},\quad W_+ = \text{rep\_relu}(W)

    Args:
        features: Shape (n, h), used as they come.
        weight: Shape (classes, h).
        labels: Integers of shape (n,), classes 0, 1, ... and -1 for a row without one.
        nonneg_weight: Whether the weight goes through rep_relu.

    Returns:
        A scalar in float32 (float64 for float64 inputs): 0 and still part of the graph without a labelled row, NaN for
        a NaN in any row, labelled or not.

    Raises:
        ValueError: If shapes do not fit, the batch is empty, or (on the CPU) a label is neither a class nor -1.

    Example:
        >>> import torch
        >>> from ssl_heads.functional import nonneg_cross_entropy
        >>> round(nonneg_cross_entropy(torch.eye(2), torch.eye(2), torch.arange(2)).item(), 4)
        0.3133
    """
    _check.rows("features", features)
    labels = _check.integers("labels", labels, len(features), "features", features)
    _check.tensor("weight", weight)
    if weight.ndim != 2 or weight.shape[1] != features.shape[1] or not weight.is_floating_point():
        raise ValueError(
            f"weight must have shape (classes, {features.shape[1]}) and a floating-point dtype for features of shape "
            f"{tuple(features.shape)}, got {weight.dtype} of shape {tuple(weight.shape)}"
        )
    _check.same_device("weight", weight, "features", features)
    labelled = labels != NONE
    index = torch.where(labelled, labels, 0)
    _check.classes("labels", index, weight.shape[0], "classes")
    x = promote(features)
    w = promote(weight).to(x.dtype)
    with without_autocast(x):
        # 0 * w: rep_relu maps -inf to 0 with a NaN derivative, and the loss must be NaN as well
        logits = x @ (rep_relu(w) + 0 * w if nonneg_weight else w).mT
    each = F.cross_entropy(logits, index, reduction="none")
    return counted(each, labelled).sum() / labelled.sum().clamp_min(1)
