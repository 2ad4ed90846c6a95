"""Interpretable self-supervised learning as a plugin: heads and losses that read like their equations."""

from __future__ import annotations

from ssl_heads import adapters, functional, metrics, plots
from ssl_heads.dimensions import Dimensions, dimensions
from ssl_heads.heads import (
    BayesianGate,
    CanonicalEmbedding,
    FeatureImportance,
    GatedEmbedding,
    NonNegLinear,
    NonNegProjection,
    canonicalize,
)
from ssl_heads.losses import (
    CLIPLoss,
    DeltaContrast,
    InfoNCELoss,
    KnownLogDensity,
    LpNorm,
    LpPower,
    MLPCorrection,
    NegativeCosine,
    NegativeDot,
    NonNegCrossEntropy,
    NTXentLoss,
    OrthonormalAnchorRegression,
    ScalarCorrection,
    SigLIPLoss,
    SpectralLoss,
    SquaredEuclidean,
    SupConLoss,
    TriFactorContrast,
    TriFactorTerms,
)
from ssl_heads.optim import param_groups
from ssl_heads.queue import MemoryQueue
from ssl_heads.report import Report, report
from ssl_heads.select import Selection, select

__version__ = "0.1.0"

__all__ = [
    "BayesianGate",
    "CLIPLoss",
    "CanonicalEmbedding",
    "DeltaContrast",
    "Dimensions",
    "FeatureImportance",
    "GatedEmbedding",
    "InfoNCELoss",
    "KnownLogDensity",
    "LpNorm",
    "LpPower",
    "MLPCorrection",
    "MemoryQueue",
    "NTXentLoss",
    "NegativeCosine",
    "NegativeDot",
    "NonNegCrossEntropy",
    "NonNegLinear",
    "NonNegProjection",
    "OrthonormalAnchorRegression",
    "Report",
    "ScalarCorrection",
    "Selection",
    "SigLIPLoss",
    "SpectralLoss",
    "SquaredEuclidean",
    "SupConLoss",
    "TriFactorContrast",
    "TriFactorTerms",
    "__version__",
    "adapters",
    "canonicalize",
    "dimensions",
    "functional",
    "metrics",
    "param_groups",
    "plots",
    "report",
    "select",
]
