"""The supervised contrastive loss as a module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ssl_heads import _check, functional
from ssl_heads.distributed import Gather
from ssl_heads.functional.sup_con import MULTI_POSITIVES, MultiPositive
from ssl_heads.losses._base import GatheringLoss
from ssl_heads.similarity import Impl

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class SupConLoss(GatheringLoss):
    r"""Supervised contrastive loss: all other rows of the class are positives.

    .. math::
        \text{out:} \quad \frac{1}{|P(i)|}\sum_{p \in P(i)} -\log\frac{e^{S_{ip}}}{\sum_{j \ne i} e^{S_{ij}}}
        \qquad
        \text{in:} \quad -\log\frac{\sum_{p \in P(i)} e^{S_{ip}}}{\sum_{j \ne i} e^{S_{ij}}}

    averaged over the rows that have a positive, with :math:`S` the cosines over the temperature.

    Args:
        temperature: Divides the cosines.
        multi_positive: ``"out"`` averages the positives outside the logarithm, the paper's choice; ``"in"`` sums them
            inside it.
        gather, group: Whose rows are compared, see `ssl_heads.distributed`.
        impl: How the similarity matrix is reduced, see `ssl_heads.similarity.Impl`.

    Raises:
        ValueError: If the temperature is not a finite number above 0 or `multi_positive` is unknown.

    Reference:
        Supervised contrastive learning (arXiv 2004.11362).

    Example:
        >>> import torch
        >>> from ssl_heads import SupConLoss
        >>> SupConLoss()(torch.randn(8, 16), torch.arange(8) % 3).shape
        torch.Size([])
    """

    takes = "labels"
    configuration = ("temperature", "multi_positive", "gather", "impl")

    def __init__(
        self,
        temperature: float = 0.1,
        multi_positive: MultiPositive = "out",
        *,
        gather: Gather = "none",
        group: ProcessGroup | None = None,
        impl: Impl = "auto",
    ) -> None:
        super().__init__(gather, group, impl)
        _check.choice("multi_positive", multi_positive, MULTI_POSITIVES)
        self.temperature, self.multi_positive = _check.positive("temperature", temperature), multi_positive

    def forward(self, embeddings: Tensor, labels: Tensor, *, temperature: float | Tensor | None = None) -> Tensor:
        """Embeddings and their labels to a scalar.

        Args:
            embeddings: Shape (n, d).
            labels: Integers of shape (n,), -1 for none. Any other integer names a class: give -1 for the -100 of
                torch's cross entropy.
            temperature: For this call, in place of the loss's own.
        """
        return functional.sup_con(
            embeddings,
            labels,
            self.temperature if temperature is None else temperature,
            multi_positive=self.multi_positive,
            gather=self.gather,
            group=self.group,
            impl=self.impl,
        )
