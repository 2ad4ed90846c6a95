"""solo-learn's loss functions."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from ssl_heads import _check
from ssl_heads.adapters.calls import at_temperature, has_temperature, two_views
from ssl_heads.losses.contrastive import InfoNCELoss, NTXentLoss
from ssl_heads.losses.sup_con import SupConLoss


class SoloLearnSimCLR(nn.Module):
    """solo-learn's `simclr_loss_func(z, indexes, temperature)`.

    `SupConLoss(multi_positive="in")` is solo-learn's own equation, for any number of views and for its supervised
    variant. Every other loss gets the two views of each sample; `NTXentLoss` also gets the indexes, so that equal ones
    are never negatives. -1 is no index: to a `SupConLoss` such a row belongs to no other.

    Args:
        loss: A loss of two views, or a `SupConLoss`, with a temperature: the call's takes its place, so the one in
            solo-learn's configuration counts.

    Raises:
        ValueError: If the loss has no temperature; in forward if a loss of two views gets anything else.

    Example:
        >>> from ssl_heads import NTXentLoss
        >>> from ssl_heads.adapters import SoloLearnSimCLR
        >>> simclr_loss_func = SoloLearnSimCLR(NTXentLoss())
        >>> indexes = torch.arange(8).repeat(2)
        >>> simclr_loss_func(torch.randn(16, 32), indexes, temperature=0.3).shape
        torch.Size([])
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        if not has_temperature(loss):
            raise ValueError(
                f"{type(loss).__name__} has no temperature, and solo-learn passes one: to do without it, "
                "write `lambda z, indexes, temperature: loss(*z.chunk(2))`"
            )
        self.loss = loss

    def forward(self, z: Tensor, indexes: Tensor, temperature: float = 0.1) -> Tensor:
        """All views one after the other, of shape (views * n, d), and the index of each row's sample, to a scalar."""
        if isinstance(self.loss, SupConLoss):
            return at_temperature(self.loss, temperature, z, indexes)
        z0, z1, ids = two_views("z", z, "indexes", indexes)
        own = (ids,) if isinstance(self.loss, NTXentLoss) else ()
        return at_temperature(self.loss, temperature, z0, z1, *own)


class SoloLearnMoCo(nn.Module):
    """solo-learn's `mocov2plus_loss_func(query, key, queue, temperature)`, with a queue of shape (d, K).

    Args:
        loss: An `InfoNCELoss`; the call's temperature takes the place of its own. None takes one that uses the rows as
            they come, because solo-learn's method has normalised them.

    Raises:
        ValueError: If the loss is another one.

    Example:
        >>> from ssl_heads.adapters import SoloLearnMoCo
        >>> query, key, queue = torch.randn(8, 32), torch.randn(8, 32), torch.randn(32, 64)
        >>> SoloLearnMoCo()(query, key, queue, temperature=0.2).shape
        torch.Size([])
    """

    def __init__(self, loss: InfoNCELoss | None = None) -> None:
        super().__init__()
        if loss is not None and not isinstance(loss, InfoNCELoss):
            raise ValueError(f"a query, a key and a queue are what InfoNCELoss takes, got {type(loss).__name__}")
        self.loss = InfoNCELoss(normalize=False) if loss is None else loss

    def forward(self, query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.1) -> Tensor:
        """Queries and keys of shape (n, d) and a queue of shape (d, K) to a scalar."""
        _check.rows("query", query)
        _check.tensor("queue", queue)
        if queue.ndim != 2 or queue.shape[0] != query.shape[-1]:
            raise ValueError(
                f"solo-learn's queue holds one entry a column, shape (d, K) = ({query.shape[-1]}, K) beside a query of "
                f"shape {tuple(query.shape)}, got {tuple(queue.shape)}"
            )
        return at_temperature(self.loss, temperature, query, key, rearrange(queue, "d k -> k d"))
