"""Losses: embeddings to one scalar."""

from __future__ import annotations

from ssl_heads.losses.anchors import OrthonormalAnchorRegression
from ssl_heads.losses.contrastive import CLIPLoss, InfoNCELoss, NTXentLoss, SigLIPLoss, SpectralLoss, SupConLoss
from ssl_heads.losses.corrections import KnownLogDensity, MLPCorrection, ScalarCorrection
from ssl_heads.losses.delta import DeltaContrast
from ssl_heads.losses.dissimilarities import LpNorm, LpPower, NegativeCosine, NegativeDot, SquaredEuclidean
from ssl_heads.losses.supervised import NonNegCrossEntropy
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
