"""Numbers, embeddings and labels as people have them: taken where the meaning is certain, else refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import ssl_heads as sh
from ssl_heads import adapters
from ssl_heads import functional as ours

Z, W, LABELS, ONES = torch.randn(6, 4), torch.randn(6, 4), torch.arange(6) % 3, torch.ones(4)
PAIRED = torch.arange(3).repeat(2)
Call = Callable[[Any], Any]

# ------------------------------------------------------------------------------------------------------------- numbers

NUMBERS: dict[str, Call] = {
    "nt_xent": lambda x: ours.nt_xent(Z, W, x),
    "info_nce": lambda x: ours.info_nce(Z, W, None, x),
    "sup_con": lambda x: ours.sup_con(Z, LABELS, x),
    "tri_factor_contrast": lambda x: ours.tri_factor_contrast(Z, W, ONES, x),
    "tri_factor_two_towers": lambda x: ours.tri_factor_two_towers(Z, W, ONES, x),
    "clip-scale": lambda x: ours.clip_loss(Z, W, x),
    "siglip-scale": lambda x: ours.siglip_loss(Z, W, x, 0.0),
    "siglip-bias": lambda x: ours.siglip_loss(Z, W, 1.0, x),
    "clip-bias": lambda x: ours.clip_loss(Z, W, 1.0, "none" if x is None else x),
    "NTXentLoss": lambda x: sh.NTXentLoss(x)(Z, W),
    "InfoNCELoss": lambda x: sh.InfoNCELoss(x)(Z, W),
    "SupConLoss": lambda x: sh.SupConLoss(x)(Z, LABELS),
    "TriFactorContrast": lambda x: sh.TriFactorContrast(4, temperature=x)(Z, W),
    "decorrelation-weight": lambda x: sh.TriFactorContrast(4, decorrelation_weight=x)(Z, W),
    "NegativeDot": lambda x: sh.DeltaContrast("infonce", sh.NegativeDot(x))(Z, W),
    "NegativeCosine": lambda x: sh.DeltaContrast("infonce", sh.NegativeCosine(x))(Z, W),
    "clamp": lambda x: ours.delta_contrast(Z, W, "nwj", sh.NegativeDot(), clamp=x),
    "DeltaContrast-clamp": lambda x: sh.DeltaContrast("nwj", clamp=x)(Z, W),
    "prior": lambda x: torch.tensor(sh.BayesianGate(4, 4, norm=None, prior=x).prior),
    "threshold": lambda x: torch.tensor(sh.BayesianGate(4, 4, norm=None, threshold=x).threshold),
    "gate-temperature": lambda x: torch.as_tensor(sh.BayesianGate(4, 4, norm=None, temperature=x).temperature),
    "straight_through-threshold": lambda x: ours.straight_through_gate(Z, x),
    "straight_through-temperature": lambda x: ours.straight_through_gate(Z, 0.3, x),
    "soft_gate": lambda x: ours.soft_gate(Z, x),
    "bernoulli_kl": lambda x: ours.bernoulli_kl(Z, x),
    "eps": lambda x: ours.safe_normalize(Z, "none" if x is None else x),
    "Lp-p": lambda x: torch.tensor(sh.LpPower(2 * x if isinstance(x, float | np.floating) else x).p / 2),
}
NO_NUMBERS = {
    "string": "0.5",
    "None": None,
    "truth value": True,
    "NumPy's truth value": np.True_,
    "complex": 0.5j,
    "complex tensor": torch.tensor(0.5j),
    "list": [0.5],
    "array": np.array([0.5, 0.3]),
    "NumPy's string": np.array("a"),
    "truth tensor": torch.tensor(True),
    "object": object(),
}
SAME_NUMBER = {"float32": np.float32(0.5), "float64": np.float64(0.5)}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_one_number(name: str) -> None:
    expected = NUMBERS[name](0.5)
    for given, x in SAME_NUMBER.items():
        assert torch.allclose(NUMBERS[name](x), expected), given
    if name != "Lp-p":
        assert torch.allclose(NUMBERS[name](np.array(0.5)), expected)
        assert torch.allclose(NUMBERS[name](torch.tensor([0.5])), expected)
    for given, x in NO_NUMBERS.items():
        with pytest.raises(ValueError, match="must be one number"):
            print(given, NUMBERS[name](x))


COUNTS: dict[str, Call] = {
    "NonNegProjection-in": lambda n: sh.NonNegProjection(n, 8, 8),
    "NonNegProjection-hidden": lambda n: sh.NonNegProjection(8, n, 8),
    "NonNegProjection-out": lambda n: sh.NonNegProjection(8, 8, n),
    "NonNegProjection-layers": lambda n: sh.NonNegProjection(8, 8, 8, num_layers=n),
    "NonNegLinear-in": lambda n: sh.NonNegLinear(n, 8),
    "NonNegLinear-out": lambda n: sh.NonNegLinear(8, n),
    "BayesianGate-in": lambda n: sh.BayesianGate(n, 8),
    "BayesianGate-out": lambda n: sh.BayesianGate(8, n),
    "FeatureImportance": sh.FeatureImportance,
    "NonNegCrossEntropy-in": lambda n: sh.NonNegCrossEntropy(n, 8),
    "NonNegCrossEntropy-classes": lambda n: sh.NonNegCrossEntropy(8, n),
    "anchors-classes": lambda n: sh.OrthonormalAnchorRegression(n, 8),
    "anchors-dim": lambda n: sh.OrthonormalAnchorRegression(8, n),
    "anchors-seed": lambda n: sh.OrthonormalAnchorRegression(8, 8, seed=n),
    "anchors-ignore_index": lambda n: sh.OrthonormalAnchorRegression(8, 8, ignore_index=n),
    "class_anchors-classes": lambda n: ours.class_anchors(n, 8),
    "class_anchors-dim": lambda n: ours.class_anchors(8, n),
    "welch_bound-classes": lambda n: ours.welch_bound(n, 8),
    "welch_bound-dim": lambda n: ours.welch_bound(8, n),
    "MLPCorrection": sh.MLPCorrection,
    "MLPCorrection-hidden": lambda n: sh.MLPCorrection(8, (n,)),
    "MemoryQueue-size": lambda n: sh.MemoryQueue(n, 8),
    "MemoryQueue-dim": lambda n: sh.MemoryQueue(8, n),
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_is_an_integer(name: str) -> None:
    COUNTS[name](np.int64(8))
    for n in ("8", 8.0, 2.5, float("nan"), True, None, [8], np.array([8]), np.float32(8)):
        with pytest.raises(ValueError, match="must be an integer, got"):
            COUNTS[name](n)


# ---------------------------------------------------------------------------------------------------------- embeddings

PAIRS: dict[str, Callable[[Any, Any], Any]] = {
    "nt_xent": ours.nt_xent,
    "info_nce": ours.info_nce,
    "clip_loss": lambda a, b: ours.clip_loss(a, b, 1.0),
    "siglip_loss": lambda a, b: ours.siglip_loss(a, b, 1.0, 0.0),
    "spectral_contrastive": ours.spectral_contrastive,
    "tri_factor_contrast": lambda a, b: ours.tri_factor_contrast(a, b, ONES),
    "tri_factor_two_towers": lambda a, b: ours.tri_factor_two_towers(a, b, ONES),
    "tri_factor_spectral": lambda a, b: ours.tri_factor_spectral(a, b, ONES),
    "tri_factor_spectral_two_towers": lambda a, b: ours.tri_factor_spectral_two_towers(a, b, ONES),
    "delta_contrast": lambda a, b: ours.delta_contrast(a, b, "nce", sh.LpPower(1)),
    "NTXentLoss": sh.NTXentLoss(),
    "InfoNCELoss": sh.InfoNCELoss(),
    "CLIPLoss": lambda a, b: sh.CLIPLoss()(a, b, 1.0),
    "SigLIPLoss": lambda a, b: sh.SigLIPLoss()(a, b, 1.0, 0.0),
    "SpectralLoss": sh.SpectralLoss(),
    "TriFactorContrast": sh.TriFactorContrast(4),
    "TriFactorContrast-towers": sh.TriFactorContrast(4, two_towers=True),
    "TriFactorContrast-spectral": sh.TriFactorContrast(4, kind="spectral"),
    "DeltaContrast": sh.DeltaContrast(),
    "DeltaContrast-start": lambda a, b: sh.DeltaContrast("nwj", alpha=sh.MLPCorrection(4))(a, b),
    "OpenCLIP": lambda a, b: adapters.OpenCLIP(sh.CLIPLoss())(a, b, torch.tensor(1.0)),
    "MetricLearning": lambda a, b: adapters.MetricLearning(sh.InfoNCELoss())(
        a, LABELS, None, "none" if b is None else b
    ),
    "SoloLearnMoCo": lambda a, b: adapters.SoloLearnMoCo()(a, b, torch.randn(4, 9)),
}
ROWS: dict[str, Call] = {
    "sup_con": lambda x: ours.sup_con(x, LABELS),
    "SupConLoss": lambda x: sh.SupConLoss()(x, LABELS),
    "anchor_regression": lambda x: ours.anchor_regression(x, LABELS, torch.eye(3, 4)),
    "anchor_regression-anchors": lambda x: ours.anchor_regression(Z, LABELS, x),
    "OrthonormalAnchorRegression": lambda x: sh.OrthonormalAnchorRegression(3, 4)(x, LABELS),
    "decorrelation": ours.decorrelation,
    "nonneg_cross_entropy": lambda x: ours.nonneg_cross_entropy(x, torch.rand(3, 4), LABELS),
    "nonneg_cross_entropy-weight": lambda x: ours.nonneg_cross_entropy(Z, x, LABELS),
    "NonNegCrossEntropy": lambda x: sh.NonNegCrossEntropy(4, 3)(x, LABELS),
    "queue": lambda x: ours.info_nce(Z, W, x if x is not None else "none"),
    "enqueue": lambda x: sh.MemoryQueue(9, 4).enqueue(x),
    "coherence": ours.coherence,
    "MetricLearning-labels": lambda x: adapters.MetricLearning(sh.SupConLoss())(x, LABELS),
    "SoloLearnSimCLR": lambda x: adapters.SoloLearnSimCLR(sh.NTXentLoss())(x, PAIRED),
    "MoCoCriterion": lambda x: adapters.MoCoCriterion()(x, torch.zeros(6, dtype=torch.long)),
}
NO_ROWS = {
    "NumPy's": Z.numpy(),
    "list": Z.tolist(),
    "integers": torch.ones(6, 4, dtype=torch.long),
    "complex": torch.randn(6, 4, dtype=torch.complex64),
    "cube": torch.randn(6, 4, 2),
    "vector": torch.randn(6),
    "None": None,
    "string": "z",
    "gated": sh.GatedEmbedding(Z, Z, Z, Z.sum()),
}


@pytest.mark.parametrize("given", NO_ROWS)
@pytest.mark.parametrize("name", [*PAIRS, *ROWS])
def test_embeddings_are_a_floating_matrix(name: str, given: str) -> None:
    x = NO_ROWS[given]
    calls = [lambda: PAIRS[name](x, W), lambda: PAIRS[name](Z, x)] if name in PAIRS else [lambda: ROWS[name](x)]
    for call in calls:
        with pytest.raises(ValueError, match=r"must (be|have)"):
            call()


@pytest.mark.parametrize("name", [*PAIRS, *ROWS])
def test_float16_is_taken_on_the_cpu(name: str) -> None:
    given = PAIRS[name](Z.half(), W.half()) if name in PAIRS else ROWS[name](Z.half())
    assert not isinstance(given, torch.Tensor) or given.dtype == torch.float32


@pytest.mark.parametrize(
    "importance", [np.ones(4), [1.0] * 4, None, 1.0, torch.ones(4).bool(), ONES + 0j, sh.FeatureImportance(4)]
)
def test_an_importance_is_a_floating_vector(importance: Any) -> None:
    for loss in (
        ours.tri_factor_contrast,
        ours.tri_factor_two_towers,
        ours.tri_factor_spectral,
        ours.tri_factor_spectral_two_towers,
    ):
        with pytest.raises(ValueError, match="importance must"):
            loss(Z, W, importance)


@pytest.mark.parametrize("correction", [np.ones(6), [1.0] * 6, 1.0, torch.ones(6) + 0j, torch.ones(6, 1)])
def test_a_correction_is_a_floating_vector(correction: Any) -> None:
    for name in ("alpha", "alpha_tilde"):
        with pytest.raises(ValueError, match=f"{name} must"):
            ours.delta_contrast(Z, W, "nce", sh.LpPower(1), **{name: correction})


def test_a_dissimilarity_has_its_methods() -> None:
    for of in (lambda d: ours.delta_contrast(Z, W, "nce", d), lambda d: sh.DeltaContrast("nce", d)):
        with pytest.raises(ValueError, match="lacks paired, pairwise, factors"):
            of("cosine")


# ------------------------------------------------------------------------------------------------------- labels and ids

INTEGERS: dict[str, Call] = {
    "nt_xent": lambda i: ours.nt_xent(Z, W, ids=i),
    "NTXentLoss": lambda i: sh.NTXentLoss()(Z, W, i),
    "info_nce": lambda i: ours.info_nce(Z, W, ids=i),
    "info_nce-queue": lambda i: ours.info_nce(Z, W, W, ids=i, queue_ids=LABELS),
    "info_nce-queue-ids": lambda i: ours.info_nce(Z, W, W, ids=LABELS, queue_ids=i),
    "sup_con-out": lambda i: ours.sup_con(Z, i),
    "sup_con-in": lambda i: ours.sup_con(Z, i, multi_positive="in"),
    "SupConLoss": lambda i: sh.SupConLoss()(Z, i),
    "OrthonormalAnchorRegression": lambda i: sh.OrthonormalAnchorRegression(3, 4)(Z, i),
    "nonneg_cross_entropy": lambda i: ours.nonneg_cross_entropy(Z, torch.ones(3, 4), i),
    "MetricLearning": lambda i: adapters.MetricLearning(sh.SupConLoss())(Z, i),
    "MetricLearning-references": lambda i: adapters.MetricLearning(sh.InfoNCELoss())(Z, i, None, W),
    "MetricLearning-their-labels": lambda i: adapters.MetricLearning(sh.InfoNCELoss())(Z, LABELS, None, W, i),
    "SoloLearnSimCLR": lambda i: adapters.SoloLearnSimCLR(sh.SupConLoss())(Z, i),
    "enqueue": lambda i: sh.MemoryQueue(9, 4).enqueue(Z, i),
}
NO_INTEGERS = {
    "NumPy's": LABELS.numpy(),
    "list": LABELS.tolist(),
    "floating": LABELS.float(),
    "truth values": LABELS.bool(),
    "uint64, whose largest is not -1": LABELS.to(torch.uint64),
    "column": LABELS[:, None],
    "one-hot": torch.eye(6).long(),
    "one for all": torch.tensor(1),
    "names": list("abcabc"),
    "number": 3,
}


@pytest.mark.parametrize("name", INTEGERS)
def test_labels_and_ids_are_one_integer_a_row(name: str) -> None:
    expected = INTEGERS[name](LABELS)
    for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32):
        found = INTEGERS[name](LABELS.to(dtype))
        assert found is None or torch.equal(found, expected), dtype
    for x in NO_INTEGERS.values():
        with pytest.raises(ValueError, match=r"must (hold one integer|be a tensor)"):
            INTEGERS[name](x)


def test_the_message_names_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"labels must hold.*got torch.float32.*pass torch.as_tensor\(labels\).long"):
        ours.sup_con(Z, LABELS.float())
    with pytest.raises(ValueError, match=r"ids must hold.*got ndarray.*pass torch.as_tensor\(ids\)"):
        ours.nt_xent(Z, W, ids=LABELS.numpy())
    with pytest.raises(ValueError, match=r"z0 must be a tensor, got ndarray; pass torch.as_tensor\(z0\)|embeddings"):
        ours.nt_xent(Z.numpy(), W)


# -------------------------------------------------------------------------------------------------------------- choices

CHOICES: dict[str, Call] = {
    "impl": lambda x: ours.nt_xent(Z, W, impl=x),
    "gather": lambda x: ours.nt_xent(Z, W, gather=x),
    "multi_positive": lambda x: ours.sup_con(Z, LABELS, multi_positive=x),
    "distance": lambda x: ours.anchor_regression(Z, LABELS, torch.eye(3, 4), distance=x),
    "basis": lambda x: ours.class_anchors(3, 4, x),
    "anchors-basis": lambda x: sh.OrthonormalAnchorRegression(3, 4, basis=x),
    "kind": lambda x: sh.DeltaContrast(x),
    "ratio": lambda x: sh.DeltaContrast("scl", ratio=x),
    "tri_factor-kind": lambda x: sh.TriFactorContrast(4, kind=x),
    "activation": lambda x: sh.NonNegLinear(4, 4, activation=x),
    "estimator": lambda x: sh.BayesianGate(4, 4, estimator=x),
    "surrogate": lambda x: ours.rep_relu(Z, x),
    "start": lambda x: sh.MemoryQueue(4, 4, start=x),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_is_a_name(name: str) -> None:
    for x in (["dense"], {}, 3, 0.5, None):
        with pytest.raises(ValueError, match="must be one of"):
            CHOICES[name](x)


def test_an_array_is_no_basis() -> None:
    with pytest.raises(ValueError, match="basis must be one of"):
        sh.OrthonormalAnchorRegression(3, 4, basis=np.eye(3, 4))  # type: ignore[arg-type]
