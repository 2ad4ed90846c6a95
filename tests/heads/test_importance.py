from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

from ssl_heads import FeatureImportance, canonicalize
from tests.checks import assert_gradient_close


def tri_factor(z: Tensor, s: Tensor, w: Tensor) -> Tensor:
    """All z_i^T diag(s) w_j."""
    return torch.einsum("id,d,jd->ij", z, s, w)


def test_it_starts_at_one_in_any_dtype() -> None:
    for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 1e-6), (torch.bfloat16, 4e-3)):
        s = FeatureImportance(5).to(dtype)()
        assert s.shape == (5,)
        assert s.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.allclose(s, torch.ones(5, dtype=s.dtype), atol=tolerance)


def test_it_is_softplus_of_theta() -> None:
    importance = FeatureImportance(7).double()
    theta = torch.linspace(-30, 30, 7, dtype=torch.float64)
    with torch.no_grad():
        importance.theta.copy_(theta)
    upstream = torch.randn(7, dtype=torch.float64)
    s = importance()
    s.backward(upstream)
    assert torch.allclose(s, torch.log1p(theta.exp()), rtol=1e-7, atol=1e-14)
    assert (s >= 0).all()
    assert_gradient_close(importance.theta.grad, upstream * theta.sigmoid(), 1e-7)


def test_one_optimiser_step_moves_it() -> None:
    importance = FeatureImportance(4)
    optimizer = torch.optim.SGD(importance.parameters(), lr=0.1)
    before = importance().detach()
    z = torch.rand(6, 4)
    (-tri_factor(z, importance(), z).mean()).backward()
    optimizer.step()
    assert (importance() > before).all()


def test_order_is_descending_and_stable() -> None:
    importance = FeatureImportance(5)
    assert importance.order().tolist() == [0, 1, 2, 3, 4]
    with torch.no_grad():
        importance.theta.copy_(torch.tensor([0.0, 2.0, -1.0, 2.0, 1.0]))
    assert importance.order().tolist() == [1, 3, 4, 0, 2]


def test_copies_pickles_and_state_dicts() -> None:
    importance = FeatureImportance(4)
    with torch.no_grad():
        importance.theta.normal_()
    fresh = FeatureImportance(4)
    fresh.load_state_dict(importance.state_dict())
    for other in (fresh, copy.deepcopy(importance), pickle.loads(pickle.dumps(importance))):
        assert torch.equal(other(), importance())
    assert importance.theta.shape == (4,)


def test_compiles_without_a_graph_break() -> None:
    importance = FeatureImportance(4)
    compiled = torch.compile(copy.deepcopy(importance), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(), importance())
    compiled().sum().backward()
    assert compiled.theta.grad is not None


def test_a_width_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        FeatureImportance(0)


# --- the canonical form


def test_it_sorts_by_importance_and_makes_each_anchor_positive() -> None:
    z = torch.randn(10, 6, dtype=torch.float64)
    s = torch.rand(6, dtype=torch.float64)
    canonical = canonicalize(z, s)
    assert torch.equal(canonical.importance, s.sort(descending=True).values)
    for column in canonical.embeddings.T.tolist():
        assert max(column, key=abs) > 0
    for j, source in enumerate(s.argsort(descending=True).tolist()):
        assert torch.equal(canonical.embeddings[:, j].abs(), z[:, source].abs())


def test_the_similarity_does_not_change() -> None:
    z, s = torch.randn(10, 6, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    y, t = canonicalize(z, s)
    assert not torch.allclose(y, z)
    assert torch.allclose(tri_factor(y, t, y), tri_factor(z, s, z), atol=1e-13)


def test_it_is_idempotent_with_ties_and_zeros() -> None:
    z = torch.randn(10, 6)
    z[:, 2] = 0
    z[4, 1], z[7, 1] = -9.0, 9.0
    s = torch.tensor([1.0, 2.0, 1.0, 3.0, 1.0, 2.0])
    once = canonicalize(z, s)
    twice = canonicalize(*once)
    assert torch.equal(once.embeddings, twice.embeddings)
    assert torch.equal(once.importance, twice.importance)


def test_it_undoes_any_flip_and_permutation() -> None:
    z, s = torch.randn(10, 6), torch.rand(6)
    shuffle, flips = torch.randperm(6), torch.randint(0, 2, (6,)) * 2.0 - 1
    again = canonicalize((z * flips)[:, shuffle], s[shuffle])
    canonical = canonicalize(z, s)
    assert torch.equal(again.embeddings, canonical.embeddings)
    assert torch.equal(again.importance, canonical.importance)


def test_two_towers_flip_together() -> None:
    image, text = torch.randn(10, 6, dtype=torch.float64), torch.randn(10, 6, dtype=torch.float64)
    s = torch.rand(6, dtype=torch.float64)
    a, t = canonicalize(image, s)
    b, _ = canonicalize(text, s, reference=image)
    assert torch.allclose(tri_factor(a, t, b), tri_factor(image, s, text), atol=1e-13)
    alone, _ = canonicalize(text, s)
    assert not torch.allclose(tri_factor(a, t, alone), tri_factor(image, s, text), atol=1e-3)


def test_non_negative_embeddings_are_only_reordered() -> None:
    z, s = torch.rand(10, 6), torch.rand(6)
    assert torch.equal(canonicalize(z, s).embeddings, z[:, s.argsort(descending=True)])


def test_it_passes_gradients_and_leading_dimensions() -> None:
    z = torch.randn(4, 3, 6, dtype=torch.float64, requires_grad=True)
    s = torch.rand(6, dtype=torch.float64)
    y, _ = canonicalize(z, s)
    assert y.shape == (4, 3, 6)
    upstream = torch.randn(4, 3, 6, dtype=torch.float64)
    y.backward(upstream)
    assert z.grad is not None
    assert torch.allclose((z.grad * z).sum(), (upstream * y).sum())


def test_shapes_that_do_not_fit_are_refused() -> None:
    z, s = torch.randn(10, 6), torch.rand(6)
    for arguments in [(z, s[:5]), (z, s[None]), (z, s, z[:, :5]), (z[:, :5], s, z)]:
        with pytest.raises(ValueError, match=r"got \(.*\), \(.*\) and \(.*\)"):
            canonicalize(*arguments)
    with pytest.raises(ValueError, match=r"at least one reference row, got shape \(0, 6\)"):
        canonicalize(z[:0], s)


def test_nan_has_no_place_in_an_order() -> None:
    importance = FeatureImportance(3)
    with torch.no_grad():
        importance.theta[1] = torch.nan
    with pytest.raises(ValueError, match="importance holds NaN"):
        importance.order()
