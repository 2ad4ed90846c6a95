from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_heads import NonNegLinear, NonNegProjection
from ssl_heads.functional.activation import ACTIVATIONS
from tests.checks import assert_gradient_close

NORMS = ["batch", "layer", None]


def papers_projector(x: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
    """Linear, ReLU, Linear, ReLU; the gradient of the last ReLU is gelu's."""
    z = second(F.relu(first(x)))
    return F.gelu(z) + (F.relu(z) - F.gelu(z)).detach()


def test_without_normalisation_it_is_the_papers_projector() -> None:
    head = NonNegProjection(6, 10, 4, norm=None).double()
    first, second = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
    x = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    reference = x.detach().clone().requires_grad_()
    upstream = torch.randn(7, 4, dtype=torch.float64)
    expected = papers_projector(reference, copy.deepcopy(first), copy.deepcopy(second))
    expected.backward(upstream)
    y = head(x)
    y.backward(upstream)
    assert torch.allclose(y, expected, atol=1e-12)
    assert_gradient_close(x.grad, reference.grad, 1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_output_is_never_negative_and_everything_learns(activation: str, norm: str | None) -> None:
    head = NonNegProjection(6, 10, 4, activation=activation, norm=norm)
    y = head(torch.randn(16, 6))
    assert y.shape == (16, 4)
    assert (y >= 0).all()
    y.square().sum().backward()
    for name, p in head.named_parameters():
        assert p.grad is not None, name
        assert p.ndim >= 1
        assert p.grad.isfinite().all()


def test_normalisation_acts_on_hidden_layers_only() -> None:
    def kinds(head: nn.Module) -> list[str]:
        return [type(m).__name__ for m in head.modules() if not list(m.children())]

    assert kinds(NonNegProjection(6, 10, 4)) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert kinds(NonNegProjection(6, 10, 4, num_layers=3, norm="layer")) == [
        *["Linear", "LayerNorm", "ReLU"] * 2,
        "Linear",
    ]
    assert kinds(NonNegProjection(6, 10, 4, num_layers=1)) == ["Linear"]


def test_bias_is_optional() -> None:
    linears = [m for m in NonNegProjection(6, 10, 4, bias=False).modules() if isinstance(m, nn.Linear)]
    assert len(linears) == 2
    assert all(m.bias is None for m in linears)


@pytest.mark.parametrize("norm", NORMS)
def test_leading_dimensions_are_rows(norm: str | None) -> None:
    head = NonNegProjection(6, 10, 4, norm=norm)
    x = torch.randn(5, 3, 6)
    y = head(x)
    assert y.shape == (5, 3, 4)
    assert torch.allclose(y.flatten(0, 1), head(x.flatten(0, 1)), atol=1e-6)
    assert torch.allclose(head(x.transpose(0, 1)), y.transpose(0, 1), atol=1e-6), "a non-contiguous input"
    head.eval()
    assert head(x[0, 0]).shape == (4,)
    assert torch.allclose(head(x[0, 0]), head(x)[0, 0], atol=1e-6)


def test_one_row_has_no_batch_statistics() -> None:
    head = NonNegProjection(6, 10, 4)
    for x in (torch.randn(1, 6), torch.randn(6), torch.randn(0, 6)):
        with pytest.raises(ValueError, match=r'at least two rows.*norm="layer"'):
            head(x)
    assert head.eval()(torch.randn(1, 6)).shape == (1, 4)


@pytest.mark.parametrize("norm", NORMS)
def test_an_empty_batch_is_an_empty_result(norm: str | None) -> None:
    head = NonNegProjection(6, 10, 4, norm=norm).train(norm != "batch")
    assert head(torch.zeros(0, 6)).shape == (0, 4)


@pytest.mark.parametrize("head", [NonNegProjection(6, 10, 4), NonNegLinear(6, 4)])
def test_copies_pickles_and_state_dicts_are_the_same_function(head: nn.Module) -> None:
    for _ in range(3):
        head.train()(torch.randn(8, 6))
    x = torch.randn(5, 6)
    y = head.eval()(x)
    assert torch.equal(copy.deepcopy(head)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(head))(x), y)
    fresh = (NonNegProjection(6, 10, 4) if isinstance(head, NonNegProjection) else NonNegLinear(6, 4)).eval()
    assert not torch.equal(fresh(x), y)
    assert not any(fresh.load_state_dict(head.state_dict()))
    assert torch.equal(fresh(x), y)


@pytest.mark.parametrize("head", [*(NonNegProjection(6, 10, 4, norm=norm) for norm in NORMS), NonNegLinear(6, 4)])
def test_compiles_without_a_graph_break(head: nn.Module) -> None:
    compiled = torch.compile(copy.deepcopy(head), fullgraph=True, backend="aot_eager")
    x = torch.randn(8, 6, requires_grad=True)
    eager = x.detach().clone().requires_grad_()
    weight = torch.randn(8, 4)
    y, expected = compiled(x), head(eager)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    assert torch.allclose(y, expected, atol=1e-6)
    assert_gradient_close(x.grad, eager.grad, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", NORMS)
def test_autocast(norm: str | None, dtype: torch.dtype) -> None:
    head = NonNegProjection(6, 10, 4, norm=norm)
    x = torch.randn(16, 6)
    full = head(x)
    with torch.autocast("cpu", dtype=dtype):
        y = head(x)
    y.float().square().sum().backward()
    assert y.dtype == dtype
    assert torch.allclose(y.float(), full, atol=3e-2)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_the_linear_head_takes_the_weights_of_a_linear_layer() -> None:
    plain, head = nn.Linear(6, 4), NonNegLinear(6, 4, activation="softplus")
    head.load_state_dict(plain.state_dict())
    x = torch.randn(3, 2, 6)
    assert (head.in_features, head.out_features) == (6, 4)
    assert torch.allclose(head(x), F.softplus(plain(x)))
    assert NonNegLinear(6, 4, False).bias is None


def test_bad_configuration_is_refused() -> None:
    with pytest.raises(ValueError, match="hidden_features must be at least 1, got 0"):
        NonNegProjection(6, 0, 4)
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        NonNegProjection(6, 8, 4, num_layers=0)
    with pytest.raises(ValueError, match="norm must be one of 'batch', 'layer', None, got 'group'"):
        NonNegProjection(6, 8, 4, norm="group")
    with pytest.raises(ValueError, match="got 'gelu'"):
        NonNegProjection(6, 8, 4, activation="gelu")
    with pytest.raises(ValueError, match="got 'gelu'"):
        NonNegLinear(6, 4, activation="gelu")
    with pytest.raises(ValueError, match="out_features must be at least 1, got -1"):
        NonNegLinear(6, -1)


@pytest.mark.parametrize("head", [NonNegProjection(6, 10, 4), NonNegLinear(6, 4)])
def test_a_wrong_width_is_refused_with_both_shapes(head: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"\(\.\.\., 6\).*\(8, 5\)"):
        head(torch.randn(8, 5))
