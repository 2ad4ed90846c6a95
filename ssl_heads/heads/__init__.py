"""Heads as modules: features to embeddings."""

from __future__ import annotations

from ssl_heads.heads.gate import BayesianGate, GatedEmbedding
from ssl_heads.heads.importance import CanonicalEmbedding, FeatureImportance, canonicalize
from ssl_heads.heads.projection import NonNegLinear, NonNegProjection

__all__ = [
    "BayesianGate",
    "CanonicalEmbedding",
    "FeatureImportance",
    "GatedEmbedding",
    "NonNegLinear",
    "NonNegProjection",
    "canonicalize",
]
