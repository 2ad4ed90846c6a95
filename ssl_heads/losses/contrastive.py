"""Softmax contrastive losses over views, as modules: SimCLR's NT-Xent, and InfoNCE with or without MoCo's queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ssl_heads import _check, functional
from ssl_heads.distributed import Gather
from ssl_heads.losses._base import GatheringLoss
from ssl_heads.similarity import Impl

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class NTXentLoss(GatheringLoss):
    r"""The loss of SimCLR: each row finds its other view among all rows of both views.

    .. math:: \frac{1}{2n}\sum_i -\log\frac{e^{u_i\cdot u_{p(i)}/T}}{\sum_{j \ne i} e^{u_i\cdot u_j/T}}

    over the 2n rows u of both views, where p(i) is the other view of row i.

    Args:
        temperature: T, divides the similarities.
        normalize: Whether rows are divided by their length, so that similarities are cosines.
        gather, group: Whose rows are compared, see `ssl_heads.distributed`.
        impl: How the similarity matrix is reduced, see `ssl_heads.similarity.Impl`.

    Raises:
        ValueError: If the temperature is not a finite number above 0.

    Reference:
        A simple framework for contrastive learning of visual representations (arXiv 2002.05709).

    Example:
        >>> import torch
        >>> from ssl_heads import NTXentLoss
        >>> z0, z1 = torch.randn(2, 8, 16)
        >>> NTXentLoss(temperature=0.2)(z0, z1).shape
        torch.Size([])
    """

    takes = "views"
    configuration = ("temperature", "normalize", "gather", "impl")

    def __init__(
        self,
        temperature: float = 0.2,
        *,
        normalize: bool = True,
        gather: Gather = "none",
        group: ProcessGroup | None = None,
        impl: Impl = "auto",
    ) -> None:
        super().__init__(gather, group, impl)
        self.temperature, self.normalize = _check.positive("temperature", temperature), normalize

    def forward(
        self, z0: Tensor, z1: Tensor, ids: Tensor | None = None, *, temperature: float | Tensor | None = None
    ) -> Tensor:
        """Two views to a scalar.

        Args:
            z0: First views, of shape (n, d).
            z1: Second views of the same samples, row by row, of shape (n, d).
            ids: Integers of shape (n,); samples with an equal id are never negatives of each other. -1 is no id: such a
                sample is a negative of all others.
            temperature: For this call, in place of the loss's own.
        """
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


class InfoNCELoss(GatheringLoss):
    r"""Each query finds its own key among the keys of the batch, or among the entries of a queue (MoCo).

    .. math:: \frac{1}{n}\sum_i -\log\frac{e^{q_i\cdot k_i/T}}{e^{q_i\cdot k_i/T} + \sum_{c} e^{q_i\cdot c/T}}

    where c runs over the other keys, or over the queue if there is one.

    Args:
        temperature: T, divides the similarities.
        normalize: Whether rows are divided by their length, so that similarities are cosines.
        gather, group: Whose rows are compared, see `ssl_heads.distributed`.
        impl: How the similarity matrix is reduced, see `ssl_heads.similarity.Impl`.

    Raises:
        ValueError: If the temperature is not a finite number above 0.

    Reference:
        Representation learning with contrastive predictive coding (arXiv 1807.03748), and with a queue momentum
        contrast (arXiv 1911.05722).

    Example:
        >>> import torch
        >>> from ssl_heads import InfoNCELoss
        >>> query, key, queue = torch.randn(8, 16), torch.randn(8, 16), torch.randn(64, 16)
        >>> InfoNCELoss(temperature=0.2)(query, key, queue).shape
        torch.Size([])
    """

    takes = "views"
    configuration = ("temperature", "normalize", "gather", "impl")

    def __init__(
        self,
        temperature: float = 0.2,
        *,
        normalize: bool = True,
        gather: Gather = "none",
        group: ProcessGroup | None = None,
        impl: Impl = "auto",
    ) -> None:
        super().__init__(gather, group, impl)
        self.temperature, self.normalize = _check.positive("temperature", temperature), normalize

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
        """Queries and keys to a scalar.

        Args:
            query: Shape (n, d).
            key: The positives, row by row, of shape (n, d).
            queue: Negatives of shape (K, d) without gradient, or None for the other keys.
            ids: Integers of shape (n,); samples with an equal id are never negatives of each other. -1 is no id: such a
                sample is a negative of all others.
            queue_ids: The ids of the queue, of shape (K,), needed with `ids` where there is a queue.
            temperature: For this call, in place of the loss's own.
        """
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
