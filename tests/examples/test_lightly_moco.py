"""lightly's MoCo with the swapped lines, on real digits."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("lightly")

import lightly_moco
from lightly.loss import NTXentLoss as TheirLoss

from tests.examples.starts import Starts


def test_the_loss_decreases_the_head_moves_and_the_queue_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch, lightly_moco, "NonNegProjection")
    model, history = lightly_moco.main(["--images", "768", "--epochs", "4", "--queue", "300"])
    assert history[-1] < history[0] - 0.3

    assert starts.all_moved()
    for moving, slow in zip(
        model.projection_head.parameters(), model.projection_head_momentum.parameters(), strict=True
    ):
        assert not torch.equal(moving, slow)
        assert slow.grad is None
    assert (model.queue.rows >= 0).all()
    assert model.queue.filled == 300

    fresh = lightly_moco.MoCo(lightly_moco.small_convnet(3))
    fresh.queue = lightly_moco.MemoryQueue(300, 128)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.queue.rows, model.queue.rows)


def test_over_the_same_rows_the_loss_is_lightly_s() -> None:
    torch.manual_seed(0)
    queue = lightly_moco.MemoryQueue(300, 128)
    theirs = TheirLoss(temperature=0.3, memory_bank_size=(300, 128))
    theirs.memory_bank.bank.copy_(queue.rows)
    query, key = torch.rand(2, 32, 128).requires_grad_().unbind()
    losses = [lightly_moco.InfoNCELoss(0.3)(query, key.detach(), queue.rows), theirs(query, key.detach())]
    torch.testing.assert_close(losses[0], losses[1])
    gradients = [torch.autograd.grad(loss, query, retain_graph=True)[0] for loss in losses]
    torch.testing.assert_close(gradients[0], gradients[1])
