"""Numbers about embeddings.

Each takes tensors on any device, NumPy arrays and lists, in any precision. Three rules hold for all:

- A dimension is active on a row if its magnitude exceeds `eps` after the row is normalised.
- NaN or infinity in a row makes every number NaN. An order of dimensions, or a count, is then -1.
- A label of -1 means none: the row is left out.
"""

from __future__ import annotations

from ssl_heads.metrics.activation import ExpectedActivation, StreamingExpectedActivation, expected_activation
from ssl_heads.metrics.chance import expected_modal_share
from ssl_heads.metrics.clarity import Clarity, StreamingClarity, clarity
from ssl_heads.metrics.consistency import ClassConsistency, StreamingClassConsistency, class_consistency
from ssl_heads.metrics.controls import Controls, controls, untrained_copy
from ssl_heads.metrics.dci import DCI, dci
from ssl_heads.metrics.entropy import SemanticEntropy, StreamingSemanticEntropy, semantic_entropy
from ssl_heads.metrics.gates import GateStatistics, StreamingGateStatistics, gate_statistics
from ssl_heads.metrics.identifiability import linear_r2, mean_correlation_coefficient
from ssl_heads.metrics.match_score import MatchGain, MatchScore, StreamingMatchScore, match_gain, match_score
from ssl_heads.metrics.matching import Matching, absolute_correlations, match_by_importance, match_by_search
from ssl_heads.metrics.monosemanticity import StreamingMonosemanticity, monosemanticity
from ssl_heads.metrics.neighbours import knn_accuracy
from ssl_heads.metrics.orthogonality import StreamingOrthogonality, StreamingRedundancy, orthogonality, redundancy
from ssl_heads.metrics.probes import KSparseProbe, k_sparse_probe, linear_probe
from ssl_heads.metrics.rank import StreamingEffectiveRank, effective_rank
from ssl_heads.metrics.retrieval import Retrieval, StreamingRetrieval, retrieval
from ssl_heads.metrics.selection import SelectionCurves, selection_curves
from ssl_heads.metrics.sepin import SEPIN, sepin
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
from ssl_heads.metrics.stability import SeedStability, StreamingSeedStability, seed_stability
from ssl_heads.metrics.streaming import StreamingMetric
from ssl_heads.metrics.tapa import TAPAScore, tapa_score

__all__ = [
    "DCI",
    "SEPIN",
    "Clarity",
    "ClassConsistency",
    "Controls",
    "ExpectedActivation",
    "GateStatistics",
    "KSparseProbe",
    "MatchGain",
    "MatchScore",
    "Matching",
    "Retrieval",
    "SeedStability",
    "SelectionCurves",
    "SemanticEntropy",
    "StreamingAliveDimensions",
    "StreamingClarity",
    "StreamingClassConsistency",
    "StreamingEffectiveRank",
    "StreamingExpectedActivation",
    "StreamingGateStatistics",
    "StreamingHoyer",
    "StreamingL0",
    "StreamingMatchScore",
    "StreamingMetric",
    "StreamingMonosemanticity",
    "StreamingOrthogonality",
    "StreamingRedundancy",
    "StreamingRetrieval",
    "StreamingSeedStability",
    "StreamingSemanticEntropy",
    "StreamingSparsity",
    "TAPAScore",
    "absolute_correlations",
    "alive_dimensions",
    "clarity",
    "class_consistency",
    "controls",
    "dci",
    "effective_rank",
    "expected_activation",
    "expected_modal_share",
    "gate_statistics",
    "hoyer",
    "k_sparse_probe",
    "knn_accuracy",
    "l0",
    "linear_probe",
    "linear_r2",
    "match_by_importance",
    "match_by_search",
    "match_gain",
    "match_score",
    "mean_correlation_coefficient",
    "monosemanticity",
    "orthogonality",
    "redundancy",
    "retrieval",
    "seed_stability",
    "selection_curves",
    "semantic_entropy",
    "sepin",
    "sparsity",
    "tapa_score",
    "untrained_copy",
]
