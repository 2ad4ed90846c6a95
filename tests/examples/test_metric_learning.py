"""pytorch-metric-learning's loop with the swapped lines, on real digits."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("pytorch_metric_learning")

import metric_learning

from tests.examples.starts import Starts


def test_the_loss_decreases_the_head_moves_and_neighbours_are_of_one_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts = Starts(monkeypatch, metric_learning, "NonNegProjection")
    model, history, precision = metric_learning.main(["--images", "1000", "--epochs", "3"])
    assert history[-1] < history[0] - 0.2
    assert precision > 0.6, "chance is 0.1"
    assert starts.all_moved()
    assert (model(torch.rand(16, 1, 28, 28)) >= 0).all()
