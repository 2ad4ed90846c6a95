"""The delta family: four losses whose optimum is the logarithm of one density ratio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ssl_heads import _check
from ssl_heads._modes import without_autocast
from ssl_heads._numerics import promote
from ssl_heads.distributed import GATHERS, Gather, Shard
from ssl_heads.functional._negatives import Negatives
from ssl_heads.functional._softmax import against_negatives
from ssl_heads.functional.dissimilarities import Dissimilarity, Transposed, check_dissimilarity
from ssl_heads.similarity import IMPLS, Impl

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

DeltaKind = Literal["nce", "infonce", "scl", "nwj"]
Ratio = Literal["exp", "linear"]
KINDS, RATIOS = get_args(DeltaKind), get_args(Ratio)

LARGEST_CLAMP = 40.0


class DeltaTerms(NamedTuple):
    """A loss of the delta family, and a number to log beside it.

    Attributes:
        loss: The loss, a scalar.
        clamp_rate: The share of exponentials that were continued linearly, a scalar without gradient; 0 for kinds that
            bound nothing. If it does not fall towards 0, the loss estimates something else.
    """

    loss: Tensor
    clamp_rate: Tensor


class DeltaSettings(NamedTuple):
    """The choice of a loss of the family.

    Attributes:
        kind: The row of the table in `delta_contrast`.
        symmetric: InfoNCE in both directions.
        ratio: SCL of `exp(-D)` or of `-D`.
        clamp: Where the exponentials of SCL and NWJ turn into straight lines.
    """

    kind: DeltaKind
    symmetric: bool
    ratio: Ratio
    clamp: float

    def checked(self, gather: Gather, impl: Impl) -> DeltaSettings:
        """The settings with the clamp as a number.

        Raises:
            ValueError: If a choice is unknown, or the kind does not have it.
        """
        _check.choice("kind", self.kind, KINDS)
        _check.choice("ratio", self.ratio, RATIOS)
        clamp = float(_check.positive("clamp", self.clamp))
        if clamp > LARGEST_CLAMP:
            raise ValueError(
                f"clamp must be at most {LARGEST_CLAMP}, so that sums of exp(2 clamp) stay finite, got {clamp}"
            )
        _check.choice("gather", gather, GATHERS)
        _check.choice("impl", impl, IMPLS)
        if gather == "ring":
            raise ValueError('gather="ring" has no delta loss: use "all", which holds the columns of all ranks on each')
        if self.symmetric and self.kind != "infonce":
            raise ValueError(
                f'symmetric=True is a choice of kind="infonce"; {self.kind!r} treats rows and columns alike'
            )
        if self.ratio == "linear" and self.kind != "scl":
            raise ValueError(f'ratio="linear" is a choice of kind="scl"; {self.kind!r} needs a ratio above zero')
        return self._replace(clamp=clamp)

    def facts(self, dissimilarity: object) -> dict[str, object]:
        """The facts that must be equal on all ranks that share a batch."""
        configuration = dissimilarity.extra_repr() if isinstance(dissimilarity, torch.nn.Module) else ""
        named = f"{type(dissimilarity).__name__}({configuration})"
        choices = f"{self.symmetric}, {self.ratio}, {self.clamp}"
        return {"call": "delta", "kind": self.kind, "dissimilarity": named, "settings": choices}


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
    r"""Contrast of pairs `(z_i, w_i)` with pairs `(z_i, w_j)`, `i != j`.

    .. math:: D_{ij} = d(z_i, w_j) + \alpha_i + \tilde\alpha_j, \qquad r_{ij} = e^{-D_{ij}}

    With :math:`E_p` the mean over the pairs and :math:`E_q` the mean over all `i != j`:

    =============  ==============================================================  ====================================
    kind           loss                                                            its minimum
    =============  ==============================================================  ====================================
    ``"nce"``      :math:`E_p\,\text{softplus}(D) + E_q\,\text{softplus}(-D)`      2 log 2 - 2 JSD(p, q)
    ``"infonce"``  :math:`E_p\,[D_{ii} + \log \sum_j e^{-D_{ij}}]`                 log n - I
    ``"scl"``      :math:`-2 E_p\,r + E_q\,r^2`                                    -(1 + chi^2)
    ``"nwj"``      :math:`E_p\,D + E_q\,r - 1`                                     -I
    =============  ==============================================================  ====================================

    All four are minimal at :math:`r = p / q`, the ratio of the joint density to the product of marginals (InfoNCE up to
    a factor of each row). The variance of ``"scl"`` and ``"nwj"`` grows with the ratio itself: use them where the ratio
    is small.

    Args:
        z: Shape (n, d).
        w: Shape (n, d), row by row the positives of `z`.
        kind: Which loss.
        dissimilarity: An object as in `Dissimilarity`, for instance `ssl_heads.LpPower(1)`.
        alpha: The correction of the rows, of shape (n,); None for zero.
        alpha_tilde: The correction of the columns, of shape (n,); None for zero.
        symmetric: InfoNCE only: columns find their row as rows find their column, in equal parts.
        ratio: SCL only: ``"linear"`` takes :math:`r = -D`, the classic spectral loss.
        clamp: The largest `-D` that ``"scl"`` and ``"nwj"`` exponentiate; beyond, the tangent goes on: the value stays
            finite, the gradient is bounded and never zero.
        gather, group: Whose columns the rows of this rank are contrasted with, see `ssl_heads.distributed`; ``"ring"``
            is refused.
        impl: How the matrix is reduced, see `ssl_heads.similarity.Impl`. Dissimilarities that factor go through the
            engine, the others over blocks of rows that are computed again in the backward pass.

    Returns:
        A scalar in float32 (float64 for float64 inputs). One pair has no negatives: their mean is 0.

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
    settings = DeltaSettings(kind, symmetric, ratio, clamp)

    def checked() -> DeltaSettings:
        _check.paired("z", z, "w", w)
        check_dissimilarity(dissimilarity)
        check_corrections(z, alpha, alpha_tilde)
        return settings.checked(gather, impl)

    facts = settings.facts(dissimilarity) | {"alpha": alpha, "alpha_tilde": alpha_tilde}
    shard, settings = Shard.of(gather, group, {"z": z, "w": w}, facts, checked)
    return terms_of_pairs(z, w, settings, dissimilarity, alpha, alpha_tilde, shard, impl)


