"""The spectral contrastive loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ssl_heads import functional
from ssl_heads.distributed import Gather
from ssl_heads.losses._base import GatheringLoss

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class SpectralLoss(GatheringLoss):
    """Spectral contrastive loss, see `ssl_heads.functional.spectral_contrastive`.

    Args:
        normalize: Whether rows are divided by their length.
        gather: Whose rows are compared: ``"none"`` this rank's, ``"all"`` or ``"ring"`` those of all ranks, see
            `ssl_heads.distributed`.
        group: The ranks that hold the batch; None is the default group.

    Example:
        >>> import torch
        >>> from ssl_heads import SpectralLoss
        >>> z0, z1 = torch.randn(2, 8, 16)
        >>> SpectralLoss()(z0, z1).shape
        torch.Size([])
    """

    takes = "views"

    def __init__(self, *, normalize: bool = True, gather: Gather = "none", group: ProcessGroup | None = None) -> None:
        super().__init__(gather, group)
        self.normalize = normalize

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Two views of shape (n, d) to a scalar."""
        return functional.spectral_contrastive(z0, z1, normalize=self.normalize, gather=self.gather, group=self.group)

    def extra_repr(self) -> str:
        """The configuration."""
        return f"normalize={self.normalize}, gather={self.gather!r}"
