"""Rows of length one by one kernel each way, as a torch operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssl_heads._numerics import default_eps
from ssl_heads.similarity.operators import _no_second_derivative, _save_nothing
from ssl_heads.similarity.triton import rowwise
from ssl_heads.similarity.triton.rowwise import Settings

UNIT = Settings(eps=default_eps(torch.float32))


def unit_rows(x: Tensor) -> Tensor:
    """Rows of length one, or zero, in float32: one kernel each way in place of a chain of torch functions."""
    u: Tensor = normalized_rows(x)[0]
    return u


@torch.library.custom_op("ssl_heads::triton_unit_rows", mutates_args=())
def normalized_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x_i / |x_i|``, 0 for a zero row, and the inverse norms; float32."""
    rows = rowwise.prologue(x, UNIT, dtype=torch.float32)
    return rows.key, rows.inverse_norm


@normalized_rows.register_fake
def _(x):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape, dtype=torch.float32), x.new_empty(x.shape[0], dtype=torch.float32)


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
normalized_rows_backward.register_autograd(_no_second_derivative, setup_context=_save_nothing)
