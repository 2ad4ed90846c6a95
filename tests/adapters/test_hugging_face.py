"""Hugging Face's CLIP, its Trainer's loss."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_heads import CLIPLoss, NonNegProjection, NTXentLoss, TriFactorContrast
from ssl_heads.adapters import Floor, HuggingFaceCLIP
from tests.adapters.support import D, N, unit


@pytest.fixture(scope="module")
def clip_model() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": 20, "max_position_embeddings": 5, "eos_token_id": 19},
        vision_config={**small, "image_size": 8, "patch_size": 4},
        projection_dim=D,
    )
    torch.manual_seed(0)
    return transformers.CLIPModel(config)


def batch() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(19, (N, 5)), "pixel_values": torch.randn(N, 3, 8, 8)}


def test_hugging_face_s_model_gives_its_own_loss(clip_model: nn.Module) -> None:
    outputs = clip_model(**batch(), return_loss=True)
    loss = HuggingFaceCLIP(CLIPLoss(), clip_model)(outputs, labels=None, num_items_in_batch=None)
    torch.testing.assert_close(loss, outputs.loss)
    loss.backward()
    assert clip_model.logit_scale.grad != 0


def dead(out_features: int) -> nn.Module:
    """A head that gives rows of zeros."""
    head = NonNegProjection(16, 16, out_features, num_layers=1, norm=None)
    nn.init.zeros_(head.mlp.layers[0].weight)
    nn.init.constant_(head.mlp.layers[0].bias, -9)
    return head


def test_a_row_of_zeros_is_named_and_a_floor_prevents_it(clip_model: nn.Module) -> None:
    model, given = copy.deepcopy(clip_model), batch()
    model.visual_projection = dead(D)
    loss = HuggingFaceCLIP(NTXentLoss(), model)
    with pytest.raises(ValueError, match=r"no epsilon.*ssl_heads.adapters.Floor\(\) after"):
        loss(model(**given))
    model.visual_projection = nn.Sequential(model.visual_projection, Floor())
    value = loss(model(**given))
    value.backward()
    assert value.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("dtype", "epsilon"), [(torch.float32, 1e-3), (torch.bfloat16, 1e-3), (torch.float16, 0.1)])
def test_a_floored_row_of_zeros_passes_a_bounded_gradient(dtype: torch.dtype, epsilon: float) -> None:
    """Hugging Face's division without an epsilon, in the model's dtype; 0.1 where squares of 1e-3 underflow."""
    z = torch.zeros(1, 512, dtype=dtype, requires_grad=True)
    floored = Floor(epsilon)(z)
    upstream = F.normalize(torch.randn(1, 512), dim=1).to(dtype)
    (floored / floored.pow(2).sum(dim=-1, keepdim=True).pow(0.5) * upstream).sum().backward()
    assert z.grad is not None
    assert 0.5 / epsilon < z.grad.double().norm() < 1.1 / epsilon


def test_the_trainer_leaves_the_accumulation_to_the_loss(clip_model: nn.Module) -> None:
    outputs = clip_model(**batch())
    whole, quarter = (HuggingFaceCLIP(CLIPLoss(), clip_model, accumulation_steps=k) for k in (1, 4))
    torch.testing.assert_close(quarter(outputs) * 4, whole(outputs))
    with torch.no_grad():
        torch.testing.assert_close(quarter(outputs), whole(outputs))


def test_the_model_is_not_a_part_of_the_loss(clip_model: nn.Module) -> None:
    loss = HuggingFaceCLIP(TriFactorContrast(D), clip_model)
    assert [name for name, _ in loss.named_parameters()] == ["loss.importance.theta"]
    with pytest.raises(ValueError, match="Linear has no logit_scale"):
        HuggingFaceCLIP(CLIPLoss(), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"no image_embeds and text_embeds.*remove_unused_columns=False"):
        loss(SimpleNamespace(text_embeds=unit(N, D)))
