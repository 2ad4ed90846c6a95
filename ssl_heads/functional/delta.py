"""The delta family: four losses whose optimum is the logarithm of one density ratio."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ssl_heads import _check, similarity
from ssl_heads._modes import is_transformed, without_autocast
from ssl_heads._numerics import promote
from ssl_heads.distributed import Gather, Shard, check_gather
from ssl_heads.functional.contrastive import against_negatives, row_dots
from ssl_heads.similarity import Exclusion, Impl, check_impl, gram

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

DeltaKind = Literal["nce", "infonce", "scl", "nwj"]
Ratio = Literal["exp", "linear"]
KINDS, RATIOS = get_args(DeltaKind), get_args(Ratio)

BLOCK_ELEMENTS = 2**21
"""Largest number of elements of a block of rows against all columns, before it is reduced."""


class Dissimilarity(Protocol):
    """How unlike two embeddings are. All of it in fp32 or fp64, whatever autocast says."""

    def paired(self, z: Tensor, w: Tensor) -> Tensor:
        """``d(z_i, w_i)``, of shape (n,)."""
        ...

    def pairwise(self, z: Tensor, w: Tensor) -> Tensor:
        """``d(z_i, w_j)``, of shape (n, m)."""
        ...

    def factors(self, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor] | None:
        """Query and key with ``-d(z_i, w_j) = <query_i, key_j>``; None if there is no such form."""
        ...


class Transposed:
    """A dissimilarity whose arguments have changed places."""

    def __init__(self, of: Dissimilarity) -> None:
        self.of = of

    def paired(self, z: Tensor, w: Tensor) -> Tensor:
        """``d(w_i, z_i)``, of shape (n,)."""
        return self.of.paired(w, z)

    def pairwise(self, z: Tensor, w: Tensor) -> Tensor:
        """``d(w_j, z_i)``, of shape (n, m)."""
        return self.of.pairwise(w, z).mT

    def factors(self, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor] | None:
        """The factors, changed round."""
        factors = self.of.factors(w, z)
        return None if factors is None else (factors[1], factors[0])


class DeltaTerms(NamedTuple):
    """A loss of the delta family, with what is worth logging beside it.

    Attributes:
        loss: The loss, a scalar.
        clamp_rate: The share of exponentials that were continued linearly, a scalar without gradient; 0 for kinds that
            bound nothing. If it does not fall towards 0, the loss estimates something else.
    """

    loss: Tensor
    clamp_rate: Tensor


def delta_contrast(
    z: Tensor,
    w: Tensor,
    kind: DeltaKind,
    dissimilarity: Dissimilarity,
    alpha: Tensor | None = None,
    alpha_tilde: Tensor | None = None,
    *,
    symmetric: bool = False,
    ratio: Ratio = "exp",
    clamp: float = 15.0,
    gather: Gather = "none",
    group: ProcessGroup | None = None,
    impl: Impl = "auto",
) -> Tensor:
    r"""Contrast of pairs ``(z_i, w_i)`` with pairs ``(z_i, w_j)``, ``i != j``.

    .. math:: D_{ij} = d(z_i, w_j) + \alpha_i + \tilde\alpha_j, \qquad r_{ij} = e^{-D_{ij}}

    With :math:`E_p` the mean over the pairs and :math:`E_q` the mean over all ``i != j``:

    ===========  ==============================================================  ====================================
    kind         loss                                                            its minimum
    ===========  ==============================================================  ====================================
    ``nce``      :math:`E_p\,\text{softplus}(D) + E_q\,\text{softplus}(-D)`      2 log 2 - 2 JSD(p, q)
    ``infonce``  :math:`E_p\,[D_{ii} + \log \sum_j e^{-D_{ij}}]`                 log n - I
    ``scl``      :math:`-2 E_p\,r + E_q\,r^2`                                    -(1 + chi^2)
    ``nwj``      :math:`E_p\,D + E_q\,r - 1`                                     -I
    ===========  ==============================================================  ====================================

    All four are minimal at :math:`r = p / q`, the ratio of the joint density to the product of marginals (InfoNCE up to
    a factor of each row). The variance of ``scl`` and ``nwj`` grows with the ratio itself: use them where it is small.

    Args:
        z: Shape (n, d).
        w: Shape (n, d), row by row the positives of ``z``.
        kind: Which loss.
        dissimilarity: An object as in `Dissimilarity`, for instance ``ssl_heads.LpPower(1)``.
        alpha: The correction of the rows, of shape (n,); None for zero.
        alpha_tilde: The correction of the columns, of shape (n,); None for zero.
        symmetric: InfoNCE only: columns find their row as rows find their column, in equal parts.
        ratio: SCL only: ``"linear"`` takes :math:`r = -D`, the classic spectral loss.
        clamp: Where ``-D`` exceeds it, ``scl`` and ``nwj`` continue the exponential by its tangent: the value stays
            finite, the gradient is bounded and never zero.
        gather: ``"all"`` contrasts this rank's rows with the columns of all ranks, ``"none"`` with its own.
        group: The ranks that hold the batch; None is the default group.
        impl: How the matrix is reduced. Forms that factor run through `ssl_heads.similarity`, the others over blocks
            of rows that are computed again in the backward pass.

    Returns:
        A scalar in fp32 (fp64 for fp64 inputs). One pair has no negatives: their mean is 0.

    Raises:
        ValueError: If shapes do not fit, or a choice or a combination is none of the above.

    Reference:
        A unified framework for disentanglement by contrastive learning (arXiv 2311.04774).

    Example:
        >>> import torch
        >>> from ssl_heads import LpPower
        >>> from ssl_heads.functional import delta_contrast
        >>> z = torch.tensor([[0.0], [1.0]])
        >>> delta_contrast(z, z, "infonce", LpPower(1))
        tensor(0.3133)
    """
    return delta_terms(
        z,
        w,
        kind,
        dissimilarity,
        alpha,
        alpha_tilde,
        symmetric=symmetric,
        ratio=ratio,
        clamp=clamp,
        gather=gather,
        group=group,
        impl=impl,
    ).loss


def delta_terms(
    z: Tensor,
    w: Tensor,
    kind: DeltaKind,
    dissimilarity: Dissimilarity,
    alpha: Tensor | None = None,
    alpha_tilde: Tensor | None = None,
    *,
    symmetric: bool = False,
    ratio: Ratio = "exp",
    clamp: float = 15.0,
    gather: Gather = "none",
    group: ProcessGroup | None = None,
    impl: Impl = "auto",
) -> DeltaTerms:
    """`delta_contrast` together with its clamp rate; same arguments, same errors.

    Example:
        >>> import torch
        >>> from ssl_heads import NegativeDot
        >>> z = torch.full((2, 1), 3.0)
        >>> delta_terms(z, z, "nwj", NegativeDot(), clamp=8.0).clamp_rate
        tensor(1.)
    """

    def checked() -> float:
        _check.paired("z", z, "w", w)
        check_dissimilarity(dissimilarity)
        check_corrections(z, alpha, alpha_tilde)
        return check_delta(kind, symmetric, ratio, clamp, gather, impl)

    form = delta_form(kind, symmetric, ratio, clamp, dissimilarity) | {"alpha": alpha, "alpha_tilde": alpha_tilde}
    shard, clamp = Shard.of(gather, group, {"z": z, "w": w}, form, checked)
    return terms_of_pairs(
        z,
        w,
        kind,
        dissimilarity,
        alpha,
        alpha_tilde,
        symmetric=symmetric,
        ratio=ratio,
        clamp=clamp,
        shard=shard,
        impl=impl,
    )


def terms_of_pairs(
    z: Tensor,
    w: Tensor,
    kind: DeltaKind,
    dissimilarity: Dissimilarity,
    alpha: Tensor | None,
    alpha_tilde: Tensor | None,
    *,
    symmetric: bool,
    ratio: Ratio,
    clamp: float,
    shard: Shard,
    impl: Impl,
) -> DeltaTerms:
    """`delta_terms` of inputs that are checked, where it is known how the rows are spread over ranks."""
    with without_autocast(z):
        z, w = promote(z), promote(w)
        rows = torch.zeros_like(z[:, 0]) if alpha is None else alpha.to(z.dtype)
        columns = torch.zeros_like(z[:, 0]) if alpha_tilde is None else alpha_tilde.to(z.dtype)
        positive = -(dissimilarity.paired(z, w) + rows + columns)
        negatives = Negatives(z, shard.gathered(w), rows, shard.gathered(columns), dissimilarity, shard, impl)
        if kind == "infonce" and symmetric:
            seen_by_columns = Transposed(dissimilarity)
            columnwise = Negatives(w, shard.gathered(z), columns, shard.gathered(rows), seen_by_columns, shard, impl)
            by_row, by_column = (against_negatives(side.log_sum_exp(), positive) for side in (negatives, columnwise))
            return _without_clamp(shard.ddp_mean((by_row + by_column) / 2))
        if kind == "infonce":
            return _without_clamp(shard.ddp_mean(against_negatives(negatives.log_sum_exp(), positive)))
        if kind == "nce":
            attraction = against_negatives(torch.zeros_like(positive), positive)
            return _without_clamp(shard.ddp_mean(attraction + negatives.mean_softplus()))
        if kind == "scl" and ratio == "linear":
            return _without_clamp(shard.ddp_mean(negatives.mean_square() - 2 * positive))
        if kind == "nwj":
            repulsion, clamped = negatives.mean(lambda score: bounded_exp(score, clamp), clamp)
            return DeltaTerms(shard.ddp_mean(repulsion - positive - 1), clamped)
        repulsion, clamped = negatives.mean(lambda score: bounded_exp(score, clamp).square(), clamp)
        own = (positive.detach() > clamp).to(z.dtype).mean()
        share = (own + clamped * (shard.total - 1)) / shard.total
        return DeltaTerms(shard.ddp_mean(repulsion - 2 * bounded_exp(positive, clamp)), share)


LARGEST_CLAMP = 40.0


def check_delta(kind: str, symmetric: bool, ratio: str, clamp: float, gather: str, impl: Impl) -> float:
    """The clamp as a number; ``ValueError`` for an unknown choice, or a choice that the kind does not have."""
    _check.choice("kind", kind, KINDS)
    _check.choice("ratio", ratio, RATIOS)
    clamp = float(_check.positive("clamp", clamp))
    if clamp > LARGEST_CLAMP:
        raise ValueError(
            f"clamp must be at most {LARGEST_CLAMP}, so that sums of exp(2 clamp) stay finite; got {clamp}"
        )
    check_gather(gather)
    check_impl(impl)
    if gather == "ring":
        raise ValueError("gather='ring' has no delta loss: use 'all', which holds the columns of all ranks on each")
    if symmetric and kind != "infonce":
        raise ValueError(f"symmetric=True is a choice of kind='infonce'; {kind!r} treats rows and columns alike")
    if ratio == "linear" and kind != "scl":
        raise ValueError(f"ratio='linear' is a choice of kind='scl'; {kind!r} needs a ratio above zero")
    return clamp


def check_dissimilarity(dissimilarity: object) -> None:
    """Raise ``ValueError`` unless it has the methods of a `Dissimilarity`."""
    missing = [name for name in ("paired", "pairwise", "factors") if not callable(getattr(dissimilarity, name, None))]
    if missing:
        lacking = f"{type(dissimilarity).__name__} lacks {', '.join(missing)}"
        raise ValueError(f"dissimilarity {lacking}: see ssl_heads.functional.delta.Dissimilarity")


def check_corrections(z: Tensor, alpha: Tensor | None, alpha_tilde: Tensor | None) -> None:
    """Raise ``ValueError`` unless a correction holds one value a row."""
    corrections = {"alpha": alpha, "alpha_tilde": alpha_tilde}
    for name, x in ((name, x) for name, x in corrections.items() if x is not None):
        _check.tensor(name, x)
        if x.shape != z.shape[:1] or not x.is_floating_point():
            one = f"one value for each row of z: expected shape ({len(z)},)"
            raise ValueError(f"{name} must hold {one}, got {tuple(x.shape)} of {x.dtype}")


def delta_form(kind: str, symmetric: bool, ratio: str, clamp: float, dissimilarity: object) -> dict[str, object]:
    """What ranks that share a batch must agree about."""
    configuration = dissimilarity.extra_repr() if isinstance(dissimilarity, torch.nn.Module) else ""
    named = f"{type(dissimilarity).__name__}({configuration})"
    return {"call": "delta", "kind": kind, "dissimilarity": named, "form": f"{symmetric}, {ratio}, {clamp}"}


def bounded_exp(x: Tensor, clamp: float) -> Tensor:
    """``exp(x)``, continued by its tangent above ``clamp``: convex, once differentiable, its slope at most e^clamp."""
    capped = x.clamp_max(clamp)
    return torch.exp(capped) * (1 + (x - capped))


def _without_clamp(loss: Tensor) -> DeltaTerms:
    return DeltaTerms(loss, torch.zeros_like(loss.detach()))


class Negatives:
    """The scores ``S_ij = -D_ij`` of this rank's rows with all columns but their own: reduced, never stored.

    A form that factors becomes a product of two matrices: the corrections are two more features,
    ``S = [query, -alpha, 1] [key, 1, -alpha_tilde]^T``.
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

    def log_sum_exp(self) -> Tensor:
        """Log-sum-exp of every row."""
        if self.factors is not None:
            return similarity.log_sum_exp(*self.factors, exclusion=self.diagonal, impl=self.impl)[0]
        return torch.cat(self._reduced(lambda scores, own: scores.masked_fill(own, -torch.inf).logsumexp(1)))

    def mean_softplus(self) -> Tensor:
        """Mean of ``softplus(S_ij)``."""
        if self.factors is None:
            return self.mean(F.softplus)[0]
        bias = self.z.new_zeros(())
        return similarity.softplus_sum(*self.factors, 1.0, bias, exclusion=self.diagonal, impl=self.impl) / self.pairs

    def mean_square(self) -> Tensor:
        """Mean of ``S_ij^2``, through d x d moments where the form factors."""
        if self.factors is None:
            return self.mean(torch.square)[0]
        query, key = self.factors
        return (gram.square_sum(query, key) - row_dots(query, key[self.own]).square().sum()) / self.pairs

    def mean(self, phi: Callable[[Tensor], Tensor], clamp: float = torch.inf) -> tuple[Tensor, Tensor]:
        """Mean of ``phi(S_ij)``, and the share of scores above ``clamp``."""

        def sums(scores: Tensor, own: Tensor) -> Tensor:
            above = (scores.detach() > clamp) & ~own
            return torch.stack([phi(scores).masked_fill(own, 0).sum(), above.sum().to(scores.dtype)])

        mean, share = (torch.stack(self._reduced(sums)).sum(0) / self.pairs).unbind()
        return mean, share.detach()

    def _reduced(self, reduce: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        """The scores, a block of rows at a time; what is stored is what ``reduce`` makes of them."""
        if self.impl not in ("auto", "dense", "tiled"):
            raise ValueError(f"impl={self.impl!r} has no such form of this kind and dissimilarity; use 'tiled'")

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
        """How often each input was written to: a block that is computed again must find what it found before."""
        if torch.compiler.is_compiling() or is_transformed():
            return []
        return [x._version for x in (self.z, self.w, self.rows, self.columns) if not x.is_inference()]

    def _rows_at_once(self) -> int:
        rows, d = self.z.shape
        width = len(self.w) * (d if self.factors is None else 1)
        whole = self.impl == "dense" or is_transformed()  # torch.func takes no checkpoint
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
