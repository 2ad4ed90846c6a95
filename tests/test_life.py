"""The life of every module with state: built on meta, moved, started; a default device; meta and fake tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ssl_heads import (
    BayesianGate,
    DeltaContrast,
    FeatureImportance,
    LpPower,
    MemoryQueue,
    MLPCorrection,
    NonNegCrossEntropy,
    NonNegLinear,
    NonNegProjection,
    OrthonormalAnchorRegression,
    ScalarCorrection,
    SquaredEuclidean,
    TriFactorContrast,
    metrics,
)
from ssl_heads.adapters import GatedHead
from ssl_heads.functional import class_anchors
from tests.cases import WITH_IMPLS, Case

DIRECTIONS = torch.tensor([[1.0, 2.0, 2.0], [0.0, -1.0, 0.0]])
MODULES: dict[str, Callable[[], nn.Module]] = {
    "projection": lambda: NonNegProjection(6, 10, 4),
    "projection-layer": lambda: NonNegProjection(6, 10, 4, num_layers=3, norm="layer"),
    "linear": lambda: NonNegLinear(6, 4),
    "gate": lambda: BayesianGate(6, 4),
    "gated-head": lambda: GatedHead(NonNegProjection(6, 10, 4), BayesianGate(6, 4)),
    "importance": lambda: FeatureImportance(4),
    "tri-factor": lambda: TriFactorContrast(4),
    "cross-entropy": lambda: NonNegCrossEntropy(6, 3),
    "cross-entropy-signed": lambda: NonNegCrossEntropy(6, 3, nonneg_weight=False),
    "scalar-correction": ScalarCorrection,
    "mlp-correction": lambda: MLPCorrection(4),
    "factor": lambda: SquaredEuclidean(DIRECTIONS),
    "factor-learned": lambda: SquaredEuclidean(nn.Parameter(DIRECTIONS.clone())),
    "delta": lambda: DeltaContrast("nwj", SquaredEuclidean(DIRECTIONS), alpha_tilde=MLPCorrection(4)),
    "anchors-qr": lambda: OrthonormalAnchorRegression(3, 5, seed=3),
    "anchors-etf": lambda: OrthonormalAnchorRegression(3, 5, basis="etf"),
    "anchors-grassmannian": lambda: OrthonormalAnchorRegression(3, 2, basis="grassmannian"),
    "anchors-tensor": lambda: OrthonormalAnchorRegression(2, 3, basis=DIRECTIONS),
    "queue": lambda: MemoryQueue(5, 4),
    "queue-signed": lambda: MemoryQueue(5, 4, start="signed"),
}
modules = pytest.mark.parametrize("build", MODULES.values(), ids=MODULES.keys())


def on_cpu_with_garbage(build: Callable[[], nn.Module]) -> nn.Module:
    """Built without storage, then given some: every tensor is NaN or -77."""
    with torch.device("meta"):
        module = build()
    module = module.to("meta").to_empty(device="cpu")
    with torch.no_grad():
        for x in module.state_dict(keep_vars=True).values():
            x.fill_(torch.nan if x.is_floating_point() else True if x.dtype == torch.bool else -77)
    return module


def reset_as_trainers_do(module: nn.Module) -> None:
    for each in module.modules():
        if hasattr(each, "reset_parameters"):
            each.reset_parameters()


def is_drawn(x: Tensor, other: Tensor) -> bool:
    """Whether two constructions differ: the state is random, and only its distribution is given."""
    return not torch.equal(x, other)


@pytest.mark.parametrize("reset", [reset_as_trainers_do, lambda m: m.reset_parameters()], ids=["each", "one"])
@modules
def test_storage_of_a_module_built_on_meta_is_started(build, reset) -> None:
    module = on_cpu_with_garbage(build)
    reset(module)
    constructed, another = build().state_dict(), build().state_dict()
    assert module.state_dict().keys() == constructed.keys()
    for name, x in module.state_dict().items():
        assert x.device.type == "cpu"
        if not is_drawn(constructed[name], another[name]):
            assert torch.equal(x, constructed[name]), name
            continue
        assert x.isfinite().all(), name
        assert 0.4 < x.float().abs().mean() / constructed[name].float().abs().mean() < 2.5, name
        if (constructed[name] >= 0).all() and constructed[name].numel() > 8:
            assert (x >= 0).all(), name


@modules
def test_the_default_device_decides_where_state_is(build) -> None:
    with torch.device("meta"):
        module = build()
    given = SquaredEuclidean, OrthonormalAnchorRegression, DeltaContrast  # of tensors that have a device
    if not isinstance(module, given):
        assert {x.device.type for x in module.state_dict().values()} == {"meta"}


def test_what_was_given_without_values_cannot_be_started() -> None:
    metric = SquaredEuclidean(torch.empty(2, 3, device="meta")).to_empty(device="cpu")
    with pytest.raises(ValueError, match=r"a factor given on the meta device has no values.*load a state_dict"):
        metric.reset_parameters()


# ------------------------------------------------------------------------------------------------------ default device


@pytest.fixture
def default_meta() -> Iterator[None]:
    """A stand-in for a GPU as the default: what is mixed with tensors on the CPU fails."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize("basis", ["qr", "identity", "etf", "grassmannian"])
def test_anchors_are_drawn_on_the_cpu_and_put_on_the_default_device(basis, default_meta: None) -> None:
    found = class_anchors(3, 2 if basis == "grassmannian" else 4, basis, torch.Generator("cpu").manual_seed(0))
    assert found.device.type == "meta"


def test_metrics_stay_where_their_inputs_are(default_meta: None) -> None:
    with torch.device("cpu"):
        f, g, labels = torch.rand(40, 3), torch.rand(40, 3), torch.arange(40) % 4
    values = {
        "class_consistency": lambda: metrics.class_consistency(f, labels),
        "sparsity": lambda: metrics.sparsity(f),
        "effective_rank": lambda: metrics.effective_rank(f),
        "mean_correlation_coefficient": lambda: metrics.mean_correlation_coefficient(f, g),
    }
    for name, value in values.items():
        found = value()
        with torch.device("cpu"):
            assert str(value()) == str(found), name


# ------------------------------------------------------------------------------------------------- tensors without data


def without_data(case: Case, device: str) -> dict[str, Tensor]:
    return {k: x.to(device, torch.float32 if x.is_floating_point() else x.dtype) for k, x in case.build(12, 6).items()}


@pytest.mark.parametrize(("case", "impl"), WITH_IMPLS, ids=str)
def test_losses_of_meta_tensors_have_a_shape(case: Case, impl: str) -> None:
    value = case(without_data(case, "meta"), impl)
    assert (value.shape, value.device.type) == ((), "meta")


@pytest.mark.parametrize("case", dict(WITH_IMPLS), ids=str)
def test_losses_of_fake_tensors_have_a_shape(case: Case) -> None:
    with FakeTensorMode() as mode:
        inputs = {k: mode.from_tensor(x) for k, x in case.build(12, 6).items()}
        assert case(inputs, "dense").shape == ()


@pytest.mark.parametrize("kind", ["nce", "infonce", "scl", "nwj"])
@pytest.mark.parametrize("dissimilarity", [None, LpPower(1)], ids=["product", "power"])
def test_delta_of_meta_tensors_has_a_shape(kind, dissimilarity) -> None:
    z, w = torch.empty(2, 8, 3, device="meta")
    loss = DeltaContrast(kind, dissimilarity).to("meta").eval()
    assert loss(z, w).shape == ()
