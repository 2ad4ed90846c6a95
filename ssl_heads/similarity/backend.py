"""The contract of a backend: a module of plain functions that reduces ``S = scale * q k^T`` without autograd.

Rows come in the dtype of the products. Sums and gradients are in float32, or float64 for float64 rows. Empty tensors
stand for what was not asked for. Blocks of a matrix whose other blocks lie on other ranks go to the same functions: the
log-sum-exps of blocks merge by ``logaddexp``, and the gradient of a block needs only the merged ones.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ssl_heads.similarity.exclusion import Exclusion


class Needs(NamedTuple):
    """The gradients that a backward pass is asked for."""

    query: bool = True
    key: bool = True
    scale: bool = True


class Backend(Protocol):
    """What computes: the reductions of ``S = scale * q k^T`` over the pairs that are no exclusion, and their gradients.

    With upstream gradients g of the rows and h of the columns, the weight of a pair is
    ``W_ij = g_i exp(S_ij - row_i) + h_j exp(S_ij - column_j)``. Empty tensors stand for what was not asked for.
    """

    def saved_shape(self, rows: int, columns: int, width: int, dtype: torch.dtype, one_sweep: bool) -> tuple[int, ...]:
        """Shape of what `pair_forward` and `self_forward` keep for the backward."""

    def pair_forward(
        self,
        query: Tensor,
        key: Tensor,
        scale: Tensor | float,
        exclusion: Exclusion,
        columns: bool,
        one_sweep: bool,
        bound: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-sum-exp of rows and columns, and what is saved. ``one_sweep``: the query alone will need a gradient."""

    def pair_backward(
        self,
        query: Tensor,
        key: Tensor,
        scale: Tensor | float,
        row: Tensor,
        column: Tensor,
        saved: Tensor,
        row_gradient: Tensor,
        column_gradient: Tensor,
        exclusion: Exclusion,
        one_sweep: bool,
        bound: float,
        needs: Needs,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``scale W k``, ``scale W^T q``, and ``sum_ij W_ij <q_i, k_j>`` of shape (1,), zero where not needed."""

    def self_forward(
        self, query: Tensor, key: Tensor, scale: Tensor, exclusion: Exclusion, bound: float
    ) -> tuple[Tensor, Tensor]:
        """Log-sum-exp of the rows of a symmetric S, as of ``query = key diag(weight)``, and what is saved."""

    def self_backward(
        self,
        query: Tensor,
        key: Tensor,
        scale: Tensor,
        row: Tensor,
        saved: Tensor,
        row_gradient: Tensor,
        exclusion: Exclusion,
        bound: float,
        needs_scale: bool,
    ) -> tuple[Tensor, Tensor]:
        """``scale (W + W^T) k``, and the gradient of the scale."""

    def softplus_sum(
        self, query: Tensor, key: Tensor, scale: Tensor | float, bias: Tensor, exclusion: Exclusion, gradient: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """``sum_ij softplus(S_ij + bias)``; on request its gradients: query, key, scale, bias."""
