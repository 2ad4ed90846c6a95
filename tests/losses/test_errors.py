"""A user's mistake is a ValueError that shows what was given."""

from __future__ import annotations

import re

import pytest
import torch

from ssl_heads import (
    CLIPLoss,
    FeatureImportance,
    InfoNCELoss,
    NonNegCrossEntropy,
    NTXentLoss,
    SigLIPLoss,
    SpectralLoss,
    SupConLoss,
    TriFactorContrast,
)
from ssl_heads import functional as ours

Z = torch.randn(6, 4)
SHORT = torch.randn(5, 4)
WIDE = torch.randn(6, 3)
FLAT = torch.randn(6)
CUBE = torch.randn(6, 4, 2)
INTEGER = torch.ones(6, 4, dtype=torch.long)
EMPTY = torch.empty(0, 4)
LABELS = torch.arange(6)
ELSEWHERE = torch.empty(6, 4, device="meta")

BAD_TEMPERATURES = (0, 0.0, -1.0, float("nan"), float("inf"), -float("inf"))
PAIRED = {
    "nt_xent": lambda a, b: ours.nt_xent(a, b),
    "info_nce": lambda a, b: ours.info_nce(a, b),
    "clip": lambda a, b: ours.clip_loss(a, b, 1.0),
    "siglip": lambda a, b: ours.siglip_loss(a, b, 1.0, 0.0),
    "spectral": lambda a, b: ours.spectral_contrastive(a, b),
    "tri_factor": lambda a, b: ours.tri_factor_contrast(a, b, torch.ones(4)),
    "tri_factor_two_towers": lambda a, b: ours.tri_factor_two_towers(a, b, torch.ones(4)),
    "tri_factor_spectral": lambda a, b: ours.tri_factor_spectral(a, b, torch.ones(4)),
    "tri_factor_spectral_two_towers": lambda a, b: ours.tri_factor_spectral_two_towers(a, b, torch.ones(4)),
    "NTXentLoss": NTXentLoss(),
    "InfoNCELoss": InfoNCELoss(),
    "CLIPLoss": lambda a, b: CLIPLoss()(a, b, 1.0),
    "SigLIPLoss": lambda a, b: SigLIPLoss()(a, b, 1.0, 0.0),
    "SpectralLoss": SpectralLoss(),
    "TriFactorContrast": TriFactorContrast(4),
    "TriFactorContrast-spectral": TriFactorContrast(4, kind="spectral", two_towers=True),
}


@pytest.mark.parametrize(
    ("a", "b", "shown"),
    [
        (Z, SHORT, ["(6, 4)", "(5, 4)"]),
        (Z, WIDE, ["(6, 4)", "(6, 3)"]),
        (FLAT, FLAT, ["(6,)", "(n, d)"]),
        (CUBE, CUBE, ["(6, 4, 2)", "(n, d)"]),
        (Z, CUBE, ["(6, 4, 2)", "(n, d)"]),
        (INTEGER, INTEGER, ["torch.int64"]),
        (Z, INTEGER, ["torch.int64"]),
        (EMPTY, EMPTY, ["(0, 4)", "empty"]),
        (Z, ELSEWHERE, ["cpu", "meta"]),
        (ELSEWHERE, Z, ["cpu", "meta"]),
    ],
    ids=["rows", "widths", "vectors", "cubes", "one cube", "integers", "one integer", "empty", "devices", "devices-2"],
)
@pytest.mark.parametrize("name", PAIRED)
def test_pairs(name: str, a: torch.Tensor, b: torch.Tensor, shown: list[str]) -> None:
    with pytest.raises(ValueError, match=".*".join(map(re.escape, shown[:1]))) as error:
        PAIRED[name](a, b)
    for text in shown:
        assert text in str(error.value)


