"""What every loss promises, whatever its equation: derivatives, precision, edges, layouts, invariances."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssl_heads import functional as ours
from tests.cases import (
    CASES,
    IN_TILES,
    WITH_IMPLS,
    Case,
    Inputs,
    leaves,
    use_small_tiles,
    value_and_gradients,
)
from tests.checks import assert_gradient_close, relative_error

SURROGATE = "nonneg_cross_entropy"  # its derivative is not that of its value, on purpose
SMOOTH = tuple((case, impl) for case, impl in WITH_IMPLS if case.name != SURROGATE)
everywhere = pytest.mark.parametrize(("case", "impl"), WITH_IMPLS, ids=str)


def positional(case: Case, impl: str, inputs: Inputs):
    """The loss as a function of its differentiable inputs alone."""
    names = case.differentiable(inputs)

    def loss(*tensors: Tensor) -> Tensor:
        return case({**inputs, **dict(zip(names, tensors, strict=True))}, impl)

    return loss, tuple(inputs[name] for name in names)


# ---------------------------------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize("shape", [(3, 8), (9, 3)], ids=str)
@pytest.mark.parametrize(("case", "impl"), SMOOTH, ids=str)
def test_gradcheck(case: Case, impl: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_tiles(monkeypatch, 2)
    loss, tensors = positional(case, impl, leaves(case, case.build(*shape), torch.float64))
    assert torch.autograd.gradcheck(loss, tensors)


def test_gradcheck_of_cross_entropy_with_a_signed_weight() -> None:
    features, weight = torch.randn(5, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    labels = torch.arange(5) % 3

    def loss(features: Tensor, weight: Tensor) -> Tensor:
        return ours.nonneg_cross_entropy(features, weight, labels, nonneg_weight=False)

    inputs = (features.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


@pytest.mark.parametrize("shape", [(2, 5), (5, 2)], ids=str)
@pytest.mark.parametrize(("case", "impl"), [(c, i) for c, i in SMOOTH if i != "tiled"], ids=str)
def test_gradgradcheck(case: Case, impl: str, shape: tuple[int, int]) -> None:
    loss, tensors = positional(case, impl, leaves(case, case.build(*shape), torch.float64))
    assert torch.autograd.gradgradcheck(loss, tensors)


@pytest.mark.parametrize("case", IN_TILES, ids=str)
def test_a_second_derivative_through_tiles_says_what_to_do(case: Case) -> None:
    loss, tensors = positional(case, "tiled", leaves(case, case.build(8, 4), torch.float64))
    gradients = torch.autograd.grad(loss(*tensors), tensors, create_graph=True)
    with pytest.raises(RuntimeError, match='impl="dense"'):
        torch.autograd.grad(sum(g.square().sum() for g in gradients), tensors)


@everywhere
def test_each_input_alone_gets_its_gradient(case: Case, impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which inputs want a gradient chooses the path; it does not change the gradient."""
    use_small_tiles(monkeypatch, 5)
    inputs = leaves(case, case.build(12, 6), torch.float64)
    _, together = value_and_gradients(lambda x: case(x, impl), case, inputs)
    for name, expected in together.items():
        alone = {k: x.detach().requires_grad_(k == name) if x.is_floating_point() else x for k, x in inputs.items()}
        (gradient,) = torch.autograd.grad(case(alone, impl), alone[name])
        assert relative_error(gradient, expected) < 1e-12, name
        assert relative_error(-gradient, expected) > 1


@everywhere
def test_no_gradient_is_wanted(case: Case, impl: str) -> None:
    inputs = leaves(case, case.build(12, 6), torch.float32)
    with torch.no_grad():
        value = case(inputs, impl)
    assert not value.requires_grad
    assert torch.isclose(value, case(inputs, impl), rtol=1e-6, atol=0)


@everywhere
def test_the_gradient_scales_with_the_upstream_one(case: Case, impl: str) -> None:
    """A weighted sum of losses, and a loss whose result is scaled for half precision."""
    inputs = leaves(case, case.build(12, 6), torch.float64)
    _, once = value_and_gradients(lambda x: case(x, impl), case, inputs)
    for factor in (-3.0, 1e-12, 65536.0):
        _, scaled = value_and_gradients(lambda x, f=factor: f * case(x, impl), case, inputs)
        for name, expected in once.items():
            assert relative_error(scaled[name], factor * expected) < 1e-12
    _, nothing = value_and_gradients(lambda x: 0.0 * case(x, impl), case, inputs)
    assert all(not gradient.any() for gradient in nothing.values())


