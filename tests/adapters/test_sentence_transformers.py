"""SentenceTransformerTrainer's loss."""

from __future__ import annotations

import pytest
import torch

from ssl_heads import NTXentLoss, SupConLoss, TriFactorContrast
from ssl_heads.adapters import SentenceTransformers
from tests.adapters.support import D, N, Table


def test_columns_are_views_and_a_column_with_labels_is_a_batch() -> None:
    model = Table()
    columns = [{"input_ids": torch.arange(N)}, {"input_ids": torch.arange(N, 2 * N)}]
    z = model.rows.unflatten(0, (2, N))
    torch.testing.assert_close(SentenceTransformers(model, NTXentLoss())(columns), NTXentLoss()(z[0], z[1]))
    labels = torch.arange(N) % 3
    torch.testing.assert_close(
        SentenceTransformers(model, SupConLoss())(columns[:1], labels), SupConLoss()(z[0], labels)
    )
    tri = TriFactorContrast(D)
    terms = SentenceTransformers(model, tri)(columns)
    assert isinstance(terms, dict)
    assert sum(terms.values()).item() == pytest.approx(tri(z[0], z[1]).item(), rel=1e-6)


def test_other_columns_are_refused() -> None:
    columns = [{"input_ids": torch.arange(N)}] * 3
    loss = SentenceTransformers(Table(), NTXentLoss())
    with pytest.raises(ValueError, match="got 3 columns without labels for NTXentLoss: select the columns"):
        loss(columns)
    with pytest.raises(ValueError, match="got 1 column without labels"):
        loss(columns[:1])
    with pytest.raises(ValueError, match="got 2 columns with labels for NTXentLoss"):
        loss(columns[:2], torch.arange(N))
    with pytest.raises(ValueError, match="got 2 columns without labels for SupConLoss"):
        SentenceTransformers(Table(), SupConLoss())(columns[:2])
