"""The scores of pairs that are no positives: reduced over blocks of rows, never stored."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ssl_heads import similarity
from ssl_heads._modes import is_transformed, without_autocast
from ssl_heads.distributed import Shard
from ssl_heads.functional._softmax import row_dots
from ssl_heads.functional.dissimilarities import Dissimilarity
from ssl_heads.similarity import Exclusion, Impl, gram

BLOCK_ELEMENTS = 2**21
"""Largest number of elements of a block of rows against all columns, before it is reduced."""


class Negatives:
    """The scores `S_ij = -D_ij` of this rank's rows with all columns but their own: reduced, never stored.

    With a dissimilarity that factors S is a product of two matrices: the corrections are two more features,
    `S = [query, -alpha, 1] [key, 1, -alpha_tilde]^T`.
    """

    def __init__(
        self,
        z: Tensor,
        w: Tensor,
        rows: Tensor,
        columns: Tensor,
        dissimilarity: Dissimilarity,
        shard: Shard,
        impl: Impl,
    ) -> None:
        self.z, self.w, self.rows, self.columns = z, w, rows, columns
        self.dissimilarity, self.impl, self.own = dissimilarity, impl, shard.own
        self.pairs = max(shard.rows * (shard.total - 1), 1)
        self.diagonal = Exclusion.diagonal(shard.rows, shard.total, shard.own.start)
        factors = dissimilarity.factors(z, w)
        self.factors = None if factors is None else _with_biases(factors, -rows, -columns)

    def row_log_sum_exp(self) -> Tensor:
        """Log-sum-exp of every row."""
        if self.factors is not None:
            return similarity.log_sum_exp(*self.factors, exclusion=self.diagonal, impl=self.impl)[0]
        return torch.cat(self._reduced(lambda scores, own: scores.masked_fill(own, -torch.inf).logsumexp(1)))

    def mean_softplus(self) -> Tensor:
        """Mean of `softplus(S_ij)`."""
        if self.factors is None:
            return self.mean(F.softplus)[0]
        bias = self.z.new_zeros(())
        return similarity.softplus_sum(*self.factors, 1.0, bias, exclusion=self.diagonal, impl=self.impl) / self.pairs

    def mean_square(self) -> Tensor:
        """Mean of `S_ij^2`, through d x d moments where the dissimilarity factors."""
        if self.factors is None:
            return self.mean(torch.square)[0]
        query, key = self.factors
        return (gram.square_sum(query, key) - row_dots(query, key[self.own]).square().sum()) / self.pairs

    def mean(self, phi: Callable[[Tensor], Tensor], clamp: float = torch.inf) -> tuple[Tensor, Tensor]:
        """Mean of `phi(S_ij)`, and the share of scores above `clamp`."""

        def sums(scores: Tensor, own: Tensor) -> Tensor:
            above = (scores.detach() > clamp) & ~own
            return torch.stack([phi(scores).masked_fill(own, 0).sum(), above.sum().to(scores.dtype)])

        mean, share = (torch.stack(self._reduced(sums)).sum(0) / self.pairs).unbind()
        return mean, share.detach()

    def _reduced(self, reduce: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        """`reduce` of each block of rows; the backward pass computes the scores again."""
        if self.impl not in ("auto", "dense", "tiled"):
            raise ValueError(
                f'impl="{self.impl}" computes "infonce", "nce" and the linear "scl" of a dissimilarity with '
                'factors (NegativeDot, NegativeCosine and SquaredEuclidean): pass impl="tiled" for others'
            )

        versions = self._versions()

        def reduced(i: Tensor, *inputs: Tensor) -> Tensor:
            if versions != self._versions():
                raise RuntimeError(
                    "embeddings of a delta loss were modified by an inplace operation before its backward pass, which "
                    "reads them again: pass a clone"
                )
            with without_autocast(i):
                scores = self._scores(*inputs)
                own = i[:, None] == torch.arange(scores.shape[1], device=scores.device)
                return reduce(scores, own)

        positions = torch.arange(self.own.start, self.own.stop, device=self.z.device)
        by_row = (positions, self.z, self.rows) if self.factors is None else (positions, self.factors[0])
        blocks = list(zip(*(torch.split(x, self._rows_at_once()) for x in by_row), strict=True))
        if len(blocks) == 1:
            return [reduced(*blocks[0])]
        return [checkpoint(reduced, *block, use_reentrant=False, preserve_rng_state=False) for block in blocks]

    def _versions(self) -> list[int]:
        """Version counters of the inputs: a block that is computed again must read the same values."""
        if torch.compiler.is_compiling() or is_transformed():
            return []
        return [x._version for x in (self.z, self.w, self.rows, self.columns) if not x.is_inference()]

    def _rows_at_once(self) -> int:
        rows, d = self.z.shape
        width = len(self.w) * (d if self.factors is None else 1)
        whole = self.impl == "dense" or is_transformed()  # torch.func supports no checkpoint
        return rows if whole else max(1, BLOCK_ELEMENTS // width)

    def _scores(self, query: Tensor, rows: Tensor | None = None) -> Tensor:
        if self.factors is not None:
            return query @ self.factors[1].mT
        assert rows is not None
        return -(self.dissimilarity.pairwise(query, self.w) + rows[:, None] + self.columns)


def _with_biases(factors: tuple[Tensor, Tensor], row_bias: Tensor, column_bias: Tensor) -> tuple[Tensor, Tensor]:
    query, key = factors
    return (
        torch.cat([query, torch.stack([row_bias, torch.ones_like(row_bias)], dim=1)], dim=1),
        torch.cat([key, torch.stack([torch.ones_like(column_bias), column_bias], dim=1)], dim=1),
    )