# ---------------------------------------------------------------------------------------------------------------- edges


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("zero", ["some", "all"])
@everywhere
def test_zero_rows(case: Case, impl: str, zero: str, dtype: torch.dtype) -> None:
    """ReLU and closed gates make them: finite value, bounded gradients, nothing for a row that has no direction."""
    inputs = case.build(12, 16)
    matrices = [name for name, x in inputs.items() if x.ndim == 2 and name != "weight"]
    rows = slice(None) if zero == "all" else slice(2, 7)
    for name in matrices:
        inputs[name] = inputs[name].clone()
        inputs[name][rows] = 0
    inputs = leaves(case, inputs, dtype)
    value, gradients = value_and_gradients(lambda x: case(x, impl), case, inputs)
    assert torch.isfinite(value)
    for name, gradient in gradients.items():
        assert torch.isfinite(gradient).all(), name
        assert gradient.abs().max() < 1e3, name
    if dtype == torch.float64:
        expected = leaves(case, inputs, torch.float64)
        oracle, oracle_gradients = value_and_gradients(lambda x: case.oracle(**x), case, expected)
        assert torch.isclose(value, oracle, rtol=1e-12, atol=1e-12)
        for name, gradient in gradients.items():
            assert torch.allclose(gradient, oracle_gradients[name], rtol=1e-9, atol=1e-12), name


@everywhere
def test_nan_is_not_hidden(case: Case, impl: str) -> None:
    inputs = {k: x.clone() for k, x in case.build(12, 6).items()}
    first = next(iter(inputs))
    inputs[first][3, 2] = torch.nan
    assert torch.isnan(case(inputs, impl))


@everywhere
def test_an_empty_batch_is_refused(case: Case, impl: str) -> None:
    inputs = {k: x[:0] if x.ndim and k not in ("importance", "weight") else x for k, x in case.build(3, 6).items()}
    with pytest.raises(ValueError, match=r"empty batch of shape \(0, 6\)"):
        case(inputs, impl)


@everywhere
def test_one_pair_is_finite(case: Case, impl: str) -> None:
    inputs = leaves(case, case.build(1, 6), torch.float32)
    value, gradients = value_and_gradients(lambda x: case(x, impl), case, inputs)
    assert torch.isfinite(value)
    assert all(torch.isfinite(g).all() for g in gradients.values())
    if case in IN_TILES and case.name != "siglip" and "queue" not in case.name:
        assert value == 0, "without negatives there is nothing to tell apart"
        assert not any(g.any() for g in gradients.values())


@everywhere
def test_the_backward_pass_may_run_twice(case: Case, impl: str) -> None:
    """What is kept for it is not consumed."""
    inputs = leaves(case, case.build(12, 6), torch.float32)
    value = case(inputs, impl)
    wanted = [inputs[name] for name in case.differentiable(inputs)]
    first = torch.autograd.grad(value, wanted, retain_graph=True)
    second = torch.autograd.grad(value, wanted)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@everywhere
def test_inference_mode(case: Case, impl: str) -> None:
    inputs = leaves(case, case.build(12, 6), torch.float32)
    with torch.inference_mode():
        value = case(inputs, impl)
    assert torch.isclose(value, case(inputs, impl), rtol=1e-6, atol=0)


# -------------------------------------------------------------------------------------------------------------- layouts


def strided(x: Tensor) -> Tensor:
    """Every second column of every third row of a larger tensor."""
    large = torch.full((3 * x.shape[0] + 2, 2 * x.shape[1] + 1), 7.0, dtype=x.dtype)
    view = large[1:-1:3, 1::2]
    view.copy_(x)
    return view


LAYOUTS = {
    "transposed": lambda x: x.T.contiguous().T,
    "strided": strided,
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@everywhere
def test_any_strides(case: Case, impl: str, layout: str) -> None:
    inputs = case.build(12, 6)
    views = {k: LAYOUTS[layout](x) if x.ndim == 2 else x for k, x in inputs.items()}
    assert any(not x.is_contiguous() for x in views.values())
    names = case.differentiable(inputs)
    plain = {k: x.contiguous().clone().requires_grad_(k in names) for k, x in views.items()}
    moved = {k: x.detach().requires_grad_(k in names) for k, x in views.items()}
    expected, expected_gradients = value_and_gradients(lambda x: case(x, impl), case, plain)
    value, gradients = value_and_gradients(lambda x: case(x, impl), case, moved)
    assert relative_error(value, expected) < 1e-12
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, expected_gradients[name], rtol=1e-10, atol=1e-13), name


@everywhere
def test_inputs_are_left_as_they_are(case: Case, impl: str) -> None:
    inputs = leaves(case, case.build(12, 6), torch.float32)
    before = {k: x.detach().clone() for k, x in inputs.items()}
    case(inputs, impl).backward()
    assert all(torch.equal(x, before[k]) for k, x in inputs.items())


