from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from ssl_heads import BayesianGate
from ssl_heads.functional.gate import bernoulli_kl, straight_through_gate
from ssl_heads.functional.normalize import safe_normalize
from ssl_heads.heads.gate import ESTIMATORS
from tests.checks import assert_gradient_close

NORMS = ["batch", "layer", None]


def decided(logits: Tensor, **configuration: float | str) -> tuple[BayesianGate, Tensor]:
    """A gate of one linear map, the identity, so that its input features are its logits."""
    width = logits.shape[-1]
    gate = BayesianGate(width, width, norm=None, detach_features=False, **configuration).to(logits.dtype)  # type: ignore[arg-type]
    gate.logits = nn.Identity()  # type: ignore[assignment]
    return gate, logits.clone().requires_grad_()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("norm", NORMS)
def test_shapes_ranges_and_learning(norm: str | None, estimator: str) -> None:
    gate = BayesianGate(6, 4, norm=norm, estimator=estimator)
    out = gate(torch.randn(16, 6), torch.rand(16, 4))
    assert out.embeddings.shape == out.gate.shape == out.probability.shape == (16, 4)
    assert out.kl.shape == ()
    assert ((out.gate >= 0) & (out.gate <= 1)).all()
    assert ((out.probability > 0) & (out.probability < 1)).all()
    (out.embeddings.sum() + out.kl).backward()
    for name, p in gate.named_parameters():
        assert p.grad is not None, name
        assert p.ndim >= 1
        assert p.grad.isfinite().all()


def test_the_parts_fit_together() -> None:
    logits, embeddings = torch.randn(8, 5, dtype=torch.float64), torch.rand(8, 5, dtype=torch.float64)
    gate, a = decided(logits, temperature=0.5, threshold=0.4, prior=0.3)
    out = gate(a, embeddings)
    assert torch.equal(out.gate, straight_through_gate(a, 0.4, 0.5))
    assert torch.equal(out.embeddings, embeddings * out.gate)
    assert torch.allclose(out.probability, (logits / 0.5).sigmoid())
    assert torch.allclose(out.kl, bernoulli_kl(logits / 0.5, 0.3))


def test_concrete_probability_is_that_of_an_open_gate_at_every_temperature() -> None:
    gate, a = decided(torch.tensor([[-1.0, 0.0, 2.0]]).repeat(50_000, 1), temperature=0.3, estimator="concrete")
    out = gate(a, torch.ones(50_000, 3))
    assert torch.allclose((out.gate > 0.5).float().mean(dim=0), out.probability[0], atol=0.012)
    assert torch.allclose(out.kl, bernoulli_kl(a, 0.2))


def test_a_gate_learns_from_contrast_only_where_its_embedding_is_active() -> None:
    embeddings = torch.rand(8, 5, dtype=torch.float64)
    embeddings[:, 2] = 0
    embeddings[3, :] = 0
    logits = torch.randn(8, 5, dtype=torch.float64)
    upstream = torch.randn(8, 5, dtype=torch.float64)
    gate, a = decided(logits, temperature=2.0)
    gate(a, embeddings).embeddings.backward(upstream)
    p = (logits / 2).sigmoid()
    assert_gradient_close(a.grad, upstream * embeddings * p * (1 - p) / 2, 1e-12)
    assert a.grad is not None
    assert (a.grad[:, 2] == 0).all()
    assert (a.grad[3] == 0).all()


def backbone_gradient(*, detach: bool, through_gate: bool, kl_weight: float) -> Tensor:
    torch.manual_seed(0)
    backbone = nn.Linear(7, 6).double()
    projector = nn.Linear(6, 4).double()
    gate = BayesianGate(6, 4, detach_features=detach).double()
    features = backbone(torch.randn(16, 7, dtype=torch.float64))
    embeddings = projector(features)
    out = gate(features, embeddings)
    gated = out.embeddings if through_gate else embeddings * out.gate.detach()
    (safe_normalize(gated) @ torch.randn(4, dtype=torch.float64)).sum().add(kl_weight * out.kl).backward()
    assert backbone.weight.grad is not None
    return backbone.weight.grad


