"""Losses as modules: embeddings to one scalar. Each stores a configuration of an equation in `ssl_heads.functional`."""

from __future__ import annotations

from ssl_heads.losses.anchors import OrthonormalAnchorRegression
from ssl_heads.losses.clip import CLIPLoss, SigLIPLoss
from ssl_heads.losses.contrastive import InfoNCELoss, NTXentLoss
from ssl_heads.losses.corrections import KnownLogDensity, MLPCorrection, ScalarCorrection
from ssl_heads.losses.delta import DeltaContrast
from ssl_heads.losses.dissimilarities import LpNorm, LpPower, NegativeCosine, NegativeDot, SquaredEuclidean
from ssl_heads.losses.nonneg_cross_entropy import NonNegCrossEntropy
from ssl_heads.losses.spectral import SpectralLoss
from ssl_heads.losses.sup_con import SupConLoss
from ssl_heads.losses.tri_factor import TriFactorContrast, TriFactorTerms

__all__ = [
    "CLIPLoss",
    "DeltaContrast",
    "InfoNCELoss",
    "KnownLogDensity",
    "LpNorm",
    "LpPower",
    "MLPCorrection",
    "NTXentLoss",
    "NegativeCosine",
    "NegativeDot",
    "NonNegCrossEntropy",
    "OrthonormalAnchorRegression",
    "ScalarCorrection",
    "SigLIPLoss",
    "SpectralLoss",
    "SquaredEuclidean",
    "SupConLoss",
    "TriFactorContrast",
    "TriFactorTerms",
]
