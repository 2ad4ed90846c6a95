"""Heads for adapters."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from ssl_heads import BayesianGate, NonNegProjection
from ssl_heads.adapters import GatedHead
from tests.adapters.support import D, N


def gated() -> GatedHead:
    return GatedHead(NonNegProjection(16, 16, D), BayesianGate(16, D))


def test_a_divergence_that_cannot_train_the_gate_is_refused() -> None:
    head, x = gated(), torch.randn(N, 16, requires_grad=True)
    torch.utils.checkpoint.checkpoint(head, x, use_reentrant=True)
    with pytest.raises(ValueError, match="use_reentrant=False"):
        head.take_kl()
    torch.utils.checkpoint.checkpoint(head, x, use_reentrant=False)
    assert head.take_kl().requires_grad
    with torch.no_grad():
        head(x)
        assert head.take_kl().isfinite()


def test_the_divergence_is_the_mean_over_the_calls_of_a_step() -> None:
    head, x = gated(), torch.randn(2, N, 16)
    z = [head(view) for view in x]
    kl = head.take_kl()
    expected = [head.gate(view, head.head(view)) for view in x]
    torch.testing.assert_close(kl, torch.stack([out.kl for out in expected]).mean())
    torch.testing.assert_close(z, [out.embeddings for out in expected])
    with pytest.raises(ValueError, match="take it once a step"):
        head.take_kl()


@pytest.mark.parametrize("after", [nn.Identity(), nn.Linear(D, D)], ids=["alone", "with a layer after it"])
@pytest.mark.parametrize("take_before_backward", [True, False])
def test_a_recomputation_collects_nothing(after: nn.Module, take_before_backward: bool) -> None:
    """Each step's divergence is that of its own calls, and trains the gate as without checkpointing."""
    head, x = gated(), torch.randn(3, N, 16, requires_grad=True)
    for features in x:
        z = torch.utils.checkpoint.checkpoint(lambda f: after(head(f)), features, use_reentrant=False)
        expected = head.gate(features, head.head(features)).kl
        if take_before_backward:
            kl = head.take_kl()
            gradients = torch.autograd.grad(z.square().sum() + kl, list(head.gate.parameters()))
            plain = torch.autograd.grad(
                after(head.gate(features, head.head(features)).embeddings).square().sum() + expected,
                list(head.gate.parameters()),
            )
            torch.testing.assert_close(gradients, plain, rtol=1e-4, atol=1e-5)
        else:
            z.square().sum().backward(retain_graph=True)
            kl = head.take_kl()
        torch.testing.assert_close(kl, expected)
        assert not head._kl


def test_evaluation_leaves_nothing_behind() -> None:
    head, x = gated().eval(), torch.randn(N, 16)
    with torch.no_grad():
        for _ in range(2 * GatedHead.MOST_CALLS):
            head(x)
    head.train()(x)
    assert head.take_kl().requires_grad
    assert not head._kl


def test_a_divergence_that_nobody_takes_is_noticed() -> None:
    head = gated()
    with pytest.raises(ValueError, match=r"64 calls of GatedHead without take_kl"):
        [head(torch.randn(N, 16)) for _ in range(GatedHead.MOST_CALLS + 1)]


def test_a_gated_head_is_copied_and_pickled_in_the_middle_of_a_step() -> None:
    head = gated()
    head(torch.randn(N, 16))
    for duplicate in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert not duplicate._kl
        assert duplicate.state_dict().keys() == head.state_dict().keys()
    head.take_kl().backward()


def test_evaluation_with_a_graph_is_not_averaged_into_training() -> None:
    torch.manual_seed(0)
    head, before = (
        GatedHead(NonNegProjection(6, 8, 4), BayesianGate(6, 4, detach_features=False)),
        torch.nn.Linear(6, 6),
    )
    x, other = torch.randn(2, 9, 6)
    head.eval()(before(x))
    head.train()(before(other))
    assert len(head._kl) == 1
    assert head.take_kl().requires_grad
