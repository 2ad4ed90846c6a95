"""facebookresearch/moco's criterion."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ssl_heads.adapters import MoCoCriterion
from tests.adapters.support import D, N, agree, literal_moco_logits, unit


def test_moco_s_criterion() -> None:
    key, queue, zeros = unit(N, D), unit(40, D).T, torch.zeros(N, dtype=torch.long)
    agree(
        lambda q: MoCoCriterion()(literal_moco_logits(q, key, queue, 0.4), zeros),
        lambda q: F.cross_entropy(literal_moco_logits(q, key.double(), queue.double(), 0.4), zeros),
        unit(N, D),
    )


def test_half_logits_give_a_float_loss_that_does_not_vanish() -> None:
    """30 ahead of 64 negatives: 6e-12, which a logarithm of the whole sum rounds to zero."""
    logits, zeros = torch.zeros(2, 65, dtype=torch.float16), torch.zeros(2, dtype=torch.long)
    logits[:, 0] = 30
    loss = MoCoCriterion()(logits, zeros)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(64 * torch.exp(torch.tensor(-30.0, dtype=torch.float64)).item(), rel=1e-5)
    assert F.cross_entropy(logits.float(), zeros).item() == 0


def test_targets_that_moco_does_not_mean_are_refused() -> None:
    criterion, logits = MoCoCriterion(), torch.randn(4, 9)
    with pytest.raises(ValueError, match=r"labels must be zeros.*got 3"):
        criterion(logits, torch.tensor([0, 0, 3, 0]))
    with pytest.raises(ValueError, match=r"expected shape \(4,\), got torch.float32"):
        criterion(logits, torch.zeros(4))
    with pytest.raises(ValueError, match=r"at least one negative, got shape \(4, 1\)"):
        criterion(logits[:, :1], torch.zeros(4, dtype=torch.long))
