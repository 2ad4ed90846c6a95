"""Quadratic losses: spectral contrast, decorrelation, and the tri-factor forms built on them."""

from __future__ import annotations

import torch
from einops import repeat
from torch import Tensor

from ssl_heads import _check, similarity
from ssl_heads.functional.contrastive import (
    against_negatives,
    nt_xent_of_rows,
    row_dots,
    unit_rows,
)
from ssl_heads.similarity import Exclusion, Impl, gram


def spectral_contrastive(z0: Tensor, z1: Tensor, *, normalize: bool = True) -> Tensor:
    r"""Spectral contrastive loss: positives are pulled linearly, negatives pushed quadratically.

    .. math:: -\frac{2}{n}\sum_i u_i\cdot u'_i + \frac{1}{2n(2n-2)}\sum_{i \nsim j} (u_i\cdot u_j)^2

    over the ordered pairs of different samples among all 2n rows. Computed through the d x d moment of the batch,
    O(n d^2).

    Args:
        z0: First views, of shape (n, d).
        z1: Second views, of shape (n, d).
        normalize: Whether rows are divided by their length.

    Returns:
        A scalar in fp32 (fp64 for fp64 inputs). One pair has no negatives: its second term is 0.

    Raises:
        ValueError: If shapes differ or the batch is empty.

    Example:
        >>> import torch
        >>> from ssl_heads.functional import spectral_contrastive
        >>> spectral_contrastive(torch.eye(4), torch.eye(4)).item()
        -2.0
    """
    _check.paired("z0", z0, "z1", z1)
    u = unit_rows(torch.cat([z0, z1]), normalize)
    return _spectral_of_rows(u, torch.ones_like(u[0]))


def _spectral_of_rows(u: Tensor, importance: Tensor) -> Tensor:
    n = len(u) // 2
    scaled = u * importance
    positive = row_dots(scaled[:n], u[n:])
    own = row_dots(scaled, u)
    negative = gram.weighted_square_sum(u, importance) - own.square().sum() - 2 * positive.square().sum()
    return -2 * positive.mean() + negative / max(2 * n * (2 * n - 2), 1)


def decorrelation(z: Tensor, *, normalize: bool = True) -> Tensor:
    r"""How far the dimensions are from uncorrelated with equal power.

    .. math:: \frac{1}{d}\Big\lVert \frac{1}{n} \sum_i v_i v_i^\top - I \Big\rVert_F^2,\quad v_i = \sqrt{d}\,z_i / |z_i|

    The factor :math:`\sqrt{d}` gives the second moment the trace of the identity, so that 0 is reachable. tri-factor
    paper, equation 8, with the scale made independent of n and d.

    Args:
        z: Shape (n, d).
        normalize: Whether rows are scaled to length :math:`\sqrt{d}`; else they are taken as they come.

    Returns:
        A scalar in fp32 (fp64 for fp64 inputs): 0 for uncorrelated dimensions, d - 1 for collapsed unit rows.

    Raises:
        ValueError: If the batch is empty or not a matrix.

    Example:
        >>> import torch
        >>> from ssl_heads.functional import decorrelation
        >>> decorrelation(torch.eye(4)).item()
        0.0
    """
    _check.rows("z", z)
    d = z.shape[1]
    v = unit_rows(z, normalize)
    return gram.distance_from_identity(v * d**0.5 if normalize else v) / d


def tri_factor_contrast(
    z0: Tensor,
    z1: Tensor,
    importance: Tensor,
    temperature: float | Tensor = 0.2,
    *,
    impl: Impl = "auto",
) -> Tensor:
    r"""NT-Xent with one importance a dimension: similarities :math:`u_i^\top S u_j` on every row.

    The contrast of the tri-factor paper's InfoNCE form (equation 16), with unit rows and a temperature. Released code
    scales the rows of one view only, and leaves S out of the optimiser.

    Args:
        z0: First views, of shape (n, d).
        z1: Second views, of shape (n, d).
        importance: The diagonal of S, of shape (d,), not negative.
        temperature: Divides the similarities.
        impl: How the similarity matrix is reduced.

    Returns:
        A scalar in fp32 (fp64 for fp64 inputs).

    Raises:
        ValueError: If shapes do not fit, the batch is empty or the temperature is not above 0.

    Example:
        >>> import torch
        >>> from ssl_heads.functional import nt_xent, tri_factor_contrast
        >>> z0, z1 = torch.randn(2, 8, 4)
        >>> bool(torch.isclose(tri_factor_contrast(z0, z1, torch.ones(4)), nt_xent(z0, z1)))
        True
    """
    _check.paired("z0", z0, "z1", z1)
    _check_importance(importance, z0)
    _check.positive("temperature", temperature)
    u = unit_rows(torch.cat([z0, z1]), normalize=True)
    return nt_xent_of_rows(u, 1 / temperature, importance.to(u.dtype), None, torch.inf, impl)


