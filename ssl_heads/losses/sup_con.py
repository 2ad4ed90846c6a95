"""The supervised contrastive loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ssl_heads import _check, functional
from ssl_heads.distributed import Gather
from ssl_heads.functional.sup_con import MultiPositive
from ssl_heads.losses._base import GatheringLoss
from ssl_heads.similarity import Impl, check_impl

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class SupConLoss(GatheringLoss):
    """Supervised contrastive loss, see `ssl_heads.functional.sup_con`.

    Args:
        temperature: Divides the cosines.
        multi_positive: ``"out"`` averages the positives outside the logarithm, ``"in"`` sums them inside it.
        gather: Whose rows are compared: ``"none"`` this rank's, ``"all"`` or ``"ring"`` those of all ranks, see
            `ssl_heads.distributed`.
        group: The ranks that hold the batch; None is the default group.
        impl: How the similarity matrix is reduced.

    Raises:
        ValueError: If the temperature is not a finite number above 0 or the form is unknown.

    Example:
        >>> import torch
        >>> from ssl_heads import SupConLoss
        >>> SupConLoss()(torch.randn(8, 16), torch.arange(8) % 3).shape
        torch.Size([])
    """

    takes = "labels"

    def __init__(
        self,
        temperature: float = 0.1,
        multi_positive: MultiPositive = "out",
        *,
        gather: Gather = "none",
        group: ProcessGroup | None = None,
        impl: Impl = "auto",
    ) -> None:
        super().__init__(gather, group)
        _check.choice("multi_positive", multi_positive, ("out", "in"))
        check_impl(impl)
        self.temperature = _check.positive("temperature", temperature)
        self.multi_positive, self.impl = multi_positive, impl

    def forward(self, embeddings: Tensor, labels: Tensor, *, temperature: float | Tensor | None = None) -> Tensor:
        """Embeddings (n, d) and labels (n,), -1 for none, to a scalar; a temperature is this call's."""
        return functional.sup_con(
            embeddings,
            labels,
            self.temperature if temperature is None else temperature,
            multi_positive=self.multi_positive,
            gather=self.gather,
            group=self.group,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        """The configuration."""
        return (
            f"temperature={self.temperature}, multi_positive={self.multi_positive!r}, "
            f"gather={self.gather!r}, impl={self.impl!r}"
        )
