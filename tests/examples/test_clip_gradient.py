"""The gradient by cached embeddings is that of the large batch, for every arm of the CLIP example."""

from __future__ import annotations

import contextlib

import clip_finetune
import clip_gradient
import clip_towers
import pytest
import torch
from torch import Tensor, nn

from tests.checks import assert_gradient_close, relative_error


class Toy(clip_towers.Tower):
    width = 12

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(7, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(dropout))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layers(hidden)


def model_of(arm: str, dropout: float) -> clip_finetune.Signed:
    torch.manual_seed(0)
    args = clip_finetune.parse(["--hidden", "16", "--dim", "10", "--dropout", str(dropout)])
    towers = clip_towers.Towers(Toy(dropout), Toy(dropout), lambda _: torch.empty(0), 8, aligned=False)
    return clip_finetune.ARMS[arm](towers, args).train()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def cached(arm: str, dropout: float, micro_batch: int, precision: str = "fp32") -> tuple[float, dict[str, Tensor]]:
    model, (image, text) = model_of(arm, dropout), torch.randn(2, 30, 7, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    how = clip_gradient.Precision("cpu", precision)
    loss = clip_gradient.backward((model.image, model.text), (image, text), model.loss, micro_batch, how)
    return loss.item(), gradients(model)


def direct(arm: str, dropout: float, micro_batch: int) -> tuple[float, dict[str, Tensor]]:
    """One graph over the whole batch; it draws the dropout of the towers part by part, too."""
    model, (image, text) = model_of(arm, dropout), torch.randn(2, 30, 7, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    towers = ((model.image, image), (model.text, text))
    whole = [torch.cat([tower(part) for part in x.split(micro_batch)]) for tower, x in towers]
    loss = model.loss(*whole)
    loss.backward()
    return loss.item(), gradients(model)


@pytest.mark.parametrize("arm", clip_finetune.ARMS)
@pytest.mark.parametrize("micro_batch", [8, 30])
def test_cached_gradient_is_that_of_the_large_batch(arm: str, micro_batch: int):
    loss, actual = cached(arm, 0.3, micro_batch)
    expected_loss, expected = direct(arm, 0.3, micro_batch)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert actual.keys() == expected.keys()
    for name in expected:
        if expected[name].norm() > 1e-6:  # a bias before batch statistics has none
            assert_gradient_close(actual[name], expected[name], rtol=1e-5)


def test_without_dropout_it_is_the_gradient_of_one_pass_over_all():
    _, actual = cached("nonneg", 0.0, 7)
    _, expected = direct("nonneg", 0.0, 30)
    for name in ("image.layers.0.weight", "text.layers.0.weight", "image_head.project.mlp.layers.0.weight"):
        assert_gradient_close(actual[name], expected[name], rtol=1e-5)


def test_a_gradient_of_the_micro_batches_alone_is_another():
    _, whole = cached("nonneg", 0.0, 30)
    model, (image, text) = model_of("nonneg", 0.0), torch.randn(2, 30, 7, generator=torch.Generator().manual_seed(1))
    for i, t in zip(image.split(15), text.split(15), strict=True):
        (model.loss(model.image(i), model.text(t)) / 2).backward()
    assert relative_error(gradients(model)["image.layers.0.weight"], whole["image.layers.0.weight"]) > 0.05


def test_dropout_that_is_not_replayed_gives_another_gradient(monkeypatch: pytest.MonkeyPatch):
    _, expected = direct("nonneg", 0.3, 8)
    monkeypatch.setattr(clip_gradient, "replayed", lambda *_: contextlib.nullcontext())
    _, actual = cached("nonneg", 0.3, 8)
    assert relative_error(actual["image.layers.0.weight"], expected["image.layers.0.weight"]) > 0.05


def test_under_autocast_the_towers_still_get_their_gradient():
    _, expected = direct("nonneg", 0.0, 30)
    _, actual = cached("nonneg", 0.0, 8, "bf16")
    assert actual.keys() == expected.keys()
    for name in ("image.layers.0.weight", "text.layers.0.weight"):
        assert relative_error(actual[name], expected[name]) < 0.1
