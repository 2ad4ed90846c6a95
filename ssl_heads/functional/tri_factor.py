"""Tri-factor contrast: softmax and quadratic losses with one importance a dimension."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import repeat
from torch import Tensor

from ssl_heads import _check, distributed
from ssl_heads._numerics import one_dtype, product_dtype, promote
from ssl_heads.distributed import Gather, Pairs, Shard
from ssl_heads.functional._softmax import against_negatives, inverse, nt_xent_of_rows, row_dots, unit_rows
from ssl_heads.functional.spectral import spectral_of_rows
from ssl_heads.similarity import IMPLS, Impl

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def tri_factor_contrast(
    z0: Tensor,
    z1: Tensor,
    importance: Tensor,
    temperature: float | Tensor = 0.2,
    *,
    gather: Gather = "none",
    group: ProcessGroup | None = None,
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
        gather, group: Whose rows are compared, see `ssl_heads.distributed`.
        impl: How the similarity matrix is reduced, see `ssl_heads.similarity.Impl`.

    Returns:
        A scalar in float32 (float64 for float64 inputs).

    Raises:
        ValueError: If shapes do not fit, the batch is empty or the temperature is not above 0.

    Example:
        >>> import torch
        >>> from ssl_heads.functional import nt_xent, tri_factor_contrast
        >>> z0, z1 = torch.randn(2, 8, 4)
        >>> bool(torch.isclose(tri_factor_contrast(z0, z1, torch.ones(4)), nt_xent(z0, z1)))
        True
    """
    shard, scale = _shard(gather, group, "tri_factor_contrast", z0, z1, importance, temperature, impl)
    u = unit_rows(torch.cat([z0, z1]), normalize=True, impl=impl)
    s = promote(importance).to(u.dtype)
    return nt_xent_of_rows(u, scale, s, None, torch.inf, shard, product_dtype(z0, z1), impl)


def tri_factor_spectral(
    z0: Tensor, z1: Tensor, importance: Tensor, *, gather: Gather = "none", group: ProcessGroup | None = None
) -> Tensor:
    r"""Spectral contrast with one importance a dimension (tri-factor paper, equation 6), on unit rows.

    .. math:: -\frac{2}{n}\sum_i u_i^\top S u'_i + \frac{1}{2n(2n-2)}\sum_{i \nsim j} (u_i^\top S u_j)^2

    Args:
        z0: First views, of shape (n, d).
        z1: Second views, of shape (n, d).
        importance: The diagonal of S, of shape (d,), not negative.
        gather, group: Whose moments are taken, see `ssl_heads.distributed`.

    Returns:
        A scalar in float32 (float64 for float64 inputs).

    Raises:
        ValueError: If shapes do not fit or the batch is empty.

    Example:
        >>> import torch
        >>> from ssl_heads.functional import tri_factor_spectral
        >>> tri_factor_spectral(torch.eye(4), torch.eye(4), torch.ones(4)).item()
        -2.0
    """
    shard, _ = _shard(gather, group, "tri_factor_spectral", z0, z1, importance)
    u = unit_rows(torch.cat([z0, z1]), normalize=True)
    return spectral_of_rows(u, promote(importance).to(u.dtype), shard)


