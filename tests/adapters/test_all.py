"""What holds for every adapter."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from ssl_heads import TriFactorContrast, param_groups
from ssl_heads.adapters import HuggingFaceCLIP, MetricLearning, OpenCLIP, SentenceTransformers, SoloLearnSimCLR
from tests.adapters.support import D, N, Table, unit


def calls() -> dict[str, tuple[nn.Module, tuple[object, ...]]]:
    image, text, scale = unit(N, D), unit(N, D), torch.tensor(5.0)
    model = nn.Module()
    model.logit_scale = nn.Parameter(torch.tensor(1.6))
    labels = torch.arange(N).repeat(2)
    both = torch.cat([image, text])
    columns = [{"input_ids": torch.arange(N)}, {"input_ids": torch.arange(N, 2 * N)}]
    return {
        "solo-learn": (SoloLearnSimCLR(TriFactorContrast(D)), (both, labels, 0.3)),
        "open_clip": (OpenCLIP(TriFactorContrast(D)), (image, text, scale)),
        "hugging face": (
            HuggingFaceCLIP(TriFactorContrast(D), model),
            (SimpleNamespace(image_embeds=image, text_embeds=text),),
        ),
        "sentence-transformers": (SentenceTransformers(Table(), TriFactorContrast(D)), (columns,)),
        "metric learning": (MetricLearning(TriFactorContrast(D)), (both, labels)),
    }


def summed(value: Tensor | dict[str, Tensor]) -> Tensor:
    return torch.stack(list(value.values())).sum() if isinstance(value, dict) else value


@pytest.mark.parametrize("name", calls())
def test_an_importance_that_no_optimiser_holds_is_noticed_through_the_adapter(name: str) -> None:
    loss, given = calls()[name]
    with pytest.warns(UserWarning, match="importance has not changed in 100 training steps.*optimiser"):
        [summed(loss(*given)) for _ in range(101)]


@pytest.mark.parametrize("name", calls())
def test_an_importance_in_the_optimiser_moves(name: str) -> None:
    loss, given = calls()[name]
    importance = loss.loss.importance
    optimizer = torch.optim.SGD(param_groups(loss, lr=1.0, weight_decay=0.0))
    before = importance().detach()
    summed(loss(*given)).backward()
    optimizer.step()
    assert not torch.equal(importance(), before)


@pytest.mark.parametrize("name", calls())
def test_adapters_are_copied_and_pickled(name: str) -> None:
    loss, given = calls()[name]
    value = summed(loss(*given))
    for duplicate in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        torch.testing.assert_close(summed(duplicate(*given)), value)


@pytest.mark.parametrize("name", ["solo-learn", "open_clip"])
def test_adapters_compile_as_one_graph(name: str) -> None:
    loss, given = calls()[name]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), loss(*given))
