"""Losses over two views: NT-Xent and InfoNCE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ssl_heads import _check, functional
from ssl_heads.distributed import Gather
from ssl_heads.losses._base import GatheringLoss
from ssl_heads.similarity import Impl, check_impl

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class NTXentLoss(GatheringLoss):
    """The loss of SimCLR over two views, see `ssl_heads.functional.nt_xent`.

    Args:
        temperature: Divides the similarities.
        normalize: Whether rows are divided by their length.
        gather: Whose rows are compared: ``"none"`` this rank's, ``"all"`` or ``"ring"`` those of all ranks, see
            `ssl_heads.distributed`.
        group: The ranks that hold the batch; None is the default group.
        impl: How the similarity matrix is reduced.

    Raises:
        ValueError: If the temperature is not a finite number above 0.

    Example:
        >>> import torch
        >>> from ssl_heads import NTXentLoss
        >>> z0, z1 = torch.randn(2, 8, 16)
        >>> NTXentLoss(temperature=0.2)(z0, z1).shape
        torch.Size([])
    """

    takes = "views"

    def __init__(
        self,
        temperature: float = 0.2,
        *,
        normalize: bool = True,
        gather: Gather = "none",
        group: ProcessGroup | None = None,
        impl: Impl = "auto",
    ) -> None:
        super().__init__(gather, group)
        check_impl(impl)
        self.temperature = _check.positive("temperature", temperature)
        self.normalize, self.impl = normalize, impl

    def forward(
        self, z0: Tensor, z1: Tensor, ids: Tensor | None = None, *, temperature: float | Tensor | None = None
    ) -> Tensor:
        """Two views (n, d), and optional ids (n,), -1 for none, to a scalar; a temperature is this call's."""
        return functional.nt_xent(
            z0,
            z1,
            self.temperature if temperature is None else temperature,
            normalize=self.normalize,
            ids=ids,
            gather=self.gather,
            group=self.group,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        """The configuration."""
        return f"temperature={self.temperature}, normalize={self.normalize}, gather={self.gather!r}, impl={self.impl!r}"


class InfoNCELoss(GatheringLoss):
    """One-directional InfoNCE; with a queue it is the loss of MoCo, see `ssl_heads.functional.info_nce`.

    Args:
        temperature: Divides the similarities.
        normalize: Whether rows are divided by their length.
        gather: Whose rows are compared: ``"none"`` this rank's, ``"all"`` or ``"ring"`` those of all ranks, see
            `ssl_heads.distributed`.
        group: The ranks that hold the batch; None is the default group.
        impl: How the similarity matrix is reduced.

    Raises:
        ValueError: If the temperature is not a finite number above 0.

    Example:
        >>> import torch
        >>> from ssl_heads import InfoNCELoss
        >>> query, key, queue = torch.randn(8, 16), torch.randn(8, 16), torch.randn(64, 16)
        >>> InfoNCELoss(temperature=0.2)(query, key, queue).shape
        torch.Size([])
    """

    takes = "views"

    def __init__(
        self,
        temperature: float = 0.2,
        *,
        normalize: bool = True,
        gather: Gather = "none",
        group: ProcessGroup | None = None,
        impl: Impl = "auto",
    ) -> None:
        super().__init__(gather, group)
        check_impl(impl)
        self.temperature = _check.positive("temperature", temperature)
        self.normalize, self.impl = normalize, impl

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        queue: Tensor | None = None,
        ids: Tensor | None = None,
        queue_ids: Tensor | None = None,
        *,
        temperature: float | Tensor | None = None,
    ) -> Tensor:
        """Queries and keys (n, d), a queue (K, d) and ids, -1 for none, to a scalar; a temperature is this call's."""
        return functional.info_nce(
            query,
            key,
            queue,
            self.temperature if temperature is None else temperature,
            normalize=self.normalize,
            ids=ids,
            queue_ids=queue_ids,
            gather=self.gather,
            group=self.group,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        """The configuration."""
        return f"temperature={self.temperature}, normalize={self.normalize}, gather={self.gather!r}, impl={self.impl!r}"