def tri_factor_two_towers(
    z0: Tensor,
    z1: Tensor,
    importance: Tensor,
    temperature: float | Tensor = 0.2,
    *,
    gather: Gather = "none",
    group: ProcessGroup | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """The InfoNCE form between two encoders that share one importance: rows and columns in equal parts.

    Args:
        z0: Embeddings of the first tower, of shape (n, d).
        z1: Embeddings of the second tower, of shape (n, d).
        importance: The diagonal of S, of shape (d,), not negative.
        temperature: Divides the similarities.
        gather, group: Whose rows are compared, see `ssl_heads.distributed`.
        impl: How the similarity matrix is reduced, see `ssl_heads.similarity.Impl`.

    Returns:
        A scalar in float32 (float64 for float64 inputs).

    Raises:
        ValueError: If shapes do not fit, the batch is empty or the temperature is not above 0.

    Example:
        >>> import torch
        >>> from ssl_heads.functional import tri_factor_two_towers
        >>> tri_factor_two_towers(torch.eye(4), torch.eye(4), torch.ones(4)).shape
        torch.Size([])
    """
    shard, scale = _shard(gather, group, "tri_factor_two_towers", z0, z1, importance, temperature, impl)
    u0, u1 = (unit_rows(z, normalize=True, impl=impl) for z in one_dtype(z0, z1))
    query = u0 * promote(importance).to(u0.dtype)
    positive = row_dots(query, u1) * scale
    dtype = product_dtype(z0, z1)
    row, column = distributed.log_sum_exp(query, u1, scale, Pairs(shard), columns=True, dtype=dtype, impl=impl)
    assert column is not None
    return shard.ddp_mean(against_negatives(torch.cat([row, column]), repeat(positive, "n -> (sides n)", sides=2)))


def tri_factor_spectral_two_towers(
    z0: Tensor, z1: Tensor, importance: Tensor, *, gather: Gather = "none", group: ProcessGroup | None = None
) -> Tensor:
    r"""The spectral form between two encoders that share one importance (tri-factor paper, equation 17).

    .. math:: -\frac{2}{n}\sum_i u_i^\top S v_i + \frac{1}{n(n-1)}\sum_{i \ne j} (u_i^\top S v_j)^2

    Args:
        z0: Embeddings of the first tower, of shape (n, d).
        z1: Embeddings of the second tower, of shape (n, d).
        importance: The diagonal of S, of shape (d,), not negative.
        gather, group: Whose moments are taken, see `ssl_heads.distributed`.

    Returns:
        A scalar in float32 (float64 for float64 inputs).

    Raises:
        ValueError: If shapes do not fit or the batch is empty.

    Example:
        >>> import torch
        >>> from ssl_heads.functional import tri_factor_spectral_two_towers
        >>> tri_factor_spectral_two_towers(torch.eye(4), torch.eye(4), torch.ones(4)).item()
        -2.0
    """
    shard, _ = _shard(gather, group, "tri_factor_spectral_two_towers", z0, z1, importance)
    u0, u1 = (unit_rows(z, normalize=True) for z in one_dtype(z0, z1))
    n = shard.total
    query = u0 * promote(importance).to(u0.dtype)
    positive = row_dots(query, u1)
    all_pairs = distributed.square_sum(query, u1, shard)
    return -2 * shard.ddp_mean(positive) + (all_pairs - shard.ddp_sum(positive.square())) / max(n * (n - 1), 1)


def _shard(
    gather: Gather,
    group: ProcessGroup | None,
    call: str,
    z0: Tensor,
    z1: Tensor,
    importance: Tensor,
    temperature: float | Tensor = 1.0,
    impl: Impl = "auto",
) -> tuple[Shard, float | Tensor]:
    """The shard and the scale of the logits, from inputs that the four tri-factor forms check alike."""

    def checked() -> float | Tensor:
        _check.paired("z0", z0, "z1", z1)
        _check_importance(importance, z0)
        _check.choice("impl", impl, IMPLS)
        return inverse(_check.positive("temperature", temperature))

    facts = {"call": call, "importance": importance, "temperature": temperature, "impl": impl}
    return Shard.of(gather, group, {"z0": z0, "z1": z1}, facts, checked)


def _check_importance(importance: Tensor, z: Tensor) -> None:
    _check.tensor("importance", importance)
    if importance.shape != z.shape[1:] or not importance.is_floating_point():
        raise ValueError(
            f"importance must hold one floating-point value a dimension, shape ({z.shape[1]},) for embeddings of shape "
            f"{tuple(z.shape)}, got {importance.dtype} of shape {tuple(importance.shape)}"
        )
    _check.same_device("importance", importance, "z0", z)
