"""lightly's SimCLR with the swapped lines, and the same loop before them."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("lightly")

import lightly_simclr
from lightly.loss import NTXentLoss as TheirLoss
from lightly.models.modules import SimCLRProjectionHead

from tests.examples.starts import Starts

SMALL = ["--images", "768", "--epochs", "3"]


def test_the_loss_decreases_and_the_head_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch, lightly_simclr, "NonNegProjection")
    model, history = lightly_simclr.main(SMALL)
    assert history[-1] < history[0] - 0.3
    assert starts.all_moved()
    embeddings = model.eval()(torch.rand(16, 3, 28, 28))
    assert (embeddings >= 0).all()
    assert 0.1 < (embeddings == 0).float().mean() < 0.95


def test_the_loop_is_lightly_s_before_the_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The swapped lines put back: the same program runs, and our loss alone gives the same history."""
    monkeypatch.setattr(lightly_simclr, "NonNegProjection", SimCLRProjectionHead)
    arguments = ["--images", "256", "--epochs", "2"]
    _, ours = lightly_simclr.main(arguments)
    monkeypatch.setattr(lightly_simclr, "NTXentLoss", TheirLoss)
    _, theirs = lightly_simclr.main(arguments)
    assert ours == pytest.approx(theirs, rel=1e-4)
