"""The Bayesian gate: which dimensions of an embedding are in use, per sample."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from ssl_heads import _check
from ssl_heads._modes import is_recorded
from ssl_heads._numerics import at_least_float32
from ssl_heads._start import reset_parts
from ssl_heads.functional.gate import bernoulli_kl, concrete_gate, soft_gate, straight_through_gate
from ssl_heads.heads.mlp import MLP, Norm

Estimator = Literal["straight_through", "concrete", "soft"]
ESTIMATORS = get_args(Estimator)


class GatedEmbedding(NamedTuple):
    """The result of a `BayesianGate`.

    Attributes:
        embeddings: Shape (..., d), the input embeddings times the gate, in their dtype, not normalised.
        gate: Shape (..., d), the gate's values in [0, 1].
        probability: Shape (..., d), the posterior probability that a gate is open, float32 or wider.
        kl: Scalar, the divergence from the prior: the mean over rows of the sum over dimensions, float32 or wider.
    """

    embeddings: Tensor
    gate: Tensor
    probability: Tensor
    kl: Tensor


class BayesianGate(nn.Module):
    r"""Gate each dimension of each sample by a learned Bernoulli posterior with a sparse prior.

    .. math::
        a = \mathrm{MLP}(h), \quad p = \sigma(a / T), \quad m \sim \mathrm{Bernoulli}(p), \quad z \leftarrow z \odot m,
        \quad \mathrm{loss} = \mathrm{contrast}(z) + \lambda\,\mathrm{KL}(p \,\|\, r)

    ============================ ============================================= ==================== ================
    `estimator`                  gate in training                              gate in evaluation   probability
    ============================ ============================================= ==================== ================
    ``"straight_through"``       :math:`1[p > t]`, gradient of :math:`p`       the same             :math:`\sigma(a/T)`
    ``"concrete"``               :math:`\sigma((a + \mathrm{logistic}) / T)`   :math:`1[p > t]`     :math:`\sigma(a)`
    ``"soft"``                   :math:`p`                                     the same             :math:`\sigma(a/T)`
    ============================ ============================================= ==================== ================

    The probability of the concrete gate has no temperature: it is :math:`P(m > 1/2)`, whatever T. Evaluation is
    deterministic in every case, and its gates are zeros and ones unless the estimator is soft.

    The features are detached by default, as in the released code: neither the gate's path nor the KL term reaches the
    backbone, which learns through the embeddings alone. A gate gets a contrastive gradient only where the embedding is
    not zero. The divergence sums over dimensions, so its weight is small: the paper's CIFAR-100 setting is 3e-5. There
    the prior is 0.8, which keeps gates *open*; a prior below one half is what makes the posterior sparse. A row whose
    gates are all closed is a zero row; the losses take it.

    Args:
        in_features: Width of the features that the gates depend on.
        out_features: Width of the embeddings that are gated.
        hidden_features: Width of the gate's hidden layer; None takes `in_features`.
        norm: ``"batch"``, ``"layer"`` or None (the paper's), on the hidden layer.
        prior: Prior probability :math:`r` that a gate is open, in (0, 1).
        threshold: The :math:`t` of the table, in (0, 1).
        temperature: The :math:`T` of the table, above 0.
        estimator: See the table.
        detach_features: Whether the gate's gradients stop at its input.

    Shape:
        Features (..., in_features) and embeddings (..., out_features) with equal leading dimensions. With
        `norm="batch"` training needs at least two rows; otherwise a batch may be empty, and its divergence is 0.

    Raises:
        ValueError: If a value is out of range or a name unknown; in forward if shapes do not fit, or there are fewer
            than two rows where batch statistics are needed.

    Reference:
        BayesNCL (ICML 2026), Bayesian gated non-negative contrastive learning.

    Example:
        >>> gate = BayesianGate(512, 256)
        >>> out = gate(torch.randn(8, 512), torch.rand(8, 256))
        >>> out.embeddings.shape, sorted(set(out.gate.flatten().tolist())), bool(out.kl > 0)
        (torch.Size([8, 256]), [0.0, 1.0], True)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        hidden_features: int | None = None,
        norm: Norm = "batch",
        prior: float = 0.2,
        threshold: float = 0.5,
        temperature: float = 1.0,
        estimator: Estimator = "straight_through",
        detach_features: bool = True,
    ) -> None:
        super().__init__()
        _check.choice("estimator", estimator, ESTIMATORS)
        self.out_features = out_features
        self.prior = _check.fraction("prior", prior)
        self.threshold = _check.fraction("threshold", threshold)
        self.temperature = _check.positive("temperature", temperature)
        self.estimator = estimator
        self.detach_features = detach_features
        hidden_features = in_features if hidden_features is None else hidden_features
        self.in_features, self.hidden_features, self.norm = in_features, hidden_features, norm
        self.logits = MLP(in_features, hidden_features, out_features, norm=norm)

    def forward(self, features: Tensor, embeddings: Tensor) -> GatedEmbedding:
        """Gate embeddings of shape (..., out_features) by features of shape (..., in_features)."""
        self._check_shapes(features, embeddings)
        logits = self.logits(features.detach() if self.detach_features else features)
        logits = at_least_float32(logits)
        # the probability of the concrete gate has no temperature, see the table
        posterior = logits if self.estimator == "concrete" else logits / self.temperature
        gate = self._gate(logits, posterior).to(embeddings.dtype)
        return GatedEmbedding(embeddings * gate, gate, torch.sigmoid(posterior), bernoulli_kl(posterior, self.prior))

    def _check_shapes(self, features: Tensor, embeddings: Tensor) -> None:
        if is_recorded(features) or is_recorded(embeddings):
            return
        if features.shape[:-1] != embeddings.shape[:-1] or embeddings.shape[-1:] != (self.out_features,):
            raise ValueError(
                f"expected embeddings (..., {self.out_features}) with the leading dimensions of the features, got "
                f"features {tuple(features.shape)} and embeddings {tuple(embeddings.shape)}"
            )

    def reset_parameters(self) -> None:
        """Draw the layers anew, as the constructor does."""
        reset_parts(self)

    def _gate(self, logits: Tensor, posterior: Tensor) -> Tensor:
        if self.estimator == "soft":
            return soft_gate(posterior)
        if self.estimator == "concrete" and self.training:
            return concrete_gate(logits, self.temperature)
        return straight_through_gate(posterior, self.threshold)

    def extra_repr(self) -> str:
        """The configuration."""
        return (
            f"prior={self.prior}, threshold={self.threshold}, temperature={self.temperature}, "
            f"estimator={self.estimator!r}, detach_features={self.detach_features}"
        )
