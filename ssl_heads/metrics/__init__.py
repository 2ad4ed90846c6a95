"""Numbers about embeddings.

Each takes tensors on any device, NumPy arrays and lists, in any precision. Three rules hold for all:

- A dimension is active on a row if its magnitude exceeds `eps` after the row is normalised.
- NaN or infinity in a row makes every number NaN. An order of dimensions, or a count, is then -1.
- A label of -1 means none: the row is left out.
"""

from __future__ import annotations

from ssl_heads.metrics.activation import ExpectedActivation, StreamingExpectedActivation, expected_activation
from ssl_heads.metrics.chance import expected_modal_share
from ssl_heads.metrics.consistency import ClassConsistency, StreamingClassConsistency, class_consistency
from ssl_heads.metrics.dci import DCI, dci
from ssl_heads.metrics.entropy import SemanticEntropy, StreamingSemanticEntropy, semantic_entropy
from ssl_heads.metrics.identifiability import linear_r2, mean_correlation_coefficient
from ssl_heads.metrics.matching import Matching, absolute_correlations, match_by_importance, match_by_search
from ssl_heads.metrics.neighbours import knn_accuracy
from ssl_heads.metrics.orthogonality import StreamingOrthogonality, StreamingRedundancy, orthogonality, redundancy
from ssl_heads.metrics.rank import StreamingEffectiveRank, effective_rank
from ssl_heads.metrics.sparsity import (
    StreamingAliveDimensions,
    StreamingHoyer,
    StreamingL0,
    StreamingSparsity,
    alive_dimensions,
    hoyer,
    l0,
    sparsity,
)
from ssl_heads.metrics.streaming import StreamingMetric

__all__ = [
    "DCI",
    "ClassConsistency",
    "ExpectedActivation",
    "Matching",
    "SemanticEntropy",
    "StreamingAliveDimensions",
    "StreamingClassConsistency",
    "StreamingEffectiveRank",
    "StreamingExpectedActivation",
    "StreamingHoyer",
    "StreamingL0",
    "StreamingMetric",
    "StreamingOrthogonality",
    "StreamingRedundancy",
    "StreamingSemanticEntropy",
    "StreamingSparsity",
    "absolute_correlations",
    "alive_dimensions",
    "class_consistency",
    "dci",
    "effective_rank",
    "expected_activation",
    "expected_modal_share",
    "hoyer",
    "knn_accuracy",
    "l0",
    "linear_r2",
    "match_by_importance",
    "match_by_search",
    "mean_correlation_coefficient",
    "orthogonality",
    "redundancy",
    "semantic_entropy",
    "sparsity",
]