def test_detached_the_backbone_feels_neither_the_gates_path_nor_the_divergence() -> None:
    alone = backbone_gradient(detach=True, through_gate=False, kl_weight=0.0)
    assert_gradient_close(backbone_gradient(detach=True, through_gate=True, kl_weight=10.0), alone, 1e-12)
    attached = backbone_gradient(detach=False, through_gate=True, kl_weight=0.0)
    assert (attached - alone).norm() > 1e-3 * alone.norm()
    pulled = backbone_gradient(detach=False, through_gate=False, kl_weight=10.0)
    assert (pulled - alone).norm() > 1e-3 * alone.norm()


@pytest.mark.parametrize(("prior", "open_share"), [(0.2, 0.0), (0.8, 1.0)])
def test_the_divergence_alone_closes_gates_or_opens_them(prior: float, open_share: float) -> None:
    gate = BayesianGate(6, 4, prior=prior)
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.02)
    features = torch.randn(64, 6)
    for _ in range(200):
        optimizer.zero_grad()
        gate(features, torch.ones(64, 4)).kl.backward()
        optimizer.step()
    out = gate.eval()(features, torch.ones(64, 4))
    assert out.gate.mean() == open_share
    assert torch.allclose(out.probability.mean(), torch.tensor(prior), atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_rows_whose_gates_are_all_closed_stay_finite(estimator: str, dtype: torch.dtype) -> None:
    gate, a = decided(torch.full((4, 5), -200.0, dtype=dtype), estimator=estimator)
    embeddings = torch.rand(4, 5).to(dtype).requires_grad_()
    out = gate(a, embeddings)
    q = safe_normalize(out.embeddings)
    (q.float().square().sum() + (q.float() @ q.float().T).sum() + out.kl).backward()
    assert q.isfinite().all()
    assert (out.gate.float() < 1e-30).all()
    for x in (a, embeddings):
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert x.grad.float().norm() < 100


@pytest.mark.parametrize("size", [50.0, 200.0])
def test_extreme_logits_are_finite(size: float) -> None:
    gate, a = decided(torch.tensor([[-size, size], [size, -size]]))
    out = gate(a, torch.ones(2, 2))
    (out.embeddings.sum() + out.kl).backward()
    assert torch.equal(out.gate, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert out.kl.isfinite()
    assert float(out.kl.detach()) == pytest.approx(-math.log(0.2) - math.log(0.8), rel=1e-5)
    assert a.grad is not None
    assert a.grad.isfinite().all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_evaluation_is_deterministic(estimator: str) -> None:
    gate = BayesianGate(6, 4, estimator=estimator)
    features, embeddings = torch.randn(32, 6), torch.rand(32, 4)
    train = [gate(features, embeddings).gate for _ in range(2)]
    assert torch.equal(*train) == (estimator != "concrete")
    evaluation = [gate.eval()(features, embeddings) for _ in range(2)]
    for first, second in zip(*evaluation, strict=True):
        assert torch.equal(first, second)
    if estimator != "soft":
        assert torch.equal(evaluation[0].gate, (evaluation[0].probability > 0.5).float())
    else:
        assert torch.equal(evaluation[0].gate, evaluation[0].probability)


def test_open_gates_change_nothing() -> None:
    gate, a = decided(torch.full((8, 5), 30.0))
    embeddings = torch.rand(8, 5)
    assert torch.equal(gate(a, embeddings).embeddings, embeddings)


@pytest.mark.parametrize("norm", NORMS)
def test_leading_dimensions_are_rows(norm: str | None) -> None:
    gate = BayesianGate(6, 4, norm=norm)
    features, embeddings = torch.randn(5, 3, 6), torch.rand(5, 3, 4)
    out = gate(features, embeddings)
    flat = gate(features.flatten(0, 1), embeddings.flatten(0, 1))
    turned = gate(features.transpose(0, 1), embeddings.transpose(0, 1))
    assert torch.allclose(out.probability.flatten(0, 1), flat.probability, atol=1e-6)
    assert torch.allclose(out.probability.transpose(0, 1), turned.probability, atol=1e-6)
    assert torch.allclose(out.kl, flat.kl)
    assert torch.allclose(out.kl, turned.kl)


def test_one_row_and_no_rows() -> None:
    gate = BayesianGate(6, 4)
    with pytest.raises(ValueError, match="at least two rows"):
        gate(torch.randn(1, 6), torch.rand(1, 4))
    empty = gate.eval()(torch.zeros(0, 6), torch.zeros(0, 4))
    assert empty.embeddings.shape == (0, 4)
    assert empty.kl == 0


def test_copies_pickles_and_state_dicts_are_the_same_function() -> None:
    gate = BayesianGate(6, 4, hidden_features=9, prior=0.1)
    features, embeddings = torch.randn(8, 6), torch.rand(8, 4)
    gate(features, embeddings)
    out = gate.eval()(features, embeddings)
    fresh = BayesianGate(6, 4, hidden_features=9, prior=0.1).eval()
    assert not torch.equal(fresh(features, embeddings).kl, out.kl)
    assert not any(fresh.load_state_dict(gate.state_dict()))
    for other in (fresh, copy.deepcopy(gate), pickle.loads(pickle.dumps(gate))):
        assert all(torch.equal(a, b) for a, b in zip(other(features, embeddings), out, strict=True))
    assert pickle.loads(pickle.dumps(out)).kl == out.kl


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_compiles_without_a_graph_break(estimator: str) -> None:
    gate = BayesianGate(6, 4, estimator=estimator)
    compiled = torch.compile(copy.deepcopy(gate), fullgraph=True, backend="aot_eager")
    features, embeddings = torch.randn(8, 6), torch.rand(8, 4)
    for train in (True, False):
        out, expected = compiled.train(train)(features, embeddings), gate.train(train)(features, embeddings)
        assert torch.allclose(out.kl, expected.kl)
        assert torch.allclose(out.probability, expected.probability, atol=1e-6)
        if not (train and estimator == "concrete"):
            assert torch.allclose(out.embeddings, expected.embeddings, atol=1e-6)
    (compiled.train()(features, embeddings).embeddings.sum()).backward()
    assert all(p.grad is not None for p in compiled.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_autocast(estimator: str, dtype: torch.dtype) -> None:
    gate = BayesianGate(6, 4, estimator=estimator)
    features, embeddings = torch.randn(16, 6), torch.rand(16, 4)
    with torch.autocast("cpu", dtype=dtype):
        out = gate(features, embeddings.to(dtype))
        q = safe_normalize(out.embeddings)
    (q.float().sum() + out.kl).backward()
    assert out.embeddings.dtype == out.gate.dtype == dtype
    assert out.kl.dtype == out.probability.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in gate.parameters())


def test_bad_configuration_is_refused() -> None:
    for prior in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match=f"prior .* got {prior}"):
            BayesianGate(6, 4, prior=prior)
    with pytest.raises(ValueError, match=r"threshold .* got 1\.5"):
        BayesianGate(6, 4, threshold=1.5)
    with pytest.raises(ValueError, match=r"temperature .* got 0\.0"):
        BayesianGate(6, 4, temperature=0.0)
    with pytest.raises(ValueError, match=r"'straight_through', 'concrete', 'soft', got 'gumbel'"):
        BayesianGate(6, 4, estimator="gumbel")
    with pytest.raises(ValueError, match="hidden_features must be at least 1, got 0"):
        BayesianGate(6, 4, hidden_features=0)


def test_shapes_that_do_not_fit_are_refused_with_both() -> None:
    gate = BayesianGate(6, 4)
    for features, embeddings in [((8, 6), (7, 4)), ((8, 6), (8, 5)), ((2, 4, 6), (8, 4))]:
        with pytest.raises(ValueError, match=r"features \(.*\) and embeddings \(.*\)"):
            gate(torch.randn(features), torch.randn(embeddings))
    with pytest.raises(ValueError, match=r"\(\.\.\., 6\).*\(8, 5\)"):
        gate(torch.randn(8, 5), torch.randn(8, 4))
