"""The equations as pure functions: this is where a reader finds the mathematics."""

from __future__ import annotations

from ssl_heads.functional.activation import apply_activation, rep_relu
from ssl_heads.functional.anchors import anchor_regression, class_anchors, coherence, welch_bound
from ssl_heads.functional.clip import clip_loss, siglip_loss
from ssl_heads.functional.contrastive import info_nce, nt_xent
from ssl_heads.functional.delta import DeltaTerms, delta_contrast, delta_terms
from ssl_heads.functional.gate import bernoulli_kl, concrete_gate, soft_gate, straight_through_gate
from ssl_heads.functional.nonneg_cross_entropy import nonneg_cross_entropy
from ssl_heads.functional.normalize import safe_normalize
from ssl_heads.functional.spectral import decorrelation, spectral_contrastive
from ssl_heads.functional.sup_con import sup_con
from ssl_heads.functional.tri_factor import (
    tri_factor_contrast,
    tri_factor_spectral,
    tri_factor_spectral_two_towers,
    tri_factor_two_towers,
)

__all__ = [
    "DeltaTerms",
    "anchor_regression",
    "apply_activation",
    "bernoulli_kl",
    "class_anchors",
    "clip_loss",
    "coherence",
    "concrete_gate",
    "decorrelation",
    "delta_contrast",
    "delta_terms",
    "info_nce",
    "nonneg_cross_entropy",
    "nt_xent",
    "rep_relu",
    "safe_normalize",
    "siglip_loss",
    "soft_gate",
    "spectral_contrastive",
    "straight_through_gate",
    "sup_con",
    "tri_factor_contrast",
    "tri_factor_spectral",
    "tri_factor_spectral_two_towers",
    "tri_factor_two_towers",
    "welch_bound",
]
