"""The three reductions that losses call, and the choice of a backend for each call."""

from __future__ import annotations

import functools
import importlib.util
import math
from typing import Literal, get_args

import torch
from torch import Tensor

from ssl_heads import _check
from ssl_heads._modes import is_transformed, saveable
from ssl_heads._numerics import accumulator, promote
from ssl_heads.similarity import dense
from ssl_heads.similarity.backend import KERNELS, Matrix, Name
from ssl_heads.similarity.exclusion import Exclusion
from ssl_heads.similarity.operators import pair_lse, pair_softplus, scalar, self_lse
from ssl_heads.similarity.triton import configurations

Impl = Literal["auto", "dense", "tiled", "triton"]
"""How the matrix is reduced: `auto` decides from the tensors of each call; an explicit choice never falls back.

Under torch.func and in forward mode `auto` stores the matrix, and tiles and kernels are an error.
"""

IMPLS = get_args(Impl)

DENSE_UP_TO = 128 * 128
"""Largest number of pairs that `auto` stores: below it one small matrix is faster than tiles."""

DENSE_ON_GPU_UP_TO = 1024 * 1024
"""The same where each launch costs microseconds."""


def refuse_transforms() -> None:
    """Raise `RuntimeError` under torch.func and in forward mode, for which tiles and kernels have no rules."""
    if is_transformed():
        raise RuntimeError('tiles and kernels work neither under torch.func nor in forward mode; pass impl="dense"')


@functools.lru_cache
def kernels_run_on(device: torch.device) -> bool:
    """Whether Triton is installed and the device has what its kernels need."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    return configurations.of_device(device) is not None


def implementation(impl: Impl, query: Tensor, columns: int) -> Name:
    """The backend of a call with these rows and so many columns."""
    _check.choice("impl", impl, IMPLS)
    if impl != "auto":
        return impl
    if is_transformed() or query.shape[0] * columns <= (DENSE_ON_GPU_UP_TO if query.is_cuda else DENSE_UP_TO):
        return "dense"
    return "triton" if query.is_cuda and query.dtype != torch.float64 and kernels_run_on(query.device) else "tiled"


def log_sum_exp(
    query: Tensor,
    key: Tensor,
    scale: Tensor | float = 1.0,
    *,
    exclusion: Exclusion = Exclusion(),
    columns: bool = False,
    bound: float = math.inf,
    dtype: torch.dtype | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Log-sum-exp over the negatives of the rows, and on request of the columns, of `scale * q k^T`.

    Args:
        query: Rows, of shape (n, d).
        key: Columns, of shape (m, d). Without gradient they cost one product less.
        scale: Multiplies the logits; a tensor may require a gradient.
        exclusion: Pairs that are left out.
        columns: Whether the log-sum-exp of the columns is wanted too.
        bound: The largest `|logit|` where the caller knows it, as for cosines over a temperature.
        dtype: The dtype that kernels may round rows to for their products; None rounds nothing. Sums and gradients are
            float32 all the same, and tiles and the stored matrix round nothing.
        impl: See `Impl`.

    Returns:
        The rows' log-sum-exp of shape (n,), and the columns' of shape (m,) or None. A row whose pairs are all left out
        gives `-inf` and no gradient.
    """
    chosen, query, key, products = _prepare(impl, query, key, dtype)
    if chosen == "dense":
        return dense.log_sums(Matrix(query, key, _in_dtype(scale, query), exclusion), columns)
    one_sweep = torch.is_grad_enabled() and query.requires_grad and not key.requires_grad and not columns
    settings = columns, one_sweep, bound, products, chosen
    row, column, _ = pair_lse(query, key, scalar(scale, query), *exclusion, *settings)
    return row, column if columns else None


def self_log_sum_exp(
    x: Tensor,
    scale: Tensor | float = 1.0,
    *,
    weight: Tensor | None = None,
    exclusion: Exclusion = Exclusion(),
    bound: float = math.inf,
    dtype: torch.dtype | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Log-sum-exp over the negatives of the rows of the symmetric `scale * x diag(weight) x^T`.

    Half of the matrix is computed, and each tile serves its rows and its columns.

    Args:
        x: One set of embeddings, of shape (n, d).
        scale: Multiplies the logits.
        weight: One weight a dimension, of shape (d,), or None for ones.
        exclusion: Pairs that are left out; a symmetric pattern.
        bound: The largest `|logit|` where the caller knows it.
        dtype: As for `log_sum_exp`.
        impl: See `Impl`.

    Returns:
        The rows' log-sum-exp of shape (n,).
    """
    chosen, x, _, products = _prepare(impl, x, x, dtype)
    weight = None if weight is None else weight.to(accumulator(x))
    if chosen == "dense":
        query = x if weight is None else x * weight
        return dense.log_sums(Matrix(query, x, _in_dtype(scale, x), exclusion), columns=False)[0]
    pattern = exclusion.offset, exclusion.period, exclusion.query_ids, exclusion.keep_equal
    row: Tensor = self_lse(x, weight, scalar(scale, x), *pattern, bound, products, chosen)[0]
    return row


def softplus_sum(
    query: Tensor,
    key: Tensor,
    scale: Tensor | float,
    bias: Tensor,
    *,
    exclusion: Exclusion,
    dtype: torch.dtype | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """`sum_ij softplus(scale * <q_i, k_j> + bias)` over the negatives, value and gradient in one pass.

    Args:
        query: Rows, of shape (n, d).
        key: Columns, of shape (m, d).
        scale: Multiplies the logits.
        bias: Added to every logit, of shape () or (1,).
        exclusion: Pairs that are left out.
        dtype: As for `log_sum_exp`.
        impl: See `Impl`.

    Returns:
        A scalar.
    """
    chosen, query, key, products = _prepare(impl, query, key, dtype)
    if chosen == "dense":
        return dense.softplus_of_negatives(Matrix(query, key, _in_dtype(scale, query), exclusion), scalar(bias, query))
    numbers = scalar(scale, query), scalar(bias, query)
    gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, *numbers))
    total: Tensor = pair_softplus(query, key, *numbers, *exclusion, products, chosen, gradient)[0]
    return total


def _prepare(
    impl: Impl, query: Tensor, key: Tensor, dtype: torch.dtype | None
) -> tuple[Name, Tensor, Tensor, torch.dtype]:
    """The backend, its rows, and the dtype of its products: kernels alone read half precision."""
    chosen = implementation(impl, query, key.shape[0])
    if chosen != "dense":
        refuse_transforms()
    if chosen in KERNELS:
        return chosen, saveable(query), saveable(key), query.dtype if dtype is None else dtype
    query, key = promote(query), promote(key)
    return chosen, query, key, query.dtype


def _in_dtype(scale: Tensor | float, rows: Tensor) -> Tensor | float:
    """A tensor as operators take it; a float stays one, because making a tensor of it costs as much as a small call."""
    return scalar(scale, rows) if isinstance(scale, Tensor) else scale
