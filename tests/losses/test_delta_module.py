"""`DeltaContrast`: where corrections start, what is trained, what is refused."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from ssl_heads import (
    DeltaContrast,
    KnownLogDensity,
    LpNorm,
    LpPower,
    MLPCorrection,
    NegativeDot,
    ScalarCorrection,
    SquaredEuclidean,
)
from ssl_heads.functional import delta_contrast
from tests.losses.test_delta import DISSIMILARITIES, FACTOR, KINDS


def test_the_scalar_starts_where_the_median_d_is_zero_and_only_once() -> None:
    z, w = 3 * torch.randn(2, 65, 3)
    loss = DeltaContrast("nwj", LpPower(1))
    assert isinstance(loss.alpha, ScalarCorrection)
    loss.eval()
    loss(z, w)
    assert loss.alpha.awaits_start
    loss.train()
    loss(z, w)
    d = LpPower(1).pairwise(z, w) + loss.alpha(z)[:, None]
    assert d.median().abs() < 1e-6
    value = loss.alpha.value.item()
    assert value < -5
    loss(10 * z, w)
    assert loss.alpha.value.item() == value


@pytest.mark.parametrize("sides", ["alpha", "alpha_tilde", "both"])
def test_an_mlp_starts_from_data_and_a_loaded_model_does_not(sides: str) -> None:
    def build() -> DeltaContrast:
        alpha = MLPCorrection(3) if sides != "alpha_tilde" else None
        return DeltaContrast("nce", LpPower(1), alpha, MLPCorrection(3) if sides != "alpha" else None)

    z, w = 3 * torch.randn(2, 65, 3)
    loss = build()
    loss(z, w)
    parts = [None if c is None else c(x) for c, x in ((loss.alpha, z), (loss.alpha_tilde, w))]
    d = LpPower(1).pairwise(z, w)
    d = d if parts[0] is None else d + parts[0][:, None]
    d = d if parts[1] is None else d + parts[1]
    assert d.median().abs() < 1e-5
    before = {name: x.clone() for name, x in loss.state_dict().items()}
    loaded = build()
    loaded.load_state_dict(before)
    for twin in (loaded, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        twin(10 * z, w)
        assert all(torch.equal(before[name], x) for name, x in twin.state_dict().items())


def test_a_batch_in_half_precision_starts_the_scalar() -> None:
    z, w = (3 * torch.randn(2, 65, 3)).bfloat16()
    loss = DeltaContrast("scl", SquaredEuclidean())
    loss(z, w)
    assert isinstance(loss.alpha, ScalarCorrection)
    assert loss.alpha.value.item() < -5


def test_every_parameter_that_is_accepted_gets_a_gradient() -> None:
    z, w = torch.randn(2, 16, 3)
    for options in KINDS:
        one_sided = options["kind"] == "infonce" and not options.get("symmetric")
        metric = SquaredEuclidean(nn.Parameter(FACTOR.clone()))
        loss = DeltaContrast(
            dissimilarity=metric, alpha=None if one_sided else MLPCorrection(3), alpha_tilde=MLPCorrection(3), **options
        )
        loss(z, w).backward()
        for name, parameter in loss.named_parameters():
            assert parameter.grad is not None, f"{options}: {name}"
            if not (options["kind"] == "infonce" and name.endswith("offset.value")):
                assert parameter.grad.norm() > 1e-7, f"{options}: {name}"


def test_what_a_kind_cannot_train_is_refused() -> None:
    with pytest.raises(ValueError, match=r"never be trained.*one-sided InfoNCE.*symmetric=True"):
        DeltaContrast("infonce", alpha=MLPCorrection(3))
    with pytest.raises(ValueError, match=r"alpha_tilde=ScalarCorrection.*constant cancels"):
        DeltaContrast("infonce", alpha_tilde=ScalarCorrection())
    with pytest.raises(ValueError, match="constant cancels"):
        DeltaContrast("infonce", alpha=ScalarCorrection(), symmetric=True)
    DeltaContrast("infonce", alpha=MLPCorrection(3), alpha_tilde=MLPCorrection(3), symmetric=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "mine"}, "kind must be one of 'nce', 'infonce', 'scl', 'nwj', got 'mine'"),
        ({"kind": "nwj", "symmetric": True}, 'symmetric=True is a choice of kind="infonce"'),
        ({"kind": "nce", "ratio": "linear"}, 'ratio="linear" is a choice of kind="scl"'),
        ({"clamp": 0.0}, "clamp must be a finite number above 0, got 0.0"),
        ({"impl": "sparse"}, "impl must be one of"),
        ({"gather": "ring"}, 'gather="ring" has no delta loss: use "all"'),
        ({"dissimilarity": nn.Linear(2, 2)}, "Linear lacks paired, pairwise, factors"),
        ({"alpha_tilde": "mlp"}, r"alpha_tilde must be a module \(n, d\) -> \(n,\) or None, got 'mlp'"),
    ],
)
def test_bad_configuration(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeltaContrast(**arguments)  # type: ignore[arg-type]


def test_bad_numbers_and_shapes() -> None:
    for build in (lambda: LpPower(0.5), lambda: LpNorm(math.inf), lambda: NegativeDot(0), lambda: MLPCorrection(0)):
        with pytest.raises(ValueError, match="got"):
            build()
    with pytest.raises(ValueError, match=r"factor of shape \(2, 3\) measures embeddings \(n, 3\), got \(4, 5\)"):
        DeltaContrast("nce", SquaredEuclidean(FACTOR))(torch.randn(4, 5), torch.randn(4, 5))
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(5, 3\)|got \(4, 3\)"):
        DeltaContrast()(torch.randn(4, 3), torch.randn(5, 3))
    with pytest.raises(
        ValueError, match=r"alpha must hold one value for each row of z: expected shape \(4,\), got \(4, 1\)"
    ):
        delta_contrast(torch.randn(4, 3), torch.randn(4, 3), "nce", LpPower(1), torch.zeros(4, 1))


def test_a_known_log_density_is_used_as_it_is() -> None:
    z, w = torch.randn(2, 8, 3).double()
    known = KnownLogDensity(lambda x: -x.square().sum(1) / 2)
    expected = delta_contrast(z, w, "infonce", LpPower(1), alpha_tilde=-w.square().sum(1) / 2)
    assert torch.equal(DeltaContrast("infonce", LpPower(1), alpha_tilde=known)(z, w), expected)


@pytest.mark.parametrize("kind", ["nce", "infonce", "scl", "nwj"])
@pytest.mark.parametrize("name", ["squared", "l1"])
def test_it_compiles_whole(kind: str, name: str) -> None:
    torch._dynamo.reset()
    loss = DeltaContrast(kind, DISSIMILARITIES[name][0], alpha_tilde=MLPCorrection(3)).eval()  # type: ignore[arg-type]
    z, w = torch.randn(2, 16, 3, requires_grad=True).unbind()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(z, w), loss(z, w), rtol=1e-5)
