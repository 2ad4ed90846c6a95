"""SEPIN: what the contrastive loss gains from each dimension alone."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_heads.functional import nt_xent
from ssl_heads.metrics._inputs import ArrayLike, as_integers, finite, same_samples, whole
from ssl_heads.metrics._rows import double
from ssl_heads.metrics.activation import expected_activation


class SEPIN(NamedTuple):
    """The result of `sepin`, float64, on the CPU.

    Attributes:
        mean: Shape (s,), the mean of `per_dimension` over the k leading dimensions, for each k.
        per_dimension: Shape (m,), what the loss gains from each of the leading dimensions, the largest k of them.
        order: Shape (m,), these dimensions by descending expected activation.
    """

    mean: Tensor
    per_dimension: Tensor
    order: Tensor


@torch.no_grad()
def sepin(
    features_0: ArrayLike,
    features_1: ArrayLike,
    sizes: ArrayLike = (1, 10, 100),
    *,
    temperature: float = 0.2,
    batch_size: int = 256,
) -> SEPIN:
    r"""Mean rise of the contrastive loss when one of the k leading dimensions is taken away (SEPIN@k).

    .. math::
        \delta_j = L(F_{\setminus j}) - L(F), \qquad \mathrm{SEPIN@}k = \frac1k \sum_{j \in \text{top } k} \delta_j

    with L the NT-Xent loss of two views, over batches in the given order; dimensions in the order of
    `expected_activation` of both views. It bounds the information that a dimension has alone, and the bound has been
    doubted: compare values of one data set, one batch size and one temperature only.

    Args:
        features_0: Shape (n, d), of one view of each sample.
        features_1: Shape (n, d), of another.
        sizes: Shape (s,), numbers k; those above d count as d.
        temperature: Temperature of the loss.
        batch_size: Pairs of a batch, at least 2. Rows that do not fill the last one are left out.

    Returns:
        With NaN or infinity in either every number is NaN, and the order -1.

    Raises:
        ValueError: If the shapes differ, there are fewer than two rows, a size is below 1, or `temperature` is not
            positive.

    Reference:
        Non-negative Contrastive Learning (ICLR 2024), disentanglement; after Do and Tran, Theory and evaluation metrics
        for learning disentangled representations (ICLR 2020).

    Example:
        >>> z = torch.eye(4)
        >>> bool((sepin(z, z, [1, 4]).mean > 0).all())
        True
    """
    x, y = same_samples("features_0", features_0, "features_1", features_1)
    size, ks = whole("batch_size", batch_size, least=2), as_integers("sizes", sizes).cpu().flatten()
    if x.shape != y.shape or len(x) < 2:
        raise ValueError(f"expected two views (n, d) of two samples or more, got {tuple(x.shape)} and {tuple(y.shape)}")
    if not len(ks) or int(ks.min()) < 1:
        raise ValueError(f"sizes must be at least 1, got {ks.tolist()}")
    ks = ks.clamp_max(x.shape[1])
    order = expected_activation(torch.cat([x, y])).order[: int(ks.max())].cpu()
    rise = torch.full(order.shape, math.nan, dtype=torch.float64, device="cpu")
    if finite(x, y):
        size = min(size, len(x))
        batches = [torch.split(double(z[: len(x) // size * size]), size) for z in (x, y)]
        rise = torch.stack([_rise(a, b, order, temperature) for a, b in zip(*batches, strict=True)]).mean(dim=0)
    mean = torch.stack([rise[:k].mean() for k in ks.tolist()])
    return SEPIN(mean, rise, order)


def _rise(a: Tensor, b: Tensor, order: Tensor, temperature: float) -> Tensor:
    """What the loss of one batch gains without each of these dimensions."""

    def loss(x: Tensor, y: Tensor) -> float:
        return float(nt_xent(x, y, temperature))

    with torch.autocast(a.device.type, enabled=False):
        whole_loss, rise = loss(a, b), []
        for j in order.tolist():
            without = torch.arange(a.shape[1], device=a.device) != j
            rise.append(loss(a[:, without], b[:, without]) - whole_loss)
    return torch.tensor(rise, dtype=torch.float64, device="cpu")
