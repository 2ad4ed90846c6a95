"""The precision of every loss: half precision, autocast, dtypes that meet, cold temperatures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssl_heads import functional as ours
from tests.cases import WITH_IMPLS, Case, Inputs, assert_matches_oracle, leaves, value_and_gradients
from tests.checks import relative_error

everywhere = pytest.mark.parametrize(("case", "impl"), WITH_IMPLS, ids=str)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.bfloat16, 4e-3), (torch.float16, 2e-3)], ids=str)
@everywhere
def test_half_precision(case: Case, impl: str, dtype: torch.dtype, rtol: float) -> None:
    """Value in float32 and near the truth; gradients in the input's dtype, wrong by no more than its rounding."""
    assert_matches_oracle(case, impl, 41, 16, dtype, rtol)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@everywhere
def test_autocast_changes_nothing(case: Case, impl: str, dtype: torch.dtype) -> None:
    inputs = leaves(case, case.build(41, 16), torch.float32)
    expected, expected_gradients = value_and_gradients(lambda x: case(x, impl), case, inputs)

    def autocast(x: Inputs) -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            return case(x, impl)

    value, gradients = value_and_gradients(autocast, case, inputs)
    assert value.dtype == torch.float32
    assert relative_error(value, expected) < 1e-6
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        assert relative_error(gradient, expected_gradients[name]) < 1e-5, name


MATRIX_PAIRS = (("z0", "z1"), ("query", "key"), ("image_features", "text_features"))
SEVERAL = tuple((c, i) for c, i in WITH_IMPLS if any({*pair} <= c.build(2, 2).keys() for pair in MATRIX_PAIRS))


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float16),
        (torch.float16, torch.float64),
    ],
    ids=str,
)
@pytest.mark.parametrize(("case", "impl"), SEVERAL, ids=str)
def test_two_dtypes_meet(case: Case, impl: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """A frozen tower in one precision, a trained one in another: the wider decides, each gets its own gradient."""
    inputs = case.build(12, 8)
    (pair,) = (pair for pair in MATRIX_PAIRS if {*pair} <= inputs.keys())
    mixed = {k: x.detach().clone() for k, x in inputs.items()}
    for name, dtype in zip(pair, dtypes, strict=True):
        mixed[name] = mixed[name].to(dtype)
    wide = torch.promote_types(torch.promote_types(*dtypes), torch.float32)
    mixed = {k: x.to(wide) if x.is_floating_point() and k not in pair else x for k, x in mixed.items()}
    for name in case.differentiable(mixed):
        mixed[name].requires_grad_()
    value, gradients = value_and_gradients(lambda x: case(x, impl), case, mixed)
    same = leaves(case, mixed, wide)
    expected, expected_gradients = value_and_gradients(lambda x: case(x, impl), case, same)
    assert value.dtype == wide
    assert relative_error(value, expected) < 1e-6
    for name, gradient in gradients.items():
        assert gradient.dtype == mixed[name].dtype
        assert relative_error(gradient, expected_gradients[name]) < (1e-5 if gradient.dtype.itemsize > 2 else 4e-3)


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("case", "impl"),
    [(c, i) for c, i in WITH_IMPLS if any(x.ndim == 0 for x in c.build(2, 2).values())],
    ids=str,
)
def test_scalars_of_another_dtype(case: Case, impl: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """The rows decide; the scalar keeps its dtype and gets its gradient in it."""
    inputs = leaves(case, case.build(12, 8), torch.float32)
    value, gradients = value_and_gradients(lambda x: case(x, impl), case, inputs)
    for name, x in inputs.items():
        if x.ndim == 0:
            inputs[name] = x.detach().to(dtype).reshape(shape).requires_grad_()
    again, other = value_and_gradients(lambda x: case(x, impl), case, inputs)
    assert again.dtype == torch.float32
    assert again.shape == ()
    assert relative_error(again, value) < 2e-3
    for name, gradient in other.items():
        assert gradient.dtype == inputs[name].dtype
        assert gradient.shape == inputs[name].shape
        assert relative_error(gradient.reshape(gradients[name].shape), gradients[name]) < 1e-2


def test_a_bias_of_another_dtype_leaves_clip_in_float32() -> None:
    image, text = torch.randn(2, 8, 4)
    for dtype in (torch.float64, torch.bfloat16):
        assert ours.clip_loss(image, text, 1.0, torch.tensor([0.5], dtype=dtype)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("temperature", [0.005, 0.01, 0.07, 0.2])
@pytest.mark.parametrize("impl", ["dense", "tiled"])
def test_cold_temperatures_are_finite(impl: str, temperature: float, dtype: torch.dtype) -> None:
    z0, z1 = (torch.randn(32, 16).to(dtype).requires_grad_() for _ in range(2))
    for importance in (1.0, 18.0, 100.0):
        s = torch.full((16,), importance)
        for loss in (ours.tri_factor_contrast, ours.tri_factor_two_towers):
            value = loss(z0, z1, s, temperature, impl=impl)
            assert torch.isfinite(value)
            assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value, (z0, z1)))