def terms_of_pairs(
    z: Tensor,
    w: Tensor,
    settings: DeltaSettings,
    dissimilarity: Dissimilarity,
    alpha: Tensor | None,
    alpha_tilde: Tensor | None,
    shard: Shard,
    impl: Impl,
) -> DeltaTerms:
    """`delta_terms` of inputs that are checked, where the place of the rows among all ranks is known."""
    with without_autocast(z):
        z, w = promote(z), promote(w)
        rows, columns = (torch.zeros_like(z[:, 0]) if a is None else a.to(z.dtype) for a in (alpha, alpha_tilde))
        positive = -(dissimilarity.paired(z, w) + rows + columns)
        negatives = Negatives(z, shard.gathered(w), rows, shard.gathered(columns), dissimilarity, shard, impl)
        if settings.kind == "infonce":
            loss = against_negatives(negatives.row_log_sum_exp(), positive)
            if settings.symmetric:
                by_column = Transposed(dissimilarity)
                others = Negatives(w, shard.gathered(z), columns, shard.gathered(rows), by_column, shard, impl)
                loss = (loss + against_negatives(others.row_log_sum_exp(), positive)) / 2
            return _without_clamp(shard.ddp_mean(loss))
        if settings.kind == "nce":
            attraction = against_negatives(torch.zeros_like(positive), positive)
            return _without_clamp(shard.ddp_mean(attraction + negatives.mean_softplus()))
        if settings.ratio == "linear":
            return _without_clamp(shard.ddp_mean(negatives.mean_square() - 2 * positive))
        return _bounded(settings.kind, settings.clamp, positive, negatives, shard)


def _bounded(kind: DeltaKind, clamp: float, positive: Tensor, negatives: Negatives, shard: Shard) -> DeltaTerms:
    """NWJ and SCL: the kinds whose exponentials are bounded."""
    if kind == "nwj":
        repulsion, clamped = negatives.mean(lambda score: bounded_exp(score, clamp), clamp)
        return DeltaTerms(shard.ddp_mean(repulsion - positive - 1), clamped)
    repulsion, clamped = negatives.mean(lambda score: bounded_exp(score, clamp).square(), clamp)
    own = (positive.detach() > clamp).to(positive.dtype).mean()
    share = (own + clamped * (shard.total - 1)) / shard.total
    return DeltaTerms(shard.ddp_mean(repulsion - 2 * bounded_exp(positive, clamp)), share)


def check_corrections(z: Tensor, alpha: Tensor | None, alpha_tilde: Tensor | None) -> None:
    """Raise `ValueError` unless a correction holds one value a row."""
    corrections = {"alpha": alpha, "alpha_tilde": alpha_tilde}
    for name, x in ((name, x) for name, x in corrections.items() if x is not None):
        _check.tensor(name, x)
        if x.shape != z.shape[:1] or not x.is_floating_point():
            one = f"one value for each row of z: expected shape ({len(z)},)"
            raise ValueError(f"{name} must hold {one}, got {tuple(x.shape)} of {x.dtype}")


def bounded_exp(x: Tensor, clamp: float) -> Tensor:
    """`exp(x)`, continued by its tangent above `clamp`: convex, once differentiable, its slope at most e^clamp."""
    capped = x.clamp_max(clamp)
    return torch.exp(capped) * (1 + (x - capped))


def _without_clamp(loss: Tensor) -> DeltaTerms:
    return DeltaTerms(loss, torch.zeros_like(loss.detach()))