@everywhere
def test_two_runs_are_equal_bit_by_bit(case: Case, impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_tiles(monkeypatch, 20)
    runs = []
    for _ in range(2):
        inputs = leaves(case, case.build(41, 16), torch.float32)
        runs.append(value_and_gradients(lambda x: case(x, impl), case, inputs))
    assert torch.equal(runs[0][0], runs[1][0])
    assert all(torch.equal(g, runs[1][1][name]) for name, g in runs[0][1].items())


# ---------------------------------------------------------------------------------------------------------- invariances


@everywhere
def test_the_order_of_the_batch_does_not_matter(case: Case, impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_tiles(monkeypatch, 5)
    inputs = leaves(case, case.build(17, 6), torch.float64)
    order = torch.randperm(17)
    assert not torch.equal(order, torch.arange(17))
    rows = {k for k, x in inputs.items() if x.ndim and x.shape[0] == 17}
    shuffled = {k: x.detach()[order].requires_grad_(x.requires_grad) if k in rows else x for k, x in inputs.items()}
    value, gradients = value_and_gradients(lambda x: case(x, impl), case, inputs)
    again, shuffled_gradients = value_and_gradients(lambda x: case(x, impl), case, shuffled)
    assert relative_error(again, value) < 1e-12
    for name, gradient in gradients.items():
        expected = gradient[order] if name in rows else gradient
        assert torch.allclose(shuffled_gradients[name], expected, rtol=1e-9, atol=1e-13)
        if name in rows:
            assert not torch.allclose(shuffled_gradients[name], gradient, rtol=1e-3)


SYMMETRIC = tuple((c, i) for c, i in WITH_IMPLS if c.build(2, 2).keys() >= {"z0", "z1"} or c.name in ("clip", "siglip"))


@pytest.mark.parametrize(("case", "impl"), SYMMETRIC, ids=str)
def test_the_views_may_be_swapped(case: Case, impl: str) -> None:
    """Importance weighs both views; in the released tri-factor code it weighs the first one alone."""
    inputs = case.build(17, 6)
    first, second = list(inputs)[:2]
    swapped = {**inputs, first: inputs[second], second: inputs[first]}
    assert relative_error(case(swapped, impl), case(inputs, impl)) < 1e-12


NORMALISED = tuple((c, i) for c, i in WITH_IMPLS if c.name not in ("clip", "siglip", SURROGATE) and "raw" not in c.name)


@pytest.mark.parametrize(("case", "impl"), NORMALISED, ids=str)
def test_the_length_of_a_row_does_not_matter(case: Case, impl: str) -> None:
    inputs = case.build(17, 6)
    lengths = torch.linspace(1e-3, 1e3, 17).double()[:, None]
    longer = {k: x * lengths if x.shape == (17, 6) else x for k, x in inputs.items()}
    assert relative_error(case(longer, impl), case(inputs, impl)) < 1e-12
    gradients = value_and_gradients(lambda x: case(x, impl), case, leaves(case, inputs, torch.float64))[1]
    for name, gradient in gradients.items():
        if gradient.shape == (17, 6):
            radial = (gradient * inputs[name]).sum(1).norm() / (gradient.norm() * inputs[name].norm())
            assert radial < 1e-12, "a gradient along the row"


# --------------------------------------------------------------------------------------------------------- the choice


@pytest.mark.parametrize("case", IN_TILES, ids=str)
def test_implementations_agree_and_auto_is_one_of_them(case: Case) -> None:
    inputs = leaves(case, case.build(300, 8), torch.float64)
    _, dense = value_and_gradients(lambda x: case(x, "dense"), case, inputs)
    for impl in ("tiled", "auto"):
        _, other = value_and_gradients(lambda x, i=impl: case(x, i), case, inputs)
        for name, gradient in other.items():
            if gradient.ndim == 2:
                assert_gradient_close(gradient, dense[name], 1e-10)
            else:
                assert relative_error(gradient, dense[name]) < 1e-10


def test_the_table_is_complete() -> None:
    """Each public function that is a loss has a case."""
    losses = {
        name
        for name in ours.__all__
        if name.startswith(
            ("nt_", "info_", "clip_", "siglip_", "sup_", "tri_", "spectral_", "decorrelation", "nonneg_")
        )
    }
    covered = "nt_xent info_nce clip_loss siglip_loss sup_con tri_factor_contrast tri_factor_two_towers"
    covered += " tri_factor_spectral tri_factor_spectral_two_towers spectral_contrastive decorrelation"
    assert losses == {*covered.split(), "nonneg_cross_entropy"}
    assert len({case.name for case in CASES}) == len(CASES) >= len(losses)