def tri_factor_spectral(z0: Tensor, z1: Tensor, importance: Tensor) -> Tensor:
    r"""Spectral contrast with one importance a dimension (tri-factor paper, equation 6), on unit rows.

    .. math:: -\frac{2}{n}\sum_i u_i^\top S u'_i + \frac{1}{2n(2n-2)}\sum_{i \nsim j} (u_i^\top S u_j)^2

    Args:
        z0: First views, of shape (n, d).
        z1: Second views, of shape (n, d).
        importance: The diagonal of S, of shape (d,), not negative.

    Returns:
        A scalar in fp32 (fp64 for fp64 inputs).

    Raises:
        ValueError: If shapes do not fit or the batch is empty.

    Example:
        >>> import torch
        >>> from ssl_heads.functional import tri_factor_spectral
        >>> tri_factor_spectral(torch.eye(4), torch.eye(4), torch.ones(4)).item()
        -2.0
    """
    _check.paired("z0", z0, "z1", z1)
    _check_importance(importance, z0)
    u = unit_rows(torch.cat([z0, z1]), normalize=True)
    return _spectral_of_rows(u, importance.to(u.dtype))


def tri_factor_two_towers(
    z0: Tensor,
    z1: Tensor,
    importance: Tensor,
    temperature: float | Tensor = 0.2,
    *,
    impl: Impl = "auto",
) -> Tensor:
    """The InfoNCE form between two encoders that share one importance: rows and columns in equal parts.

    Args:
        z0: Embeddings of the first tower, of shape (n, d).
        z1: Embeddings of the second tower, of shape (n, d).
        importance: The diagonal of S, of shape (d,), not negative.
        temperature: Divides the similarities.
        impl: How the similarity matrix is reduced.

    Returns:
        A scalar in fp32 (fp64 for fp64 inputs).

    Raises:
        ValueError: If shapes do not fit, the batch is empty or the temperature is not above 0.

    Example:
        >>> import torch
        >>> from ssl_heads.functional import tri_factor_two_towers
        >>> tri_factor_two_towers(torch.eye(4), torch.eye(4), torch.ones(4)).shape
        torch.Size([])
    """
    _check.paired("z0", z0, "z1", z1)
    _check_importance(importance, z0)
    _check.positive("temperature", temperature)
    u0, u1 = unit_rows(z0, normalize=True), unit_rows(z1, normalize=True)
    query = u0 * importance.to(u0.dtype)
    scale = 1 / temperature
    exclusion = Exclusion.diagonal(len(u0), len(u1))
    row, column = similarity.log_sum_exp(query, u1, scale, exclusion=exclusion, columns=True, impl=impl)
    assert column is not None
    positive = row_dots(query, u1) * scale
    return against_negatives(torch.cat([row, column]), repeat(positive, "n -> (sides n)", sides=2)).mean()


def tri_factor_spectral_two_towers(z0: Tensor, z1: Tensor, importance: Tensor) -> Tensor:
    r"""The spectral form between two encoders that share one importance (tri-factor paper, equation 17).

    .. math:: -\frac{2}{n}\sum_i u_i^\top S v_i + \frac{1}{n(n-1)}\sum_{i \ne j} (u_i^\top S v_j)^2

    Args:
        z0: Embeddings of the first tower, of shape (n, d).
        z1: Embeddings of the second tower, of shape (n, d).
        importance: The diagonal of S, of shape (d,), not negative.

    Returns:
        A scalar in fp32 (fp64 for fp64 inputs).

    Raises:
        ValueError: If shapes do not fit or the batch is empty.

    Example:
        >>> import torch
        >>> from ssl_heads.functional import tri_factor_spectral_two_towers
        >>> tri_factor_spectral_two_towers(torch.eye(4), torch.eye(4), torch.ones(4)).item()
        -2.0
    """
    _check.paired("z0", z0, "z1", z1)
    _check_importance(importance, z0)
    u0, u1 = unit_rows(z0, normalize=True), unit_rows(z1, normalize=True)
    n = len(u0)
    query = u0 * importance.to(u0.dtype)
    positive = row_dots(query, u1)
    negative = gram.square_sum(query, u1) - positive.square().sum()
    return -2 * positive.mean() + negative / max(n * (n - 1), 1)


def _check_importance(importance: Tensor, z: Tensor) -> None:
    if importance.shape != z.shape[1:]:
        raise ValueError(
            f"importance must hold one value a dimension, shape ({z.shape[1]},) for embeddings of shape "
            f"{tuple(z.shape)}; got shape {tuple(importance.shape)}"
        )
    _check.same_device("importance", importance, "z0", z)
