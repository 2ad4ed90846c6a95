"""The corrections of the delta losses start from data once, and what was trained or loaded stays."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from ssl_heads import DeltaContrast, LpPower, MLPCorrection, ScalarCorrection, SquaredEuclidean


def offsets(loss: DeltaContrast) -> list[ScalarCorrection]:
    return [module for module in loss.modules() if isinstance(module, ScalarCorrection)]


def in_place(fresh: DeltaContrast, trained: DeltaContrast) -> None:
    """What `from_pretrained` does with the tensors of a file."""
    with torch.no_grad():
        for name, x in trained.state_dict().items():
            fresh.get_parameter(name).copy_(x) if name.endswith(("weight", "bias", "value")) else fresh.get_buffer(
                name
            ).copy_(x)


def averaged(fresh: DeltaContrast, trained: DeltaContrast) -> None:
    """A step of an exponential moving average over parameters and buffers, whose weight is 1."""
    with torch.no_grad():
        for mean, x in zip(fresh.parameters(), trained.parameters(), strict=True):
            mean.lerp_(x, 1.0)
        for mean, x in zip(fresh.buffers(), trained.buffers(), strict=True):
            mean.copy_(mean.double().lerp(x.double(), 1.0))


def model_average(fresh: DeltaContrast, trained: DeltaContrast) -> None:
    """torch's own, of parameters and buffers, whose first update copies."""
    average = torch.optim.swa_utils.AveragedModel(fresh, use_buffers=True)
    for _ in range(3):
        average.update_parameters(trained)
    fresh.load_state_dict(average.module.state_dict())


WAYS = {
    "load_state_dict": lambda fresh, trained: fresh.load_state_dict(trained.state_dict()),
    "load_state_dict, assigned": lambda fresh, trained: fresh.load_state_dict(trained.state_dict(), assign=True),
    "without the buffers": lambda fresh, trained: fresh.load_state_dict(
        {name: x for name, x in trained.state_dict().items() if "started" not in name}, strict=False
    ),
    "in place": in_place,
    "moving average": averaged,
    "AveragedModel": model_average,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("build", [ScalarCorrection, lambda: MLPCorrection(3)], ids=["scalar", "mlp"])
def test_a_trained_offset_stays_whoever_copies_it(build, way: str) -> None:
    z, w = torch.randn(2, 65, 3)
    trained = DeltaContrast("nwj", LpPower(1), build(), build())
    trained(3 * z, w)
    fresh = DeltaContrast("nwj", LpPower(1), build(), build())
    WAYS[way](fresh, trained)
    before = copy.deepcopy(trained.state_dict())
    fresh(10 * z, w)
    assert all(torch.equal(before[name], x) for name, x in fresh.state_dict().items())


@pytest.mark.parametrize("kind", ["nce", "scl", "nwj"])
def test_a_bad_batch_starts_nothing(kind: str) -> None:
    z, w = torch.randn(2, 600, 3)
    loss = DeltaContrast(kind, LpPower(1), MLPCorrection(3), MLPCorrection(3))  # type: ignore[arg-type]
    before = copy.deepcopy(loss.state_dict())
    for bad in (torch.nan, torch.inf):
        for row in (0, -1):  # the last one is none of those that the median is taken of
            broken = z.clone()
            broken[row, 1] = bad
            loss(broken, w)
    for refused in ((z[1:], w), (z, w.long()), (z[:, :2], w), (z, w.to("meta"))):
        with pytest.raises(ValueError, match=r"must|same device"):
            loss(*refused)
    assert all(torch.equal(before[name], x) for name, x in loss.state_dict().items())
    loss(z, w)
    assert all(offset.started for offset in offsets(loss))


def test_the_tensor_alone_decides() -> None:
    z, w = torch.randn(2, 65, 3)
    loss = DeltaContrast("nwj", LpPower(1))
    loss(3 * z, w)
    (offset,) = offsets(loss)
    first = offset.value.item()
    offset.started.zero_()
    loss(9 * z, w)
    assert offset.value.item() < first - 1
    assert (LpPower(1).pairwise(9 * z, w) + offset.value).median().abs() < 1e-5
    offset.reset_parameters()
    assert (offset.value.item(), offset.awaits_start) == (0, True)


@pytest.mark.parametrize("build", [ScalarCorrection, lambda: MLPCorrection(3)], ids=["scalar", "mlp"])
def test_parameters_assigned_to_a_loss_on_meta(build) -> None:
    z, w = torch.randn(2, 65, 3)
    trained = DeltaContrast("nwj", LpPower(1), build(), build())
    trained(z, w)
    with torch.device("meta"):
        fresh = DeltaContrast("nwj", LpPower(1), build(), build())
    parameters = dict(trained.named_parameters())
    fresh.load_state_dict(parameters, strict=False, assign=True)
    assert all(offset.started.device.type == "cpu" and offset.started for offset in offsets(fresh))
    assert torch.equal(fresh(9 * z, w), trained(9 * z, w))


def test_one_correction_on_both_sides_starts_once() -> None:
    z, w = torch.randn(2, 65, 3)
    both = MLPCorrection(3)
    loss = DeltaContrast("nwj", LpPower(1), both, both)
    value = loss(3 * z, w)
    assert (LpPower(1).pairwise(3 * z, w) + both(3 * z)[:, None] + both(w)).median().abs() < 1e-5
    assert torch.allclose(loss(3 * z, w), value)


@pytest.mark.parametrize("build", [ScalarCorrection, lambda: MLPCorrection(3)], ids=["scalar", "mlp"])
def test_a_start_in_the_graph_of_the_compiler(build) -> None:
    torch._dynamo.reset()
    z, w = torch.randn(2, 33, 3)
    loss = DeltaContrast("nwj", LpPower(1), build(), build())
    twin = copy.deepcopy(loss)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for scale in (torch.nan, 3.0, 9.0):
        value, expected = compiled(scale * z, w), loss(scale * z, w)
        value.backward()
        expected.backward()
        torch.testing.assert_close(value, expected, equal_nan=True)
        for name, x in loss.state_dict().items():
            torch.testing.assert_close(twin.state_dict()[name], x, equal_nan=True)
        for x, y in zip(twin.parameters(), loss.parameters(), strict=True):
            torch.testing.assert_close(x.grad, y.grad, equal_nan=True)
            x.grad = y.grad = None


def two_clouds(size: float = 1.0) -> tuple[Tensor, Tensor]:
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(5)) * size
    return z, z + 0.1


