"""The delta-contrastive losses as a module that owns its dissimilarity and its corrections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from ssl_heads import _check
from ssl_heads._modes import is_transformed, without_autocast
from ssl_heads._numerics import promote
from ssl_heads.distributed import Gather, Shard
from ssl_heads.functional.delta import DeltaKind, DeltaSettings, DeltaTerms, Ratio, check_corrections, terms_of_pairs
from ssl_heads.functional.dissimilarities import Dissimilarity, check_dissimilarity
from ssl_heads.losses._base import GatheringLoss
from ssl_heads.losses.corrections import MLPCorrection, ScalarCorrection
from ssl_heads.losses.dissimilarities import NegativeCosine
from ssl_heads.similarity import Impl

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

ROWS_TO_START_FROM = 512


class DeltaContrast(GatheringLoss):
    r"""Contrastive learning that recovers latents: the dissimilarity decides which, corrections absorb the marginals.

    .. math:: D_{ij} = d(z_i, w_j) + \alpha(z_i) + \tilde\alpha(w_j) \;\to\; -\log\frac{p(z_i, w_j)}{p(z_i)\,p(w_j)}

    d is an assumption about how positives vary; :math:`\alpha` and :math:`\tilde\alpha` take up what the marginals add.
    At the optimum the embeddings are the true latents, up to the symmetries of d: order, sign and shift for
    `LpPower(1)`, a rotation more for `SquaredEuclidean()`.

    With :math:`r = e^{-D}`, :math:`E_p` the mean over the pairs and :math:`E_q` the mean over all `i != j`:

    =============  ==============================================================
    kind           loss
    =============  ==============================================================
    ``"nce"``      :math:`E_p\,\text{softplus}(D) + E_q\,\text{softplus}(-D)`
    ``"infonce"``  :math:`E_p\,[D_{ii} + \log \sum_j e^{-D_{ij}}]`
    ``"scl"``      :math:`-2 E_p\,r + E_q\,r^2`
    ``"nwj"``      :math:`E_p\,D + E_q\,r - 1`
    =============  ==============================================================

    Corrections are trained: give `loss.parameters()` to the optimiser. What a kind cannot train is refused: one-sided
    InfoNCE does not depend on alpha, and no InfoNCE on a constant.

    Args:
        kind: ``"nce"``, ``"infonce"``, ``"scl"`` or ``"nwj"``.
        dissimilarity: A module as `LpPower`, `SquaredEuclidean`, `NegativeCosine`, or your own with the methods of
            `ssl_heads.functional.dissimilarities.Dissimilarity`. None for the negative cosine with T = 0.2.
        alpha: The correction of the rows, a module (n, d) -> (n,), or None for zero. ``"auto"`` is a `ScalarCorrection`
            where the kind needs an offset, else None.
        alpha_tilde: The correction of the columns.
        symmetric: InfoNCE in both directions.
        ratio: ``"linear"`` makes ``"scl"`` the classic spectral loss.
        clamp: Where the exponentials of ``"scl"`` and ``"nwj"`` turn into straight lines; `terms` tells how often.
        gather, group: Whose columns the rows of this rank are contrasted with, see `ssl_heads.distributed`; ``"ring"``
            is refused.
        impl: How the matrix is reduced, see `ssl_heads.similarity.Impl`.

    Raises:
        ValueError: If a choice is unknown, a kind does not have it, or a correction cannot be trained.

    Reference:
        A unified framework for disentanglement by contrastive learning (arXiv 2311.04774).

    Example:
        >>> import torch
        >>> from ssl_heads import DeltaContrast, LpPower, MLPCorrection
        >>> loss = DeltaContrast("nwj", LpPower(1), alpha=MLPCorrection(3), alpha_tilde=MLPCorrection(3))
        >>> z, w = torch.randn(2, 64, 3)
        >>> loss(z, w).shape
        torch.Size([])
    """

    takes = "views"
    configuration = ("kind", "symmetric", "ratio", "clamp", "gather", "impl")

    def __init__(
        self,
        kind: DeltaKind = "infonce",
        dissimilarity: nn.Module | None = None,
        alpha: nn.Module | Literal["auto"] | None = "auto",
        alpha_tilde: nn.Module | None = None,
        *,
        symmetric: bool = False,
        ratio: Ratio = "exp",
        clamp: float = 15.0,
        gather: Gather = "none",
        group: ProcessGroup | None = None,
        impl: Impl = "auto",
    ) -> None:
        super().__init__(gather, group, impl)
        settings = DeltaSettings(kind, symmetric, ratio, clamp).checked(gather, impl)
        if alpha == "auto":
            alpha = ScalarCorrection() if kind != "infonce" and ratio == "exp" else None
        dissimilarity = NegativeCosine() if dissimilarity is None else dissimilarity
        _check_modules(dissimilarity, alpha, alpha_tilde)
        _check_trainable(kind, symmetric, alpha, alpha_tilde)
        self.kind, self.symmetric, self.ratio, self.clamp = settings
        self.dissimilarity, self.alpha, self.alpha_tilde = dissimilarity, alpha, alpha_tilde

    def forward(self, z: Tensor, w: Tensor) -> Tensor:
        """Embeddings of both sides, of shape (n, d), to a scalar."""
        return self.terms(z, w).loss

    def terms(self, z: Tensor, w: Tensor) -> DeltaTerms:
        """The loss, and the share of pairs that the bounded exponential changed, for logging."""

        def checked() -> tuple[Tensor | None, Tensor | None]:
            _check.paired("z", z, "w", w)
            values = _apply(self.alpha, z), _apply(self.alpha_tilde, w)
            check_corrections(z, *values)
            return values

        starts = self._may_start()
        settings = DeltaSettings(self.kind, self.symmetric, self.ratio, self.clamp)
        facts = settings.facts(self.dissimilarity) | {
            "alpha": _described(self.alpha),
            "alpha_tilde": _described(self.alpha_tilde),
            "impl": self.impl,
            "start of the corrections from this batch": starts,
        }
        shard, (alpha, alpha_tilde) = Shard.of(self.gather, self.group, {"z": z, "w": w}, facts, checked)
        if starts:
            alpha, alpha_tilde = self._start(z, w, alpha, alpha_tilde, shard)
        dissimilarity: Dissimilarity = self.dissimilarity  # type: ignore[assignment]  # checked in the constructor
        return terms_of_pairs(z, w, settings, dissimilarity, alpha, alpha_tilde, shard, self.impl)

    def _offsets(self) -> list[ScalarCorrection | None]:
        """The constant of each side that starts from data; None where none is trained."""
        sides = [c.offset if isinstance(c, MLPCorrection) else c for c in (self.alpha, self.alpha_tilde)]
        return [c if isinstance(c, ScalarCorrection) and c.value.requires_grad else None for c in sides]

    def _may_start(self) -> bool:
        """Whether this batch may start a correction; on a GPU, where reading waits, the device decides each time."""
        if not self.training or self.kind == "infonce" or is_transformed():
            return False
        return any(not _check.visible(c.started) or c.awaits_start for c in self._offsets() if c is not None)

    @torch.no_grad()
    def _proposal(self, z: Tensor, w: Tensor, alpha: Tensor | None, alpha_tilde: Tensor | None, shard: Shard) -> Tensor:
        """The constant that puts the median D of the first rows at 0, of shape (1,); NaN if the batch is not finite."""
        with without_autocast(z):
            z, w = promote(z), promote(w)
            finite = z.isfinite().all() & w.isfinite().all()
            corrections = [z.new_zeros(len(z)) if c is None else c.to(z.dtype) for c in (alpha, alpha_tilde)]
            first = shard.first(torch.cat([z, w, torch.stack(corrections, dim=1)], dim=1), ROWS_TO_START_FROM)
            z, w, rows, columns = torch.split(first, [z.shape[1], w.shape[1], 1, 1], dim=1)
            d: Tensor = self.dissimilarity.pairwise(z, w) + rows + columns.mT  # type: ignore[operator]
            refused = shard.all_reduce(torch.where(finite, 0.0, torch.nan)).to(d.dtype)
        return (refused - d.median()).reshape(1)

    def _start(
        self, z: Tensor, w: Tensor, alpha: Tensor | None, alpha_tilde: Tensor | None, shard: Shard
    ) -> tuple[Tensor | None, Tensor | None]:
        """Put the median D of the first finite batch at 0, where every kind has a gradient; the values thus corrected.

        The first correction that has not started takes the whole shift, or half where one module corrects both sides.
        """
        left = self._proposal(z, w, alpha, alpha_tilde, shard)
        left = left / 2 if self.alpha is self.alpha_tilde else left
        for offset in self._offsets():
            # Rounded to the dtype of each offset: a value that overflows there is not finite.
            left = left if offset is None else left.to(offset.value.dtype).to(left.dtype)
        accepted, starts, moved = left.isfinite(), [], []
        for offset, values in zip(self._offsets(), (alpha, alpha_tilde), strict=True):
            if offset is None or values is None:
                moved.append(values)
                continue
            starting = accepted & (offset.started == 0)
            shift = torch.where(starting, left, 0.0)
            left = left if self.alpha is self.alpha_tilde else torch.where(starting, 0.0, left)
            moved.append(values + shift)
            starts.append((offset, torch.where(accepted, offset.value.detach() + shift, torch.nan)))
        # Written after both sides are computed: alpha and alpha_tilde may be one module.
        for offset, start in starts:
            offset.start_at(start)
        return moved[0], moved[1]


def _described(correction: nn.Module | None) -> str:
    trained = correction is not None and any(p.requires_grad for p in correction.parameters())
    return type(correction).__name__ + (", trained" if trained else "")


def _apply(correction: nn.Module | None, x: Tensor) -> Tensor | None:
    if correction is None:
        return None
    with without_autocast(x):
        values: Tensor = correction(promote(x))
    return values


def _check_modules(dissimilarity: nn.Module, alpha: object, alpha_tilde: object) -> None:
    check_dissimilarity(dissimilarity)
    for name, correction in (("alpha", alpha), ("alpha_tilde", alpha_tilde)):
        if correction is not None and not isinstance(correction, nn.Module):
            raise ValueError(f"{name} must be a module (n, d) -> (n,) or None, got {correction!r}")


def _check_trainable(kind: DeltaKind, symmetric: bool, alpha: nn.Module | None, alpha_tilde: nn.Module | None) -> None:
    if kind != "infonce":
        return
    if alpha is not None and not symmetric:
        raise ValueError(
            f"alpha={alpha} would never be trained: a correction of the rows cancels in one-sided InfoNCE. Leave it "
            "out, pass it as alpha_tilde, or pass symmetric=True"
        )
    for name, correction in (("alpha", alpha), ("alpha_tilde", alpha_tilde)):
        if isinstance(correction, ScalarCorrection):
            raise ValueError(f"{name}=ScalarCorrection() would never be trained: a constant cancels in InfoNCE")
