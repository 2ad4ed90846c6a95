"""The similarity matrix written out in float64, and inputs that surround themselves with NaN."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_heads.similarity import backend
from ssl_heads.similarity.exclusion import Exclusion

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 4e-3}


class Matrix(NamedTuple):
    """What defines S, and which pairs it leaves out."""

    query: Tensor
    key: Tensor
    scale: float
    exclusion: Exclusion
    bias: float = 0.0

    def given(self, bound: float = math.inf) -> backend.Matrix:
        """S as backends take it."""
        return backend.Matrix(self.query, self.key, self.scale, self.exclusion, bound)

    def leaves(self) -> Matrix:
        """The rounded inputs in float64, each waiting for its gradient."""
        query, key = (x.detach().double().requires_grad_() for x in (self.query, self.key))
        numbers = [torch.tensor(x).double().requires_grad_() for x in (self.scale, self.bias)]
        return Matrix(query, key, numbers[0], self.exclusion, numbers[1])

    def logits(self) -> Tensor:
        """S with `-inf` where a pair is left out."""
        s = self.scale * self.query @ self.key.T + self.bias
        return s.masked_fill(left_out(self.exclusion, *s.shape), -math.inf)


def left_out(exclusion: Exclusion, n: int, m: int) -> Tensor:
    """The rule of `Exclusion`, pair by pair."""
    offset, period, query_ids, key_ids, keep_equal = exclusion
    rows = [None] * n if query_ids is None else query_ids.tolist()
    columns = [None] * m if key_ids is None else key_ids.tolist()

    def excluded(i: int, j: int) -> bool:
        on_diagonal = period > 0 and (j - i - offset) % period == 0
        return on_diagonal or (query_ids is not None and (rows[i] == columns[j]) != keep_equal)

    return torch.tensor([[excluded(i, j) for j in range(m)] for i in range(n)], dtype=torch.bool).reshape(n, m)


def log_sum_exp(s: Tensor, dim: int) -> Tensor:
    """Log-sum-exp whose gradient is zero, not NaN, where all is left out."""
    empty = (s == -math.inf).all(dim, keepdim=True)
    return s.masked_fill(empty, 0.0).logsumexp(dim).masked_fill(empty.squeeze(dim), -math.inf)


def surrounded(x: Tensor) -> Tensor:
    """The same values as a view into memory that is NaN (or, for integers, equal to the first value) all around."""
    rows = x.shape[0]
    filler = x[0].reshape(-1)[0] if rows and not x.is_floating_point() else math.nan
    buffer = torch.full((rows + 64, *x.shape[1:]), filler, dtype=x.dtype)
    view = buffer[:rows] if x.dim() > 1 else buffer[16 : 16 + rows]
    view.copy_(x)
    return view


def embeddings(rows: int, width: int, dtype: torch.dtype, spread: float = 1.0) -> Tensor:
    """Random rows of length `spread`."""
    x = torch.randn(rows, width)
    return surrounded((spread * x / x.norm(dim=1, keepdim=True)).to(dtype))


def exclusions(n: int, m: int) -> dict[str, Exclusion]:
    """Every kind of pattern, ragged ones included."""
    query_ids, key_ids = surrounded(torch.randint(0, 7, (n,))), surrounded(torch.randint(0, 7, (m,)))
    return {
        "nothing": Exclusion.nothing(),
        "diagonal": Exclusion.diagonal(n, m),
        "diagonal right": Exclusion.diagonal(n, m, 11),
        "diagonal left": Exclusion.diagonal(n, m, -40),
        "period of a tile and more": Exclusion(offset=-3, period=67),
        "short period": Exclusion(offset=5, period=9),
        "ids": Exclusion.equal_ids(query_ids, key_ids),
        "small ids": Exclusion.equal_ids(query_ids.int(), key_ids.int()),
        "different ids": Exclusion(query_ids=query_ids, key_ids=key_ids, keep_equal=True),
        "ids and diagonal": Exclusion(1, 50, query_ids, key_ids),
        "different ids and diagonal": Exclusion(1, 50, query_ids, key_ids, True),
    }