@pytest.mark.parametrize("correction", [ScalarCorrection, lambda: MLPCorrection(3)], ids=["scalar", "mlp"])
def test_transforms_start_nothing_and_go_on_after_a_start(correction) -> None:
    loss, (z, w) = DeltaContrast("nwj", LpPower(1), alpha=correction()), two_clouds()
    torch.func.grad(lambda a: loss(a, w))(z)
    assert all(not bool(x) for name, x in loss.named_buffers() if name.endswith("started"))
    loss(z, w)
    state = {name: x.clone() for name, x in loss.state_dict().items()}
    leaf = z.clone().requires_grad_()
    loss(leaf, w).backward()
    torch.testing.assert_close(torch.func.grad(lambda a: loss(a, w))(z), leaf.grad)
    torch.func.jvp(lambda a: loss(a, w), (z,), (torch.ones_like(z),))
    assert all(torch.equal(x, state[name]) for name, x in loss.state_dict().items())


def test_a_start_that_overflows_in_the_dtype_of_the_number_is_refused() -> None:
    loss = DeltaContrast("nwj", SquaredEuclidean()).half()
    z = 600 * torch.randn(16, 3)
    loss(z, -z)
    assert not bool(loss.alpha.started)
    assert loss.alpha.value.isfinite().all()
    loss(*two_clouds())
    assert bool(loss.alpha.started)


def test_a_frozen_number_stays() -> None:
    loss = DeltaContrast("nwj", LpPower(1))
    loss.alpha.value.data.fill_(-5.0)
    loss.requires_grad_(False)
    loss(*two_clouds())
    assert loss.alpha.value.item() == -5.0
