"""SentenceTransformerTrainer's loss."""

from __future__ import annotations

import json
from collections import OrderedDict

import pytest
import torch
from torch import nn

from ssl_heads import NonNegLinear, NonNegProjection, NTXentLoss, SupConLoss, TriFactorContrast
from ssl_heads.adapters import Floor, SentenceTransformers, SentenceTransformersHead
from ssl_heads.adapters.sentence_transformers_modules import LossState
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


def trained() -> nn.Sequential:
    """A model that was saved with what TriFactorContrast learned, and loaded."""
    model, loss = nn.Sequential(Table()), TriFactorContrast(D)
    SentenceTransformers(model, loss)
    nn.init.uniform_(loss.importance.theta, 1, 2)
    return nn.Sequential(model[0], LossState._rebuilt({}, model[1].state_dict()))


def test_what_a_loss_learned_goes_on_in_a_loaded_model() -> None:
    model, loss = trained(), TriFactorContrast(D)
    learned = model[1].state_dict()
    adapter = SentenceTransformers(model, loss)
    assert [type(module) for module in model] == [Table, LossState], "one state"
    assert model[1].state is loss
    torch.testing.assert_close(model[1].state_dict(), learned)
    sum(adapter([{"input_ids": torch.arange(N)}, {"input_ids": torch.arange(N, 2 * N)}]).values()).backward()
    assert loss.importance.theta.grad.abs().sum() > 0


def test_a_second_loss_leaves_one_state() -> None:
    for other in (TriFactorContrast(D + 1), SupConLoss(temperature=nn.Parameter(torch.tensor(0.1)))):
        model = trained()
        with pytest.raises(ValueError, match=r"does not fit .* differ.*modules=list\(model\)\[:-1\]"):
            SentenceTransformers(model, other)
        assert len(model) == 2
    first = SentenceTransformers(model, TriFactorContrast(D))
    SentenceTransformers(model, TriFactorContrast(D))
    with pytest.raises(ValueError, match="another loss took its place"):
        first([{"input_ids": torch.arange(N)}] * 2)


@pytest.mark.parametrize(
    ("head", "width"),
    [
        (nn.Sequential(nn.Sequential(NonNegLinear(8, 4), Floor()), nn.Sequential(NonNegLinear(4, 5), Floor())), 5),
        (nn.Sequential(nn.Sequential(NonNegProjection(8, 16, 5)), nn.ReLU()), 5),
        (
            nn.Sequential(OrderedDict(first=NonNegLinear(8, 4), last=nn.Sequential(OrderedDict(a=NonNegLinear(4, 5))))),
            5,
        ),
        (nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4), nn.BatchNorm1d(4), nn.GELU(), NonNegLinear(4, 5)), 5),
        (nn.Linear(8, 5, bias=False), 5),
        (nn.ReLU(), None),
    ],
)
def test_a_head_is_built_again_with_its_names_and_width(head: nn.Module, width: int | None) -> None:
    module = SentenceTransformersHead(head).eval()
    assert module.get_embedding_dimension() == width
    again = SentenceTransformersHead._rebuilt(json.loads(json.dumps(module.get_config_dict())), module.state_dict())
    z = {"sentence_embedding": torch.randn(N, 8)}
    torch.testing.assert_close(again.eval()(dict(z)), module(dict(z)))
    assert [name for name, _ in again.named_modules()] == [name for name, _ in module.named_modules()]
