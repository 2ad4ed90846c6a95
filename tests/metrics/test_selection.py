"""Selection curves, SEPIN, gates and controls."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ssl_heads import BayesianGate, NonNegProjection
from ssl_heads.metrics import (
    StreamingGateStatistics,
    class_consistency,
    controls,
    effective_rank,
    expected_activation,
    gate_statistics,
    hoyer,
    l0,
    selection_curves,
    sepin,
    untrained_copy,
)
from tests import oracles

# --- selection


def test_curves_keep_what_the_order_says() -> None:
    score, kept = torch.tensor([0.2, 0.9, 0.2, 0.5]), []

    def value(dimensions: Tensor) -> float:
        kept.append(dimensions.tolist())
        return float(score[dimensions].sum())

    found = selection_curves(score, [1, 2, 4], value)
    assert kept[:3] == [[1], [1, 3], [1, 3, 0, 2]]
    assert kept[6:] == [[2], [2, 0], [2, 0, 3, 1]]
    assert kept[3] == kept[5][:1]
    assert sorted(kept[5]) == [0, 1, 2, 3]
    assert found.top.tolist() == pytest.approx([0.9, 1.4, 1.8])
    assert found.bottom.tolist() == pytest.approx([0.2, 0.4, 1.8])
    assert found.sizes.tolist() == [1, 2, 4]
    again = selection_curves(score, [1, 2, 4], value)
    assert torch.equal(again.random, found.random)


def test_curves_refuse() -> None:
    for sizes in ([0], [4], []):
        with pytest.raises(ValueError, match="sizes must lie between 1 and the 3 dimensions"):
            selection_curves(torch.ones(3), sizes, len)
    with pytest.raises(ValueError, match=r"expected score \(d,\).*\(3, 1\)"):
        selection_curves(torch.ones(3, 1), [1], len)


# --- SEPIN


@pytest.mark.parametrize("batch_size", [6, 3])
def test_sepin_against_the_definition(batch_size: int) -> None:
    a, b = torch.randn(2, 6, 5, dtype=torch.float64).relu()
    order = expected_activation(torch.cat([a, b])).order.tolist()
    rises = []
    for j in order:
        rise = 0.0
        for x, y in zip(a.split(batch_size), b.split(batch_size), strict=True):
            kept = [k for k in range(5) if k != j]
            rise += float(oracles.nt_xent(x[:, kept], y[:, kept], 0.3) - oracles.nt_xent(x, y, 0.3))
        rises.append(rise / (6 // batch_size))
    found = sepin(a, b, [1, 3, 100], temperature=0.3, batch_size=batch_size)
    assert found.order.tolist() == order
    assert found.per_dimension.tolist() == pytest.approx(rises, abs=1e-12)
    assert found.mean.tolist() == pytest.approx([rises[0], sum(rises[:3]) / 3, sum(rises) / 5], abs=1e-12)
    assert torch.equal(sepin(a, b, [2], batch_size=3).order, found.order[:2])


def test_sepin_leaves_out_what_fills_no_batch_and_refuses() -> None:
    a, b = torch.randn(2, 7, 3).relu()
    assert torch.equal(sepin(a, b, [1], batch_size=3).mean, sepin(a[[*range(6)]], b[:6], [1], batch_size=3).mean)
    with pytest.raises(ValueError, match=r"two views .* got \(7, 3\) and \(7, 2\)"):
        sepin(a, b[:, :2])
    with pytest.raises(ValueError, match=r"two samples or more, got \(1, 3\)"):
        sepin(a[:1], b[:1])
    with pytest.raises(ValueError, match=r"sizes must be at least 1, got \[0\]"):
        sepin(a, b, [0])


# --- gates


def test_gates_against_the_definition() -> None:
    gate = torch.rand(30, 6)
    gate[:, 1], gate[:, 2], gate[4] = 1.0, 0.0, 0.1
    gate[4, 1] = 1.0
    gate[9] = 0.0
    open_ = [[x > 0.5 for x in row] for row in gate.tolist()]
    found = gate_statistics(gate)
    shares = [sum(row[j] for row in open_) / 30 for j in range(6)]
    assert found.per_dimension.tolist() == pytest.approx(shares)
    assert found.open == pytest.approx(sum(shares) / 6)
    assert (found.always_open, found.always_closed) == (shares.count(1), shares.count(0))
    assert found.closed_rows == sum(not any(row) for row in open_) >= 1
    assert gate_statistics(gate, 0.9).open < found.open


def test_gates_of_a_head_and_what_is_refused() -> None:
    gated = BayesianGate(8, 5).eval()(torch.randn(20, 8), torch.rand(20, 5))
    assert gate_statistics(gated.gate).open == gate_statistics(gated.probability).open
    with pytest.raises(ValueError, match=r"between 0 and 1, got -0\.5; pass gate or probability"):
        gate_statistics([[0.1, -0.5]])
    with pytest.raises(ValueError, match="threshold"):
        StreamingGateStatistics(0.0)


# --- controls


def test_controls_are_as_sparse_as_what_they_stand_beside() -> None:
    z, untrained = torch.randn(50, 12).sub(0.8).relu(), torch.randn(50, 9)
    z[3] = 0
    seen: list[Tensor] = []

    def keep(x: Tensor) -> float:
        seen.append(x)
        return l0(x)

    found = controls({"l0": keep, "hoyer": hoyer}, z, untrained)
    trained, of_untrained, random = seen
    assert torch.equal(trained, z)
    kept = round(l0(z))
    for row, given in zip(of_untrained.tolist(), untrained.tolist(), strict=True):
        largest = sorted(given, key=abs, reverse=True)[:kept]
        assert [x for x in row if x] == [x for x in given if x in largest]
    for row, given in zip(random.tolist(), z.tolist(), strict=True):
        assert sorted(row) == sorted(given)
    assert not torch.equal(random, z)
    assert found.trained == {"l0": l0(z), "hoyer": hoyer(z)}
    assert found.random["l0"] == found.trained["l0"]
    assert found.random["hoyer"] == pytest.approx(found.trained["hoyer"], abs=1e-6)
    assert found.untrained["l0"] == kept
    assert torch.equal(seen[2], (controls({"l0": keep}, z, untrained), seen[5])[1]), "the seed fixes random codes"


def test_what_random_codes_score_is_chance() -> None:
    labels = torch.arange(5).repeat(60)
    z = torch.nn.functional.one_hot(labels).float() + 0.5 * (torch.rand(300, 5) < 0.2)
    found = controls(
        {"consistency": lambda x: class_consistency(x, labels).chance_corrected, "rank": effective_rank},
        z,
        torch.randn(300, 16),
    )
    assert found.trained["consistency"] > 0.3
    assert abs(found.random["consistency"]) < 0.05
    assert abs(found.untrained["consistency"]) < 0.1


def test_controls_refuse() -> None:
    with pytest.raises(ValueError, match=r"same samples, got shapes \(5, 2\) and \(4, 2\)"):
        controls({}, torch.ones(5, 2), torch.ones(4, 2))
    with pytest.raises(ValueError, match="eps"):
        controls({}, torch.ones(5, 2), torch.ones(5, 2), eps=0.0)
    broken = controls({"l0": l0}, torch.ones(5, 2), torch.full((5, 2), math.nan))
    assert all(math.isnan(arm["l0"]) for arm in broken)


def test_an_untrained_copy_starts_anew_and_leaves_the_module_alone() -> None:
    head = NonNegProjection(6, 10, 4)
    for p in head.parameters():
        nn.init.constant_(p, 0.3)
    state = torch.get_rng_state()
    first, second, other = untrained_copy(head), untrained_copy(head), untrained_copy(head, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(bool((p == 0.3).all()) for p in head.parameters())
    weights = [torch.cat([p.flatten() for p in m.parameters() if p.ndim > 1]) for m in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert weights[0].std() > 0
    untrained_copy(nn.TransformerEncoderLayer(8, 2))
    owner = nn.Module()
    owner.scale = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="Module holds parameters and has no reset_parameters"):
        untrained_copy(owner)
    with pytest.raises(ValueError, match="Module 1 holds parameters"):
        untrained_copy(nn.Sequential(nn.Linear(2, 2), owner))
