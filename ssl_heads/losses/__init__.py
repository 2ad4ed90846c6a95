"""Losses: embeddings to one scalar."""

from __future__ import annotations

from ssl_heads.losses.contrastive import CLIPLoss, InfoNCELoss, NTXentLoss, SigLIPLoss, SpectralLoss, SupConLoss
from ssl_heads.losses.supervised import NonNegCrossEntropy
from ssl_heads.losses.tri_factor import TriFactorContrast, TriFactorTerms

__all__ = [
    "CLIPLoss",
    "InfoNCELoss",
    "NTXentLoss",
    "NonNegCrossEntropy",
    "SigLIPLoss",
    "SpectralLoss",
    "SupConLoss",
    "TriFactorContrast",
    "TriFactorTerms",
]
