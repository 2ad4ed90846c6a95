"""One `eps` in all metrics: above it, after rows are normalised, a dimension is active."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from ssl_heads import metrics
from ssl_heads.metrics._rows import EPS
from ssl_heads.plots import modal_class
from tests.metrics.test_contract import FACTORS, KNOWN, LABELS, D, embeddings


@pytest.mark.parametrize("eps", [EPS, 1e-3, 0.3])
def test_eps_means_one_thing(eps: float) -> None:
    """A dimension is active above it, after rows are normalised; every count of activity agrees."""
    z = embeddings() * torch.logspace(-6, 6, D)
    z[3], z[7] = 0, torch.tensor([0.0, 0.0, 3.0, 4.0]) * 1e-9
    unit = torch.nn.functional.normalize(z.double(), dim=1, eps=1e-300)
    active = unit.abs() > eps
    assert metrics.sparsity(z, eps=eps) == pytest.approx(1 - active.double().mean().item())
    assert metrics.alive_dimensions(z, eps=eps) == active.any(dim=0).sum()
    assert metrics.l0(z, eps=eps) == pytest.approx(active.double().sum(dim=1).mean().item())
    assert metrics.clarity(z, FACTORS, eps=eps).support.tolist() == active.sum(dim=0).tolist()
    dead = (~active.any(dim=0)).tolist()
    assert metrics.semantic_entropy(z, LABELS, eps=eps).per_dimension.isnan().tolist() == dead
    assert metrics.seed_stability(z, FACTORS, eps=eps).per_dimension.isnan().tolist() == dead
    alive = sum(not x for x in dead)
    assert math.isnan(metrics.orthogonality(z, eps=eps)) == math.isnan(metrics.redundancy(z, eps=eps)) == (alive < 2)
    support = metrics.class_consistency(z, LABELS, eps=eps).support
    assert support.tolist() == active.sum(dim=0).tolist()
    assert [modal_class(q, LABELS, eps=eps).support for q in unit.unbind(dim=1)] == support.tolist()


def test_eps_has_one_default() -> None:
    public = [modal_class, *(getattr(metrics, name) for name in metrics.__all__)]
    signatures = [inspect.signature(f).parameters for f in public if callable(f)]
    defaults = [parameters["eps"].default for parameters in signatures if "eps" in parameters]
    assert len(defaults) > 20
    assert set(defaults) == {EPS}
    for function in (metrics.sparsity, metrics.alive_dimensions, metrics.l0, metrics.hoyer, metrics.orthogonality):
        for eps in (0.0, -1.0, math.nan):
            with pytest.raises(ValueError, match=f"eps.*{eps}"):
                function(KNOWN, eps=eps)
