"""pytorch-metric-learning's loss, beside the installed package's."""

from __future__ import annotations

import pytest
import torch

from ssl_heads import InfoNCELoss, NTXentLoss, OrthonormalAnchorRegression, SupConLoss
from ssl_heads.adapters import MetricLearning
from tests.adapters.support import D


def test_pytorch_metric_learning_s_losses_give_the_same() -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    z, labels, other = torch.randn(12, D), torch.arange(12) % 4, torch.randn(12, D)
    torch.testing.assert_close(
        MetricLearning(SupConLoss(0.1))(z, labels), losses.SupConLoss(temperature=0.1)(z, labels)
    )
    views = torch.arange(6).repeat(2)
    torch.testing.assert_close(MetricLearning(NTXentLoss(0.3))(z, views), losses.NTXentLoss(temperature=0.3)(z, views))
    torch.testing.assert_close(
        MetricLearning(InfoNCELoss(0.3))(z, torch.arange(12), None, other, torch.arange(12)),
        losses.NTXentLoss(temperature=0.3)(z, torch.arange(12), None, other, torch.arange(12)),
    )
    both = losses.MultipleLosses([MetricLearning(SupConLoss()), losses.TripletMarginLoss()], weights=[1.0, 0.5])
    expected = SupConLoss()(z, labels) + 0.5 * losses.TripletMarginLoss()(z, labels)
    torch.testing.assert_close(both(z, labels), expected)


def test_what_metric_learning_cannot_honour_is_refused() -> None:
    z, labels = torch.randn(12, D), torch.arange(12) % 4
    mined = (torch.tensor([0]), torch.tensor([4]), torch.tensor([1]))
    with pytest.raises(ValueError, match=r"SupConLoss weighs all pairs.*leave the miner out"):
        MetricLearning(SupConLoss())(z, labels, mined)
    with pytest.raises(ValueError, match=r"takes no ref_emb, got shape \(5, 8\)"):
        MetricLearning(SupConLoss())(z, labels, None, torch.randn(5, D), torch.arange(5))
    with pytest.raises(ValueError, match=r"labels and ref_labels must be equal row by row.*at row 0 they are 0 and 1"):
        MetricLearning(InfoNCELoss())(z, labels, None, z, labels + 1)
    with pytest.raises(ValueError, match=r"embeddings and ref_emb.*\(12, 8\) and \(5, 8\)"):
        MetricLearning(InfoNCELoss())(z, labels, None, z[:5], labels[:5])
    with pytest.raises(ValueError, match="labels are missing"):
        MetricLearning(InfoNCELoss())(z)
    with pytest.raises(ValueError, match=r"the first half of labels and the second must be equal"):
        MetricLearning(NTXentLoss())(z, labels)
    with pytest.raises(ValueError, match=r"\(12, 8\)"):
        MetricLearning(OrthonormalAnchorRegression(4, D + 1))(z, labels)
