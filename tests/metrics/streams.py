"""Each streaming metric beside its function, with what both take; the processes of a test find it by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ssl_heads import metrics
from ssl_heads.metrics import StreamingMetric

N, D, E, C = 60, 6, 5, 4


def codes(seed: int = 0, width: int = D) -> Tensor:
    """Non-negative and half of it zero, with a dimension that is always dead and one that is active once."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(N, width, generator=generator).relu()
    z[:, 2], z[:, 3] = 0, 0
    z[7, 3] = 0.5
    return z


def directions(seed: int = 1) -> Tensor:
    return torch.randn(N, E, generator=torch.Generator().manual_seed(seed))


LABELS = torch.randint(C, (N,), generator=torch.Generator().manual_seed(2)) * 10
LABELS[::9] = -1


POINTS = torch.randn(N, D, generator=torch.Generator().manual_seed(3))


class Stream(NamedTuple):
    """How a streaming metric is made, the function of the same meaning, and inputs of n rows each."""

    make: Callable[[], StreamingMetric]
    function: Callable[..., Any]
    inputs: tuple[Tensor, ...]


STREAMS: dict[str, Stream] = {
    "alive_dimensions": Stream(metrics.StreamingAliveDimensions, metrics.alive_dimensions, (codes(),)),
    "clarity": Stream(metrics.StreamingClarity, metrics.clarity, (codes(), directions())),
    "class_consistency": Stream(metrics.StreamingClassConsistency, metrics.class_consistency, (codes(), LABELS)),
    "effective_rank": Stream(metrics.StreamingEffectiveRank, metrics.effective_rank, (codes(),)),
    "expected_activation": Stream(metrics.StreamingExpectedActivation, metrics.expected_activation, (codes(),)),
    "gate_statistics": Stream(metrics.StreamingGateStatistics, metrics.gate_statistics, (codes().clamp(max=1),)),
    "hoyer": Stream(metrics.StreamingHoyer, metrics.hoyer, (codes(),)),
    "l0": Stream(metrics.StreamingL0, metrics.l0, (codes(),)),
    "match_score": Stream(metrics.StreamingMatchScore, metrics.match_score, (codes() > 0, directions()[:, :3] > 0)),
    "monosemanticity": Stream(metrics.StreamingMonosemanticity, metrics.monosemanticity, (codes() - 0.1, directions())),
    "orthogonality": Stream(metrics.StreamingOrthogonality, metrics.orthogonality, (codes(),)),
    "redundancy": Stream(metrics.StreamingRedundancy, metrics.redundancy, (codes(),)),
    "retrieval": Stream(
        lambda: metrics.StreamingRetrieval(k=4), lambda z, y: metrics.retrieval(z, y, k=4), (POINTS, LABELS)
    ),
    "seed_stability": Stream(
        metrics.StreamingSeedStability, metrics.seed_stability, (codes() + 100, codes().flip(1) + directions()[:, :1])
    ),
    "semantic_entropy": Stream(metrics.StreamingSemanticEntropy, metrics.semantic_entropy, (codes(), LABELS)),
    "sparsity": Stream(metrics.StreamingSparsity, metrics.sparsity, (codes(),)),
}


def parts(inputs: tuple[Tensor, ...], sizes: list[int]) -> list[tuple[Tensor, ...]]:
    return list(zip(*(x.split(sizes) for x in inputs), strict=True))


def of_ranks(name: str, sizes: list[int]) -> Any:
    """What one rank of several computes, each having seen a part of the rows."""
    metric = STREAMS[name].make()
    size = sizes[dist.get_rank()]
    if size:
        metric.update(*parts(STREAMS[name].inputs, sizes)[dist.get_rank()])
    return metric.merge_ranks().compute()
