"""Quadratic losses, through moments of the batch: spectral contrast and decorrelation."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_heads import _check, distributed
from ssl_heads.distributed import Gather, Shard
from ssl_heads.functional._softmax import row_dots, unit_rows

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def spectral_contrastive(
    z0: Tensor, z1: Tensor, *, normalize: bool = True, gather: Gather = "none", group: ProcessGroup | None = None
) -> Tensor:
    r"""Spectral contrastive loss: positives are pulled linearly, negatives pushed quadratically.

    .. math:: -\frac{2}{n}\sum_i u_i\cdot u'_i + \frac{1}{2n(2n-2)}\sum_{i \nsim j} (u_i\cdot u_j)^2

    over the ordered pairs of different samples among all 2n rows. Computed through the d x d moment of the batch,
    O(n d^2).

    Args:
        z0: First views, of shape (n, d).
        z1: Second views, of shape (n, d).
        normalize: Whether rows are divided by their length.
        gather, group: Whose moments are taken, see `ssl_heads.distributed`.

    Returns:
        A scalar in float32 (float64 for float64 inputs). One pair has no negatives: its second term is 0.

    Raises:
        ValueError: If shapes differ or the batch is empty.

    Example:
        >>> import torch
        >>> from ssl_heads.functional import spectral_contrastive
        >>> spectral_contrastive(torch.eye(4), torch.eye(4)).item()
        -2.0
    """
    facts = {"call": "spectral_contrastive", "normalize": normalize}
    checked = functools.partial(_check.paired, "z0", z0, "z1", z1)
    shard, _ = Shard.of(gather, group, {"z0": z0, "z1": z1}, facts, checked)
    u = unit_rows(torch.cat([z0, z1]), normalize)
    return spectral_of_rows(u, torch.ones_like(u[0]), shard)


def spectral_of_rows(u: Tensor, importance: Tensor, shard: Shard) -> Tensor:
    """The spectral loss of stacked views `u` of shape (2n, d) with similarities `u diag(importance) u^T`."""
    n = shard.total
    scaled = u * importance
    positive = row_dots(scaled[: shard.rows], u[shard.rows :])
    of_one_sample = row_dots(scaled, u).square().sum() + 2 * positive.square().sum()
    all_pairs = distributed.weighted_square_sum(u, importance, shard)
    return -2 * shard.ddp_mean(positive) + (all_pairs - shard.ddp_sum(of_one_sample)) / max(2 * n * (2 * n - 2), 1)


def decorrelation(
    z: Tensor, *, normalize: bool = True, gather: Gather = "none", group: ProcessGroup | None = None
) -> Tensor:
    r"""How far the dimensions are from uncorrelated with equal power.

    .. math:: \frac{1}{d}\Big\lVert \frac{1}{n} \sum_i v_i v_i^\top - I \Big\rVert_F^2,\quad v_i = \sqrt{d}\,z_i / |z_i|

    The factor :math:`\sqrt{d}` gives the second moment the trace of the identity, so that 0 is reachable. tri-factor
    paper, equation 8, with the scale made independent of n and d.

    Args:
        z: Shape (n, d).
        normalize: Whether rows are scaled to length :math:`\sqrt{d}`; else they are taken as they come.
        gather, group: Whose moments are taken, see `ssl_heads.distributed`.

    Returns:
        A scalar in float32 (float64 for float64 inputs): 0 for uncorrelated dimensions, d - 1 for collapsed unit rows.

    Raises:
        ValueError: If the batch is empty or not a matrix.

    Example:
        >>> import torch
        >>> from ssl_heads.functional import decorrelation
        >>> decorrelation(torch.eye(4)).item()
        0.0
    """
    return decorrelation_term(z, normalize, gather, group, weight=1.0)


def decorrelation_term(
    z: Tensor, normalize: bool, gather: Gather, group: ProcessGroup | None, weight: float | Tensor
) -> Tensor:
    """`decorrelation` as a term of a loss, before its weight: the ranks check that they have one weight."""
    facts = {"call": "decorrelation", "normalize": normalize, "weight of the decorrelation": weight}
    shard, _ = Shard.of(gather, group, {"z": z}, facts, functools.partial(_check.rows, "z", z))
    d = z.shape[1]
    v = unit_rows(z, normalize)
    v = v * d**0.5 if normalize else v
    return distributed.distance_from_identity(v, shard) / d
