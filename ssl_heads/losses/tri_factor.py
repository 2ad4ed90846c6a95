"""Tri-factor contrastive learning: similarities with a learned importance of every dimension."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from ssl_heads import _check, functional
from ssl_heads.distributed import Gather
from ssl_heads.functional.spectral import decorrelation_term
from ssl_heads.heads.importance import FeatureImportance
from ssl_heads.losses._base import GatheringLoss
from ssl_heads.losses.steps import optimizer_steps
from ssl_heads.similarity import Impl

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

STEPS_BEFORE_WARNING = 100


class TriFactorTerms(NamedTuple):
    """The two terms of tri-factor contrastive learning.

    Attributes:
        contrast: The contrast with importance, a scalar.
        decorrelation: The decorrelation, before its weight, a scalar.
    """

    contrast: Tensor
    decorrelation: Tensor


class TriFactorContrast(GatheringLoss):
    r"""Contrast with importance plus decorrelation: dimensions that are ordered, and the same for every seed.

    .. math:: L = L_\text{contrast}(u^\top S u') + w \, L_\text{decorrelation}(u),\quad S = \text{diag}(s)

    The importance must be trained: give an importance that your model owns, or the parameters of this loss, to the
    optimiser. In the released code no optimiser has it. This loss warns once when optimisers have taken 100 steps and
    the importance kept its values.

    Args:
        dim: Width of the embeddings, for an importance that this loss owns.
        importance: An importance that lives in a model, instead of `dim`.
        kind: ``"infonce"`` or ``"spectral"``.
        temperature: Divides the similarities; the spectral kind has none.
        decorrelation_weight: Weight of the second term.
        two_towers: Whether the views come from two encoders, each with a decorrelation of its own.
        gather, group: Whose rows are compared and decorrelated, see `ssl_heads.distributed`.
        impl: How the similarity matrix is reduced, see `ssl_heads.similarity.Impl`.

    Raises:
        ValueError: If neither or both of `dim` and `importance` are given, or a number is out of range.

    Reference:
        Identifiable contrastive learning with automatic feature importance discovery (arXiv 2310.18904), equations 8,
        9, 16 and 17.

    Example:
        >>> import torch
        >>> from ssl_heads import TriFactorContrast
        >>> loss = TriFactorContrast(16)
        >>> z0, z1 = torch.randn(2, 8, 16)
        >>> loss(z0, z1).shape, loss.importance.order().shape
        (torch.Size([]), torch.Size([16]))
    """

    takes = "views"
    configuration = ("kind", "temperature", "decorrelation_weight", "two_towers", "gather", "impl")

    def __init__(
        self,
        dim: int | None = None,
        *,
        importance: FeatureImportance | None = None,
        kind: Literal["infonce", "spectral"] = "infonce",
        temperature: float = 0.2,
        decorrelation_weight: float = 1.0,
        two_towers: bool = False,
        gather: Gather = "none",
        group: ProcessGroup | None = None,
        impl: Impl = "auto",
    ) -> None:
        super().__init__(gather, group, impl)
        if (dim is None) == (importance is None):
            raise ValueError(f"give either dim or importance, got dim={dim} and importance={importance}")
        if importance is not None and not isinstance(importance, FeatureImportance):
            raise ValueError(f"importance must be a FeatureImportance, got {type(importance).__name__}")
        _check.choice("kind", kind, ("infonce", "spectral"))
        self.importance = importance if importance is not None else FeatureImportance(dim)  # type: ignore[arg-type]
        self.kind, self.temperature = kind, _check.positive("temperature", temperature)
        self.decorrelation_weight = _check.not_negative("decorrelation_weight", decorrelation_weight)
        self.two_towers = two_towers
        self._watched: tuple[int, Tensor] | None = None
        self._last_step, self._steps_unmoved, self._warned = 0, 0, False

    def forward(self, z0: Tensor, z1: Tensor, *, temperature: float | Tensor | None = None) -> Tensor:
        """Two views of shape (n, d) to a scalar; a temperature is this call's."""
        contrast, decorrelation = self.named_terms(z0, z1, temperature=temperature).values()
        return contrast + decorrelation

    def named_terms(self, *views: Tensor, temperature: float | Tensor | None = None) -> dict[str, Tensor]:
        """The two terms, weighted, by the names that trainers log."""
        if self.training and not torch.compiler.is_compiling():
            self._warn_if_unmoved()
        terms = self.terms(*views, temperature=temperature)
        return {"contrast_loss": terms.contrast, "decorrelation_loss": self.decorrelation_weight * terms.decorrelation}

    def terms(self, z0: Tensor, z1: Tensor, *, temperature: float | Tensor | None = None) -> TriFactorTerms:
        """The two terms, for logging: their sum, with the weight, is the loss."""
        if temperature is not None and self.kind == "spectral":
            raise ValueError(f'kind="spectral" has no temperature, got {temperature}')
        contrast = self._contrast(z0, z1, self.importance(), self.temperature if temperature is None else temperature)
        views = (z0, z1) if self.two_towers else (torch.cat([z0, z1]),)
        each = [decorrelation_term(z, True, self.gather, self.group, self.decorrelation_weight) for z in views]
        return TriFactorTerms(contrast, torch.stack(each).sum())

    def _contrast(self, z0: Tensor, z1: Tensor, s: Tensor, temperature: float | Tensor) -> Tensor:
        if self.kind == "spectral":
            spectral = functional.tri_factor_spectral_two_towers if self.two_towers else functional.tri_factor_spectral
            return spectral(z0, z1, s, gather=self.gather, group=self.group)
        infonce = functional.tri_factor_two_towers if self.two_towers else functional.tri_factor_contrast
        return infonce(z0, z1, s, temperature, gather=self.gather, group=self.group, impl=self.impl)

    def _warn_if_unmoved(self) -> None:
        """Warn once if optimisers have taken many steps and the importance kept its values.

        A new version of the parameter proves a change; fused optimisers keep the version, so values are compared. A
        call counts if an optimiser has taken a step since the last one: gradient accumulation, recomputation and calls
        without training do not.
        """
        theta = self.importance.theta
        if self._warned or not theta.requires_grad or not torch.is_grad_enabled():
            return
        step = optimizer_steps()
        if self._watched is None or self._watched[0] != theta._version:
            self._watched, self._last_step, self._steps_unmoved = (theta._version, theta.detach().clone()), step, 0
        self._steps_unmoved += step != self._last_step
        self._last_step = step
        if self._steps_unmoved < STEPS_BEFORE_WARNING:
            return
        before = self._watched[1]
        if before.device != theta.device or not torch.equal(before, theta):
            self._watched = None
            return
        self._warned = True
        warnings.warn(
            f"the importance has not changed while optimisers took {STEPS_BEFORE_WARNING} steps: give its parameters "
            "to one, for instance optimizer.add_param_group({'params': loss.parameters(), 'weight_decay': 0}), "
            "or freeze it with loss.importance.requires_grad_(False)",
            stacklevel=4,
        )