CALLS = {
    "ids-length": (lambda: ours.nt_xent(Z, Z, ids=torch.arange(12)), ["(6,)", "(12,)", "(6, 4)"]),
    "ids-shape": (lambda: ours.nt_xent(Z, Z, ids=torch.zeros(6, 1, dtype=torch.long)), ["(6,)", "(6, 1)"]),
    "ids-floating": (lambda: ours.nt_xent(Z, Z, ids=torch.zeros(6)), ["torch.float32"]),
    "ids-bool": (lambda: ours.nt_xent(Z, Z, ids=torch.zeros(6, dtype=torch.bool)), ["torch.bool"]),
    "ids-device": (lambda: ours.nt_xent(Z, Z, ids=torch.zeros(6, dtype=torch.long, device="meta")), ["cpu", "meta"]),
    "queue-width": (lambda: ours.info_nce(Z, Z, torch.randn(9, 3)), ["(6, 4)", "(9, 3)"]),
    "queue-transposed": (lambda: ours.info_nce(Z, Z, torch.randn(4, 9)), ["(6, 4)", "(4, 9)"]),
    "queue-vector": (lambda: ours.info_nce(Z, Z, torch.randn(4)), ["(4,)"]),
    "queue-empty": (lambda: ours.info_nce(Z, Z, torch.empty(0, 4)), ["(0, 4)"]),
    "queue-integer": (lambda: ours.info_nce(Z, Z, torch.ones(9, 4, dtype=torch.long)), ["torch.int64"]),
    "queue-device": (lambda: ours.info_nce(Z, Z, torch.empty(9, 4, device="meta")), ["cpu", "meta"]),
    "queue-ids-length": (
        lambda: ours.info_nce(Z, Z, torch.randn(9, 4), ids=torch.arange(6), queue_ids=torch.arange(6)),
        ["queue_ids", "(9,)", "(6,)", "(9, 4)"],
    ),
    "queue-without-ids": (lambda: ours.info_nce(Z, Z, torch.randn(9, 4), ids=torch.arange(6)), ["ids and queue"]),
    "queue-ids-alone": (lambda: ours.info_nce(Z, Z, queue_ids=torch.arange(6)), ["got queue_ids"]),
    "labels-length": (lambda: ours.sup_con(Z, torch.arange(5)), ["(6,)", "(5,)", "(6, 4)"]),
    "labels-floating": (lambda: ours.sup_con(Z, torch.zeros(6)), ["torch.float32"]),
    "labels-one-hot": (lambda: ours.sup_con(Z, torch.eye(6).long()), ["(6, 6)", "(6,)"]),
    "labels-device": (lambda: ours.sup_con(Z, LABELS.to("meta")), ["cpu", "meta"]),
    "sup_con-vector": (lambda: ours.sup_con(FLAT, LABELS), ["(6,)"]),
    "sup_con-empty": (lambda: ours.sup_con(EMPTY, torch.empty(0, dtype=torch.long)), ["(0, 4)"]),
    "multi_positive": (lambda: ours.sup_con(Z, LABELS, multi_positive="pairwise"), ["'pairwise'", "'out'", "'in'"]),
    "decorrelation-vector": (lambda: ours.decorrelation(FLAT), ["(6,)"]),
    "decorrelation-empty": (lambda: ours.decorrelation(EMPTY), ["(0, 4)"]),
    "decorrelation-integer": (lambda: ours.decorrelation(INTEGER), ["torch.int64"]),
    "decorrelation-no-width": (lambda: ours.decorrelation(Z[:, :0]), ["(6, 0)"]),
    "nt_xent-no-width": (lambda: ours.nt_xent(Z[:, :0], Z[:, :0]), ["(6, 0)"]),
    "importance-width": (lambda: ours.tri_factor_contrast(Z, Z, torch.ones(5)), ["(4,)", "(5,)", "(6, 4)"]),
    "importance-scalar": (lambda: ours.tri_factor_spectral(Z, Z, torch.tensor(1.0)), ["(4,)", "()"]),
    "importance-matrix": (lambda: ours.tri_factor_two_towers(Z, Z, torch.eye(4)), ["(4,)", "(4, 4)"]),
    "importance-device": (
        lambda: ours.tri_factor_spectral_two_towers(Z, Z, torch.ones(4, device="meta")),
        ["cpu", "meta"],
    ),
    "importance-module": (lambda: TriFactorContrast(5)(Z, Z), ["(5,)", "(6, 4)"]),
    "weight-width": (lambda: ours.nonneg_cross_entropy(Z, torch.ones(3, 5), LABELS % 3), ["(classes, 4)", "(3, 5)"]),
    "weight-vector": (lambda: ours.nonneg_cross_entropy(Z, torch.ones(4), LABELS % 3), ["(classes, 4)", "(4,)"]),
    "weight-device": (
        lambda: ours.nonneg_cross_entropy(Z, torch.ones(3, 4, device="meta"), LABELS % 3),
        ["cpu", "meta"],
    ),
    "class-labels-length": (lambda: NonNegCrossEntropy(4, 3)(Z, torch.arange(5)), ["(6,)", "(5,)", "(6, 4)"]),
    "class-labels-floating": (lambda: NonNegCrossEntropy(4, 3)(Z, torch.zeros(6)), ["torch.float32"]),
    "class-labels-too-large": (lambda: NonNegCrossEntropy(4, 3)(Z, LABELS), ["5", "3"]),
    "class-labels-negative": (lambda: NonNegCrossEntropy(4, 3)(Z, LABELS % 3 - 2), ["-2", "3"]),
    "features-width": (lambda: NonNegCrossEntropy(5, 3)(Z, LABELS % 3), ["(3, 5)", "(6, 4)"]),
    "features-empty": (lambda: NonNegCrossEntropy(4, 3)(EMPTY, LABELS[:0]), ["(0, 4)"]),
    "sizes": (lambda: NonNegCrossEntropy(0, 3), ["0", "3"]),
    "classes": (lambda: NonNegCrossEntropy(4, -2), ["4", "-2"]),
    "tri_factor-nothing": (lambda: TriFactorContrast(), ["dim=None", "importance=None"]),
    "tri_factor-both": (lambda: TriFactorContrast(4, importance=FeatureImportance(4)), ["dim=4", "FeatureImportance"]),
    "tri_factor-dim": (lambda: TriFactorContrast(0), ["0"]),
    "tri_factor-kind": (lambda: TriFactorContrast(4, kind="nce"), ["'nce'", "'infonce'", "'spectral'"]),
    "tri_factor-weight": (lambda: TriFactorContrast(4, decorrelation_weight=-0.5), ["-0.5"]),
    "tri_factor-weight-nan": (lambda: TriFactorContrast(4, decorrelation_weight=float("nan")), ["nan"]),
    "tri_factor-weight-inf": (lambda: TriFactorContrast(4, decorrelation_weight=float("inf")), ["inf"]),
    "sup_con-form": (lambda: SupConLoss(0.1, "both"), ["'both'", "'out'", "'in'"]),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls(name: str) -> None:
    call, shown = CALLS[name]
    with pytest.raises(ValueError, match=re.escape(shown[0])) as error:
        call()
    for text in shown:
        assert text in str(error.value)


TEMPERED = {
    "nt_xent": lambda t: ours.nt_xent(Z, Z, t),
    "info_nce": lambda t: ours.info_nce(Z, Z, None, t),
    "sup_con": lambda t: ours.sup_con(Z, LABELS, t),
    "tri_factor_contrast": lambda t: ours.tri_factor_contrast(Z, Z, torch.ones(4), t),
    "tri_factor_two_towers": lambda t: ours.tri_factor_two_towers(Z, Z, torch.ones(4), t),
    "NTXentLoss": NTXentLoss,
    "InfoNCELoss": InfoNCELoss,
    "SupConLoss": SupConLoss,
    "TriFactorContrast": lambda t: TriFactorContrast(4, temperature=t),
}


@pytest.mark.parametrize("temperature", BAD_TEMPERATURES)
@pytest.mark.parametrize("name", TEMPERED)
def test_temperatures(name: str, temperature: float) -> None:
    with pytest.raises(ValueError, match=rf"temperature must be a finite number above 0, got {temperature}$"):
        TEMPERED[name](temperature)


CHOSEN = {
    "nt_xent": lambda i: ours.nt_xent(Z, Z, impl=i),
    "info_nce": lambda i: ours.info_nce(Z, Z, impl=i),
    "clip": lambda i: ours.clip_loss(Z, Z, 1.0, impl=i),
    "siglip": lambda i: ours.siglip_loss(Z, Z, 1.0, 0.0, impl=i),
    "sup_con-out": lambda i: ours.sup_con(Z, LABELS, impl=i),
    "sup_con-in": lambda i: ours.sup_con(Z, LABELS, multi_positive="in", impl=i),
    "tri_factor_contrast": lambda i: ours.tri_factor_contrast(Z, Z, torch.ones(4), impl=i),
    "tri_factor_two_towers": lambda i: ours.tri_factor_two_towers(Z, Z, torch.ones(4), impl=i),
    "NTXentLoss": lambda i: NTXentLoss(impl=i),
    "InfoNCELoss": lambda i: InfoNCELoss(impl=i),
    "CLIPLoss": lambda i: CLIPLoss(impl=i),
    "SigLIPLoss": lambda i: SigLIPLoss(impl=i),
    "SupConLoss": lambda i: SupConLoss(impl=i),
    "TriFactorContrast": lambda i: TriFactorContrast(4, impl=i),
}


@pytest.mark.parametrize("impl", ["fast", "", "Dense", None])
@pytest.mark.parametrize("name", CHOSEN)
def test_implementations(name: str, impl: str) -> None:
    with pytest.raises(ValueError, match=rf"impl must be one of 'auto', 'dense', 'tiled'.*, got {impl!r}$"):
        CHOSEN[name](impl)


SCALARS = {
    "nt_xent": lambda t: ours.nt_xent(Z, Z, t),
    "info_nce": lambda t: ours.info_nce(Z, Z, None, t),
    "sup_con": lambda t: ours.sup_con(Z, LABELS, t),
    "tri_factor": lambda t: ours.tri_factor_contrast(Z, Z, torch.ones(4), t),
    "tri_factor_two_towers": lambda t: ours.tri_factor_two_towers(Z, Z, torch.ones(4), t),
    "clip-scale": lambda t: ours.clip_loss(Z, Z, t),
    "siglip-scale": lambda t: ours.siglip_loss(Z, Z, t, 0.0),
    "siglip-bias": lambda t: ours.siglip_loss(Z, Z, 1.0, t),
}


@pytest.mark.parametrize("shape", [(4,), (6,), (0,), (6, 4), (2, 1)], ids=str)
@pytest.mark.parametrize("name", SCALARS)
def test_scalars(name: str, shape: tuple[int, ...]) -> None:
    """One number for the whole batch: a vector would be broadcast along whatever axis fits."""
    with pytest.raises(ValueError, match=re.escape(str(shape))):
        SCALARS[name](torch.full(shape, 0.5))
