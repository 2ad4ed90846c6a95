"""The contract of a backend: a module of plain functions that reduces a similarity matrix without autograd.

Rows come in the dtype of the products. Sums and gradients are in float32, or float64 for float64 rows. Empty tensors
stand for what was not asked for; no tensor stands for two results. A side may have no rows: log-sum-exps over nothing
are `-inf`, a sum of softplus and all gradients zero.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ssl_heads.similarity.exclusion import Exclusion

Name = Literal["dense", "tiled", "triton"]
"""The backends."""

KERNELS: tuple[Name, ...] = ("triton",)
"""Backends of fused kernels: they read rows in half precision, which the others widen."""


class Matrix(NamedTuple):
    """The matrix `S = scale * q k^T`, which is never stored.

    Attributes:
        query: Rows, of shape (n, d).
        key: Columns, of shape (m, d).
        scale: A number, or a tensor of shape (1,).
        exclusion: Pairs that are left out.
        bound: The largest `|S_ij|` where the caller knows it.
    """

    query: Tensor
    key: Tensor
    scale: Tensor | float = 1.0
    exclusion: Exclusion = Exclusion()
    bound: float = math.inf


class LogSum(NamedTuple):
    """The log-sum-exp of all rows or of all columns, and its upstream gradient."""

    value: Tensor
    gradient: Tensor


class Needs(NamedTuple):
    """The gradients that a backward pass is asked for."""

    query: bool = True
    key: bool = True
    scale: bool = True


class BlockBackend(Protocol):
    """Reductions over two sets of rows, and their gradients.

    Blocks of a matrix whose other blocks lie on other ranks go to the same functions: the log-sum-exps of blocks merge
    by `logaddexp`, and the gradient of a block needs only the merged ones.
    """

    def pair_forward(self, matrix: Matrix, columns: bool, one_sweep: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Log-sum-exp of rows and columns, and what the backward reuses.

        With `one_sweep` the query alone will need a gradient.
        """

    def pair_backward(
        self, matrix: Matrix, row: LogSum, column: LogSum | None, saved: Tensor, one_sweep: bool, needs: Needs
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`scale W k`, `scale W^T q`, and `sum_ij W_ij <q_i, k_j>` of shape (1,), zero where not needed.

        With upstream gradients g of the rows and h of the columns, the weight of a pair is
        `W_ij = g_i exp(S_ij - row_i) + h_j exp(S_ij - column_j)`.
        """

    def softplus(self, matrix: Matrix, bias: Tensor, gradient: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """`sum_ij log(1 + exp(S_ij + bias))`; on request its gradients: query, key, scale, bias."""


class Backend(BlockBackend, Protocol):
    """Reductions over a whole matrix: of two sets, or of one, where S is symmetric and `query = key diag(weight)`."""

    def saved_shape(self, rows: int, columns: int, width: int, dtype: torch.dtype, one_sweep: bool) -> tuple[int, ...]:
        """Shape of what `pair_forward` and `self_forward` save for the backward."""

    def self_forward(self, matrix: Matrix) -> tuple[Tensor, Tensor]:
        """Log-sum-exp of the rows of a symmetric S, and what is saved."""

    def self_backward(self, matrix: Matrix, row: LogSum, saved: Tensor, needs_scale: bool) -> tuple[Tensor, Tensor]:
        """`scale (W + W^T) k`, and the gradient of the scale."""
