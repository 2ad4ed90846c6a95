"""The spectral contrastive loss as a module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ssl_heads import functional
from ssl_heads.distributed import Gather
from ssl_heads.losses._base import GatheringLoss

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class SpectralLoss(GatheringLoss):
    r"""Spectral contrastive loss: positives are pulled linearly, negatives pushed quadratically.

    .. math:: -\frac{2}{n}\sum_i u_i\cdot u'_i + \frac{1}{2n(2n-2)}\sum_{i \nsim j} (u_i\cdot u_j)^2

    over the ordered pairs of different samples among all 2n rows. Computed through the d x d moment of the batch,
    O(n d^2).

    Args:
        normalize: Whether rows are divided by their length.
        gather, group: Whose moments are taken, see `ssl_heads.distributed`.

    Reference:
        Provable guarantees for self-supervised deep learning with spectral contrastive loss (arXiv 2106.04156).

    Example:
        >>> import torch
        >>> from ssl_heads import SpectralLoss
        >>> z0, z1 = torch.randn(2, 8, 16)
        >>> SpectralLoss()(z0, z1).shape
        torch.Size([])
    """

    takes = "views"
    configuration = ("normalize", "gather")

    def __init__(self, *, normalize: bool = True, gather: Gather = "none", group: ProcessGroup | None = None) -> None:
        super().__init__(gather, group)
        self.normalize = normalize

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Two views of shape (n, d), row by row of the same samples, to a scalar."""
        return functional.spectral_contrastive(z0, z1, normalize=self.normalize, gather=self.gather, group=self.group)
