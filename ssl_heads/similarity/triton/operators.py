"""The fused similarity as operators that autograd, autocast and torch.compile know.

Saved for backward: the inputs and vectors of length n. Products are taken in one dtype, to which query and key are
rounded on the way in; reductions come back in float32, gradients in the dtype of their input, rounded once.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ssl_heads.functional.normalize import default_eps
from ssl_heads.similarity import product_dtype
from ssl_heads.similarity.exclusion import Exclusion
from ssl_heads.similarity.triton import differentiate, reduce, rowwise
from ssl_heads.similarity.triton.differentiate import Needs
from ssl_heads.similarity.triton.rowwise import Settings


def log_sum_exp(
    query: Tensor,
    key: Tensor,
    scale: Tensor | float = 1.0,
    *,
    exclusion: Exclusion = Exclusion(),
    columns: bool = False,
    bound: float = math.inf,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-sum-exp over the negatives of the rows, and on request of the columns, of ``scale * q k^T``.

    Differentiable in query, key and scale; a key without gradient costs no product. Float32 whatever the input;
    ``dtype`` is that of the products.
    """
    dtype = dtype or product_dtype(query, key)
    row, column = pair_lse(query, key, _scalar(scale, query), *exclusion, columns, bound, dtype)
    return row, column if columns else None


