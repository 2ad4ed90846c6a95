"""The importance of each dimension, and the one representative of embeddings equal up to sign and order."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssl_heads import _check
from ssl_heads._numerics import at_least_float32
from ssl_heads.distributed.sharded import full_parameter


class FeatureImportance(nn.Module):
    r"""Learned importance of each dimension, :math:`s = \mathrm{softplus}(\theta) \ge 0`, one at the start.

    The importance is the diagonal S of tri-factor contrast :math:`z^\top S z'`. Give its parameters to the optimiser,
    without weight decay (`ssl_heads.optim.param_groups` does both): an importance that is never updated orders nothing.
    Adam moves a parameter by about its learning rate a step, and the importances have to spread from 1: a group of
    their own with some ten times the network's rate lets them.

    Args:
        dim: Width of the embedding.

    Raises:
        ValueError: If `dim` is below 1.

    Reference:
        Tri-factor contrastive learning (NeurIPS 2023), section 3.

    Example:
        >>> importance = FeatureImportance(4)
        >>> importance()
        tensor([1., 1., 1., 1.], grad_fn=<SoftplusBackward0>)
        >>> importance.order()
        tensor([0, 1, 2, 3])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        _check.at_least_one("dim", dim)
        self.theta = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set every importance to one."""
        nn.init.constant_(self.theta, math.log(math.expm1(1.0)))

    def forward(self) -> Tensor:
        """The importance s of shape (dim,), float32 (float64 for a float64 parameter)."""
        theta = full_parameter(self.theta)
        return nn.functional.softplus(at_least_float32(theta))

    @torch.no_grad()
    def order(self) -> Tensor:
        """The dimensions by descending importance, of shape (dim,); equal ones keep their order.

        Raises:
            ValueError: If an importance is NaN.
        """
        theta = full_parameter(self.theta)
        if not theta.is_meta and bool(theta.isnan().any()):
            raise ValueError("the importance holds NaN, which has no place in an order: the training has diverged")
        return torch.argsort(theta, descending=True, stable=True)

    def extra_repr(self) -> str:
        """The width."""
        return f"dim={self.theta.numel()}"


class CanonicalEmbedding(NamedTuple):
    """The result of `canonicalize`.

    Attributes:
        embeddings: Shape (..., d), reordered and flipped.
        importance: Shape (d,), descending.
    """

    embeddings: Tensor
    importance: Tensor


def canonicalize(embeddings: Tensor, importance: Tensor, reference: Tensor | None = None) -> CanonicalEmbedding:
    r"""Sort the dimensions by descending importance and fix each one's sign.

    Tri-factor contrast determines its embedding up to the sign of each dimension, and up to order among equal
    importances. Of these equivalent forms this is the one with descending importance in which, for each dimension, the
    row of `reference` with the largest magnitude is positive. :math:`z^\top S z'` does not change when both sides are
    brought into this form with the same reference. Applying it twice is applying it once, and a dimension that is zero
    throughout stays as it is.

    Args:
        embeddings: Shape (..., d), from tri-factor contrast.
        importance: Shape (d,), the s of `FeatureImportance`.
        reference: Shape (n, d), rows that decide the signs; None takes the embeddings themselves. Two towers need one
            common reference, for instance the first tower's embeddings, so that both flip together; so does new data.

    Raises:
        ValueError: If the last dimensions differ, `importance` is not one-dimensional, or there is no reference row.

    Reference:
        Tri-factor contrastive learning (NeurIPS 2023), eq. 11.

    Example:
        >>> z, s = canonicalize(torch.tensor([[1.0, -3.0], [2.0, 1.0]]), torch.tensor([0.5, 2.0]))
        >>> z, s
        (tensor([[ 3.,  1.],
                [-1.,  2.]]), tensor([2.0000, 0.5000]))
    """
    reference = embeddings if reference is None else reference
    if importance.dim() != 1 or not embeddings.shape[-1:] == reference.shape[-1:] == importance.shape:
        raise ValueError(
            f"expected embeddings (..., d), importance (d,) and reference (n, d), got {tuple(embeddings.shape)}, "
            f"{tuple(importance.shape)} and {tuple(reference.shape)}"
        )
    rows = reference.detach().reshape(-1, importance.numel())
    if len(rows) == 0:
        raise ValueError(f"the signs need at least one reference row, got shape {tuple(reference.shape)}")
    anchor = rows.gather(0, rows.abs().argmax(dim=0, keepdim=True)).squeeze(0)
    sign = torch.where(anchor < 0, -1.0, 1.0).to(embeddings.dtype)
    order = torch.argsort(importance.detach(), descending=True, stable=True)
    return CanonicalEmbedding((embeddings * sign)[..., order], importance[order])
