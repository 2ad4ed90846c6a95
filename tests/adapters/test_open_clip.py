"""open_clip's loss, beside the installed package's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_heads import CLIPLoss, InfoNCELoss, NTXentLoss, SigLIPLoss, SpectralLoss, TriFactorContrast
from ssl_heads.adapters import OpenCLIP
from tests.adapters.support import D, N, agree, unit


def test_open_clip_s_call_equals_open_clip_s_loss() -> None:
    open_clip = pytest.importorskip("open_clip")
    image, text, scale = unit(N, D), unit(N, D), torch.tensor(14.3)
    given = {"image_features": image, "text_features": text, "logit_scale": scale}
    theirs = open_clip.ClipLoss()(**given, output_dict=True)
    for loss in (OpenCLIP(CLIPLoss()), CLIPLoss()):
        torch.testing.assert_close(loss(**given, output_dict=True), theirs)
    bias = torch.tensor(-10.0)
    torch.testing.assert_close(
        OpenCLIP(SigLIPLoss())(**given, logit_bias=bias, output_dict=True),
        open_clip.loss.SigLipLoss()(**given, logit_bias=bias, output_dict=True),
    )


def literal_one_direction(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    return F.cross_entropy(scale * image @ text.T, torch.arange(len(image)))


def test_the_model_s_scale_is_the_temperature_and_learns() -> None:
    image, text = unit(N, D), unit(N, D)
    loss = OpenCLIP(InfoNCELoss(0.9, normalize=False))
    agree(
        lambda scale: loss(image, text, scale),
        lambda scale: literal_one_direction(image.double(), text.double(), scale),
        torch.tensor(7.0),
    )
    assert loss.loss.temperature == 0.9


@pytest.mark.parametrize("loss", [CLIPLoss(), NTXentLoss(), SpectralLoss(), TriFactorContrast(D)])
def test_a_scale_may_be_a_number(loss: nn.Module) -> None:
    image, text = unit(N, D), unit(N, D)
    torch.testing.assert_close(OpenCLIP(loss)(image, text, 14.0), OpenCLIP(loss)(image, text, torch.tensor(14.0)))


def test_terms_are_named_for_open_clip_to_sum_and_log() -> None:
    image, text, scale = unit(N, D), unit(N, D), torch.tensor(5.0)
    tri = TriFactorContrast(D, temperature=1 / 5, decorrelation_weight=0.5, two_towers=True)
    losses = OpenCLIP(tri, penalty=lambda: torch.tensor(0.25))(image, text, scale, output_dict=True)
    assert set(losses) == {"contrast_loss", "decorrelation_loss", "penalty_loss"}
    assert sum(losses.values()).item() == pytest.approx(tri(image, text).item() + 0.25, rel=1e-6)
    assert OpenCLIP(tri)(image, text, scale).item() == pytest.approx(tri(image, text).item(), rel=1e-6)


@pytest.mark.parametrize("loss", [CLIPLoss(), NTXentLoss(), SpectralLoss(), TriFactorContrast(D)])
def test_ddp_finds_a_gradient_for_all_that_the_model_returned(loss: nn.Module) -> None:
    scale, bias, logits = torch.tensor(5.0), torch.tensor(-10.0), torch.randn(3, 4, 5)
    logits[0, 0, 0] = torch.inf
    given = {"logit_scale": scale, "logit_bias": bias, "logits": logits}
    for x in given.values():
        x.requires_grad_()
    value = OpenCLIP(loss)(unit(N, D), unit(N, D), **given)
    assert value.isfinite()
    value.backward()
    assert bias.grad == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    assert (scale.grad != 0) == (not isinstance(loss, SpectralLoss))


def test_what_open_clip_leaves_out_is_named() -> None:
    with pytest.raises(ValueError, match="text_features must be a tensor, got NoneType"):
        OpenCLIP(NTXentLoss())(unit(N, D), None, torch.tensor(5.0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"SigLIPLoss needs a logit_bias.*init_logit_bias=-10"):
        OpenCLIP(SigLIPLoss())(unit(N, D), unit(N, D), torch.tensor(5.0))
    with pytest.raises(ValueError, match=r"same shape \(n, d\), got \(6, 8\) and \(6, 7\)"):
        OpenCLIP(NTXentLoss())(unit(N, D), unit(N, D - 1), torch.tensor(5.0))


def test_open_clip_s_captioning_and_distillation_losses_stay() -> None:
    open_clip = pytest.importorskip("open_clip")
    image, text, teacher = unit(N, D), unit(N, D), unit(N, D)
    towers = {"image_features": image, "text_features": text, "logit_scale": torch.tensor(5.0)}
    captions = {"logits": torch.randn(N, 7, 50, requires_grad=True), "labels": torch.randint(1, 50, (N, 7))}
    teachers = {"dist_image_features": teacher, "dist_text_features": image, "dist_logit_scale": torch.tensor(4.0)}
    for theirs, others in (
        (open_clip.CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=0.5), captions),
        (open_clip.loss.DistillClipLoss(), teachers),
    ):
        expected = theirs(**towers, **others, output_dict=True)
        ours = OpenCLIP(CLIPLoss(), beside=theirs)(**towers, **others, output_dict=True)
        torch.testing.assert_close(ours, expected)
        total = OpenCLIP(CLIPLoss(), beside=theirs)(**towers, **others)
        torch.testing.assert_close(total, sum(expected.values()))
        with pytest.raises(ValueError, match=r"labels|dist_image_features.*beside=open_clip.create_loss\(args\)"):
            OpenCLIP(CLIPLoss())(**towers, **others)
    OpenCLIP(CLIPLoss(), beside=open_clip.CoCaLoss(2.0, 0.5))(**towers, **captions).backward()
    assert captions["logits"].grad.abs().sum() > 0