def self_log_sum_exp(
    x: Tensor,
    scale: Tensor | float = 1.0,
    *,
    weight: Tensor | None = None,
    exclusion: Exclusion = Exclusion(),
    bound: float = math.inf,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Log-sum-exp over the negatives of the rows of the symmetric ``scale * x diag(weight) x^T``.

    Half of the products forward, two thirds backward. Differentiable in x, scale and weight.
    """
    dtype = dtype or product_dtype(x)
    weight = None if weight is None else weight.float()
    ids = (exclusion.query_ids, exclusion.keep_equal)
    row: Tensor = self_lse(x, weight, _scalar(scale, x), exclusion.offset, exclusion.period, *ids, bound, dtype)
    return row


def softplus_sum(
    query: Tensor,
    key: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    *,
    exclusion: Exclusion = Exclusion(),
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``sum_ij softplus(scale * <q_i, k_j> + bias)`` over the negatives; a float32 scalar, differentiable in all."""
    dtype = dtype or product_dtype(query, key)
    rows: Tensor = softplus_rows(query, key, _scalar(scale, query), _scalar(bias, query), *exclusion, dtype)
    return rows.sum()


def unit_rows(x: Tensor) -> Tensor:
    """Rows of length one, or zero, in float32: one kernel each way in place of a chain of torch functions."""
    u: Tensor = normalized_rows(x)[0]
    return u


def _scalar(value: Tensor | float, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(like.device, torch.float32).reshape(1)
    return torch.full((1,), value, dtype=torch.float32, device=like.device)


def _no_second_derivative(ctx: Any, *gradients: Any) -> Any:
    raise RuntimeError('the fused similarity has no second derivative; pass impl="dense" to differentiate twice')


def _ignore_inputs(ctx: Any, inputs: Any, output: Any) -> None:
    """A context that keeps nothing."""


def _vector(x: Tensor, rows: int) -> Tensor:
    return x.new_empty(rows, dtype=torch.float32)


# ---------------------------------------------------------------------------------------------------------------- rows

UNIT = Settings(eps=default_eps(torch.float32))


@torch.library.custom_op("ssl_heads::triton_unit_rows", mutates_args=())
def normalized_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x_i / |x_i|``, 0 for a zero row, and the inverse norms; float32."""
    rows = rowwise.prologue(x, UNIT, dtype=torch.float32)
    return rows.key, rows.inverse_norm


@normalized_rows.register_fake
def _(x):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape, dtype=torch.float32), _vector(x, x.shape[0])


@torch.library.custom_op("ssl_heads::triton_unit_rows_backward", mutates_args=())
def normalized_rows_backward(x: Tensor, inverse_norm: Tensor, gradient: Tensor) -> Tensor:
    """``(g_i - <g_i, u_i> u_i) / |x_i|``, and nothing for a zero row."""
    return rowwise.epilogue(x, inverse_norm, UNIT, key_gradient=gradient).embeddings


@normalized_rows_backward.register_fake
def _(x, inverse_norm, gradient):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


def _rows_setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(inputs[0], output[1])


def _rows_backward(ctx: Any, gradient: Tensor, _: Tensor) -> Tensor:
    found: Tensor = normalized_rows_backward(*ctx.saved_tensors, gradient)
    return found


normalized_rows.register_autograd(_rows_backward, setup_context=_rows_setup)
normalized_rows_backward.register_autograd(_no_second_derivative, setup_context=_ignore_inputs)


# ------------------------------------------------------------------------------------------------------------ two sets


@torch.library.custom_op("ssl_heads::triton_pair_lse", mutates_args=())
def pair_lse(
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    offset: int,
    period: int,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    keep_equal: bool,
    columns: bool,
    bound: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over the negatives, by rows and on request by columns (else an empty tensor)."""
    exclusion = Exclusion(offset, period, query_ids, key_ids, keep_equal)
    rows = query.to(dtype), key.to(dtype)
    row, column = reduce.pair_forward(*rows, exclusion, scale=scale, columns=columns, bound=bound)
    return row, _vector(query, 0) if column is None else column


@pair_lse.register_fake
def _(query, key, scale, offset, period, query_ids, key_ids, keep_equal, columns, bound, dtype):  # type: ignore[no-untyped-def]
    return _vector(query, query.shape[0]), _vector(key, key.shape[0] if columns else 0)


@torch.library.custom_op("ssl_heads::triton_pair_lse_backward", mutates_args=())
def pair_lse_backward(
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    row: Tensor,
    row_gradient: Tensor,
    column: Tensor | None,
    column_gradient: Tensor | None,
    offset: int,
    period: int,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    keep_equal: bool,
    bound: float,
    dtype: torch.dtype,
    needs_query: bool,
    needs_key: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query and key, empty where not needed, and of the scale."""
    found = differentiate.pair_backward(
        query.to(dtype),
        key.to(dtype),
        Exclusion(offset, period, query_ids, key_ids, keep_equal),
        row,
        row_gradient,
        column,
        column_gradient,
        scale=scale,
        bound=bound,
        needs=Needs(needs_query, needs_key, dtype=torch.promote_types(query.dtype, key.dtype)),
    )
    return _or_empty(found.query, needs_query, query), _or_empty(found.key, needs_key, key), found.scale


def _or_empty(gradient: Tensor | None, needed: bool, like: Tensor) -> Tensor:
    return gradient.to(like.dtype) if needed and gradient is not None else like.new_empty(0)


@pair_lse_backward.register_fake
def _(query, key, scale, *rest):  # type: ignore[no-untyped-def]
    *_, needs_query, needs_key = rest
    return (
        query.new_empty(query.shape if needs_query else 0),
        key.new_empty(key.shape if needs_key else 0),
        torch.empty_like(scale),
    )


def _pair_setup(ctx: Any, inputs: Any, output: Any) -> None:
    query, key, scale, ctx.offset, ctx.period, query_ids, key_ids, ctx.keep_equal, ctx.columns, *ctx.last = inputs
    ctx.save_for_backward(query, key, scale, query_ids, key_ids, *output)


def _pair_backward(ctx: Any, row_gradient: Tensor, column_gradient: Tensor) -> Any:
    query, key, scale, query_ids, key_ids, row, column = ctx.saved_tensors
    needs_query, needs_key, needs_scale = ctx.needs_input_grad[:3]
    by_column = (column, column_gradient) if ctx.columns else (None, None)
    pattern = (ctx.offset, ctx.period, query_ids, key_ids, ctx.keep_equal)
    query_gradient, key_gradient, scale_gradient = pair_lse_backward(
        query, key, scale, row, row_gradient, *by_column, *pattern, *ctx.last, needs_query, needs_key
    )
    return (
        query_gradient if needs_query else None,
        key_gradient if needs_key else None,
        scale_gradient if needs_scale else None,
        *[None] * 8,
    )


pair_lse.register_autograd(_pair_backward, setup_context=_pair_setup)
pair_lse_backward.register_autograd(_no_second_derivative, setup_context=_ignore_inputs)


# ------------------------------------------------------------------------------------------------------------- one set


@torch.library.custom_op("ssl_heads::triton_self_lse", mutates_args=())
def self_lse(
    x: Tensor,
    weight: Tensor | None,
    scale: Tensor,
    offset: int,
    period: int,
    ids: Tensor | None,
    keep_equal: bool,
    bound: float,
    dtype: torch.dtype,
) -> Tensor:
    """Log-sum-exp over the negatives of the rows of ``scale x diag(w) x^T``."""
    exclusion = Exclusion(offset, period, ids, ids, keep_equal)
    return reduce.self_forward(*_two_uses(x, weight, dtype), exclusion, scale=scale, bound=bound)


@self_lse.register_fake
def _(x, *rest):  # type: ignore[no-untyped-def]
    return _vector(x, x.shape[0])


def _weighted(x: Tensor, weight: Tensor | None) -> Tensor:
    return x if weight is None else (x * weight).to(x.dtype)


def _two_uses(x: Tensor, weight: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The rows as queries and as keys; one buffer where nothing tells them apart."""
    key = x.to(dtype)
    return key if weight is None else (x * weight).to(dtype), key


@torch.library.custom_op("ssl_heads::triton_self_lse_backward", mutates_args=())
def self_lse_backward(
    x: Tensor,
    weight: Tensor | None,
    scale: Tensor,
    row: Tensor,
    row_gradient: Tensor,
    offset: int,
    period: int,
    ids: Tensor | None,
    keep_equal: bool,
    bound: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """``scale (W + W^T) x``, from which the gradients of x and the weight follow row by row; that of the scale."""
    exclusion = Exclusion(offset, period, ids, ids, keep_equal)
    rows = _two_uses(x, weight, dtype)
    found = differentiate.self_backward(*rows, exclusion, row, row_gradient, scale=scale, bound=bound, dtype=x.dtype)
    assert found.query is not None
    return found.query, found.scale


@self_lse_backward.register_fake
def _(x, weight, scale, *rest):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), torch.empty_like(scale)


def _self_setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, scale, ctx.offset, ctx.period, ids, ctx.keep_equal, *ctx.last = inputs
    ctx.save_for_backward(x, weight, scale, ids, output)


def _self_backward(ctx: Any, row_gradient: Tensor) -> Any:
    x, weight, scale, ids, row = ctx.saved_tensors
    needs_x, needs_weight, needs_scale = ctx.needs_input_grad[:3]
    pattern = (ctx.offset, ctx.period, ids, ctx.keep_equal)
    product, scale_gradient = self_lse_backward(x, weight, scale, row, row_gradient, *pattern, *ctx.last)
    return (
        _weighted(product, weight) if needs_x else None,
        (x.float() * product.float()).sum(0) / 2 if needs_weight else None,
        scale_gradient if needs_scale else None,
        *[None] * 6,
    )


self_lse.register_autograd(_self_backward, setup_context=_self_setup)
self_lse_backward.register_autograd(_no_second_derivative, setup_context=_ignore_inputs)


# --------------------------------------------------------------------------------------------------------- elementwise


@torch.library.custom_op("ssl_heads::triton_softplus_rows", mutates_args=())
def softplus_rows(
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    bias: Tensor,
    offset: int,
    period: int,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    keep_equal: bool,
    dtype: torch.dtype,
) -> Tensor:
    """``sum_j softplus(scale <q_i, k_j> + bias)`` over the negatives of each row."""
    exclusion = Exclusion(offset, period, query_ids, key_ids, keep_equal)
    rows = query.to(dtype), key.to(dtype)
    return reduce.softplus_forward(*rows, exclusion, scale=scale, row_bias=bias.expand(query.shape[0]))


@softplus_rows.register_fake
def _(query, *rest):  # type: ignore[no-untyped-def]
    return _vector(query, query.shape[0])


@torch.library.custom_op("ssl_heads::triton_softplus_rows_backward", mutates_args=())
def softplus_rows_backward(
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    bias: Tensor,
    row_gradient: Tensor,
    offset: int,
    period: int,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    keep_equal: bool,
    dtype: torch.dtype,
    needs_query: bool,
    needs_key: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query and key, empty where not needed, of the scale and of the bias."""
    found = differentiate.softplus_backward(
        query.to(dtype),
        key.to(dtype),
        Exclusion(offset, period, query_ids, key_ids, keep_equal),
        row_gradient,
        scale=scale,
        row_bias=bias.expand(query.shape[0]),
        needs=Needs(needs_query, needs_key, row_bias=True, dtype=torch.promote_types(query.dtype, key.dtype)),
    )
    assert found.row_bias is not None
    gradients = _or_empty(found.query, needs_query, query), _or_empty(found.key, needs_key, key)
    return *gradients, found.scale, found.row_bias.sum().reshape(1)


@softplus_rows_backward.register_fake
def _(query, key, scale, bias, *rest):  # type: ignore[no-untyped-def]
    *_, needs_query, needs_key = rest
    return (
        query.new_empty(query.shape if needs_query else 0),
        key.new_empty(key.shape if needs_key else 0),
        torch.empty_like(scale),
        torch.empty_like(bias),
    )


def _softplus_setup(ctx: Any, inputs: Any, output: Any) -> None:
    query, key, scale, bias, ctx.offset, ctx.period, query_ids, key_ids, ctx.keep_equal, ctx.dtype = inputs
    ctx.save_for_backward(query, key, scale, bias, query_ids, key_ids)


def _softplus_backward(ctx: Any, row_gradient: Tensor) -> Any:
    query, key, scale, bias, query_ids, key_ids = ctx.saved_tensors
    needed = ctx.needs_input_grad[:4]
    pattern = (ctx.offset, ctx.period, query_ids, key_ids, ctx.keep_equal)
    gradients = softplus_rows_backward(query, key, scale, bias, row_gradient, *pattern, ctx.dtype, *needed[:2])
    return *(gradient if need else None for gradient, need in zip(gradients, needed, strict=True)), *[None] * 6


softplus_rows.register_autograd(_softplus_backward, setup_context=_softplus_setup)
softplus_rows_backward.register_autograd(_no_second_derivative, setup_context=_ignore_inputs)
