"""Numbers about embeddings."""

from __future__ import annotations

from ssl_heads.metrics.activation import ExpectedActivation, expected_activation
from ssl_heads.metrics.chance import expected_modal_share
from ssl_heads.metrics.consistency import ClassConsistency, class_consistency
from ssl_heads.metrics.neighbours import knn_accuracy
from ssl_heads.metrics.rank import effective_rank
from ssl_heads.metrics.sparsity import alive_dimensions, sparsity

__all__ = [
    "ClassConsistency",
    "ExpectedActivation",
    "alive_dimensions",
    "class_consistency",
    "effective_rank",
    "expected_activation",
    "expected_modal_share",
    "knn_accuracy",
    "sparsity",
]
