"""The same numbers as the libraries that people use now, run as they are installed: value and gradient to 1e-6."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import ssl_heads as heads
from ssl_heads import functional as ours
from tests.checks import assert_gradient_close, relative_error

N, D = 16, 32
TOLERANCE = 1e-6
impls = pytest.mark.parametrize("impl", ["dense", "tiled"])


def assert_agree(actual: Callable[..., Tensor], peer: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Value and all gradients, in float64, so that only the equations can differ."""
    mine = [x.detach().double().requires_grad_() for x in inputs]
    theirs = [x.detach().double().requires_grad_() for x in inputs]
    value, expected = actual(*mine), peer(*theirs)
    assert relative_error(value, expected) < TOLERANCE
    for g, e in zip(torch.autograd.grad(value, mine), torch.autograd.grad(expected, theirs), strict=True):
        if e.ndim == 2:
            assert_gradient_close(g, e, TOLERANCE)
        else:
            assert relative_error(g, e) < TOLERANCE


def views() -> tuple[Tensor, Tensor]:
    z0 = torch.randn(N, D)
    return z0, z0 + torch.randn(N, D)


def unit_views() -> tuple[Tensor, Tensor]:
    image, text = (torch.nn.functional.normalize(z, dim=-1) for z in views())
    return image, text


# -------------------------------------------------------------------------------------------------------------- lightly


@impls
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_lightly_nt_xent(impl: str, temperature: float) -> None:
    loss = pytest.importorskip("lightly.loss")
    peer = loss.NTXentLoss(temperature=temperature)
    assert_agree(heads.NTXentLoss(temperature, impl=impl), peer, *views())


@impls
def test_lightly_memory_bank(impl: str) -> None:
    """With a memory bank lightly's loss is MoCo's."""
    loss = pytest.importorskip("lightly.loss")
    peer = loss.NTXentLoss(temperature=0.1, memory_bank_size=(48, D))
    peer(*views())  # fills the bank
    bank = peer.memory_bank.bank.detach().clone().double()
    assert bank.shape == (48, D)

    def constant_bank(out0: Tensor, out1: Tensor) -> Tensor:
        peer.memory_bank.bank = bank.clone()
        return peer(out0, out1)

    criterion = heads.InfoNCELoss(0.1, impl=impl)
    assert_agree(lambda q, k: criterion(q, k, bank), constant_bank, *views())


# ------------------------------------------------------------------------------------------------------------ open_clip


@impls
def test_open_clip(impl: str) -> None:
    peer = pytest.importorskip("open_clip.loss").ClipLoss()
    criterion = heads.CLIPLoss(impl=impl)
    assert_agree(criterion, peer, *unit_views(), torch.tensor(14.3))
    scale, bias = torch.tensor([14.3]), torch.tensor([-10.0])
    image, text = (x.double() for x in unit_views())
    assert criterion(image, text, scale, bias).item() == pytest.approx(peer(image, text, scale, bias).item(), rel=1e-6)


@impls
@pytest.mark.parametrize("bias", [-10.0, 0.0])
def test_open_clip_siglip(impl: str, bias: float) -> None:
    peer = pytest.importorskip("open_clip.loss").SigLipLoss()
    assert_agree(heads.SigLIPLoss(impl=impl), peer, *unit_views(), torch.tensor(10.0), torch.tensor(bias))


def test_open_clip_calls() -> None:
    """The training loop passes what the model returns by name, and sums the values of the dictionary."""
    clip, siglip = (getattr(pytest.importorskip("open_clip.loss"), name)() for name in ("ClipLoss", "SigLipLoss"))
    image, text = unit_views()
    model_out = {
        "image_features": image,
        "text_features": text,
        "logit_scale": torch.tensor(10.0),
        "logit_bias": torch.tensor(-10.0),
    }
    for criterion, peer in ((heads.CLIPLoss(), clip), (heads.SigLIPLoss(), siglip)):
        mine, theirs = criterion(**model_out, output_dict=True), peer(**model_out, output_dict=True)
        assert mine.keys() == theirs.keys()
        assert all(relative_error(mine[key], theirs[key]) < 1e-6 for key in mine)


# ---------------------------------------------------------------------------------------------- pytorch-metric-learning


@impls
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_metric_learning_nt_xent(impl: str, temperature: float) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    peer = losses.SelfSupervisedLoss(losses.NTXentLoss(temperature))
    assert_agree(heads.NTXentLoss(temperature, impl=impl), peer, *views())


@impls
def test_metric_learning_one_direction(impl: str) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    peer = losses.SelfSupervisedLoss(losses.NTXentLoss(0.5), symmetric=False)
    assert_agree(heads.InfoNCELoss(0.5, impl=impl), peer, *views())


@impls
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_metric_learning_sup_con(impl: str, temperature: float) -> None:
    """Every class has two rows or more: a row that has no positive is averaged away there, as here."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    labels = torch.arange(N) % 5
    peer, criterion = losses.SupConLoss(temperature), heads.SupConLoss(temperature, impl=impl)
    assert_agree(lambda z: criterion(z, labels), lambda z: peer(z, labels), views()[0])


@impls
def test_metric_learning_rows_without_a_positive(impl: str) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    labels = torch.tensor([0, 0, 0, 1, 1, *range(2, N - 3)])
    assert len(labels) == N
    peer, criterion = losses.SupConLoss(0.5), heads.SupConLoss(0.5, impl=impl)
    assert_agree(lambda z: criterion(z, labels), lambda z: peer(z, labels), views()[0])


# ----------------------------------------------------------------------------------------------------------- solo-learn


def solo_learn(z: Tensor, indexes: Tensor, temperature: float) -> Tensor:
    """``simclr_loss_func`` of solo-learn, which the papers' code is a fork of: sums of exponentials under a mask."""
    z = torch.nn.functional.normalize(z, dim=-1)
    similarity = torch.exp(torch.einsum("if, jf -> ij", z, z) / temperature)
    indexes = indexes[:, None]
    positive_mask = indexes.t() == indexes
    positive_mask.fill_diagonal_(False)
    negative_mask = indexes.t() != indexes
    positive = torch.sum(similarity * positive_mask, 1)
    negative = torch.sum(similarity * negative_mask, 1)
    return -torch.mean(torch.log(positive / (positive + negative)))


@impls
@pytest.mark.parametrize("temperature", [0.1, 0.2])
def test_solo_learn_two_views(impl: str, temperature: float) -> None:
    indexes = torch.arange(N).repeat(2)
    criterion = heads.NTXentLoss(temperature, impl=impl)
    assert_agree(criterion, lambda a, b: solo_learn(torch.cat([a, b]), indexes, temperature), *views())


@impls
def test_solo_learn_with_labels_sums_inside_the_logarithm(impl: str) -> None:
    labels = torch.arange(N) % 5
    criterion = heads.SupConLoss(0.5, "in", impl=impl)
    assert_agree(lambda z: criterion(z, labels), lambda z: solo_learn(z, labels, 0.5), views()[0])
    outside = heads.SupConLoss(0.5, "out", impl=impl)
    z = views()[0]
    assert outside(z, labels) > criterion(z, labels) + 0.5, "two losses under one intent"


def test_solo_learn_overflows_where_ours_does_not() -> None:
    z0, z1 = views()
    assert torch.isnan(solo_learn(torch.cat([z0, z1]), torch.arange(N).repeat(2), 0.01))
    assert torch.isfinite(ours.nt_xent(z0, z1, 0.01))
