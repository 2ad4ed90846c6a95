"""Heads under what others do with layers: tracers, forward mode, torch.func, and tools for linear layers."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ssl_heads import BayesianGate, NonNegLinear, NonNegProjection
from ssl_heads.adapters import GatedHead
from ssl_heads.functional import safe_normalize
from ssl_heads.functional.activation import ACTIVATIONS


class Gated(nn.Module):
    """Embeddings of a gate alone."""

    def __init__(self, estimator: str) -> None:
        super().__init__()
        self.gate = BayesianGate(6, 6, estimator=estimator, detach_features=False)

    def forward(self, x: Tensor) -> Tensor:
        embeddings: Tensor = self.gate(x, x.abs()).embeddings
        return embeddings


class Normalised(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return safe_normalize(x)


HEADS: dict[str, Callable[[], nn.Module]] = {
    **{f"linear-{name}": lambda name=name: NonNegLinear(6, 4, activation=name) for name in ACTIVATIONS},
    **{
        f"projection-{norm}": lambda norm=norm: NonNegProjection(6, 10, 4, norm=norm)
        for norm in ("batch", "layer", None)
    },
    **{f"gate-{name}": lambda name=name: Gated(name) for name in ("straight_through", "concrete", "soft")},
    "gated-head": lambda: GatedHead(NonNegProjection(6, 10, 4), BayesianGate(6, 4)),
    "safe_normalize": Normalised,
}
heads = pytest.mark.parametrize("build", HEADS.values(), ids=HEADS.keys())


@heads
@pytest.mark.parametrize("gradient", [False, True], ids=["no_grad", "grad"])
def test_a_trace_is_saved_and_is_the_same_function(build, gradient: bool) -> None:
    head, file = build().eval(), io.BytesIO()
    with torch.set_grad_enabled(gradient):
        torch.jit.save(torch.jit.trace(head, torch.randn(6, 6)), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    x, eager = (torch.linspace(-3, 3, 66).reshape(11, 6).requires_grad_() for _ in range(2))
    y, expected = loaded(x), head(eager)
    assert torch.allclose(y, expected, atol=1e-6)
    assert torch.equal(y == 0, expected == 0)
    if gradient:
        y.sum().backward()
        expected.sum().backward()
        assert torch.allclose(x.grad, eager.grad, atol=1e-5)


@heads
@pytest.mark.parametrize("training", [False, True])
def test_fx_records_heads_with_their_gradients(build, training: bool) -> None:
    head = build().train(training)
    recorded = torch.fx.symbolic_trace(copy.deepcopy(head))
    x, eager = (torch.linspace(-3, 3, 66).reshape(11, 6).requires_grad_() for _ in range(2))
    torch.manual_seed(0)
    y = recorded(x)
    torch.manual_seed(0)
    expected = head(eager)
    assert torch.equal(y, expected)
    y.sum().backward()
    expected.sum().backward()
    assert torch.equal(x.grad, eager.grad)


def by_reverse_mode(head: nn.Module, x: Tensor, tangent: Tensor) -> Tensor:
    """The same derivative by two backward passes."""
    x = x.clone().requires_grad_()
    y = head(x)
    u = torch.zeros_like(y, requires_grad=True)
    (g,) = torch.autograd.grad(y, x, u, create_graph=True)
    return torch.autograd.grad(g, u, tangent)[0]


@heads
def test_forward_mode_and_torch_func(build) -> None:
    head = build().double().eval()
    x, tangent = torch.randn(2, 5, 6, dtype=torch.float64)
    expected = by_reverse_mode(head, x, tangent)
    assert torch.allclose(torch.func.jvp(head, (x,), (tangent,))[1], expected)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(head(forward_ad.make_dual(x, tangent))).tangent
    assert torch.allclose(found, expected)
    rows = torch.func.vmap(torch.func.jacrev(head))(x)
    assert torch.allclose(torch.einsum("noi,ni->no", rows, tangent), expected)
    assert torch.allclose(torch.func.vmap(torch.func.jacfwd(head))(x), rows)


# -------------------------------------------------------------------------------------------- tools for linear layers


def replaced(module: nn.Module, find: type[nn.Module]) -> int:
    """Replace as tools do, by isinstance, with a layer that is affine; return how many."""
    count = 0
    for name, child in module.named_children():
        if isinstance(child, find):
            setattr(module, name, nn.Linear(child.in_features, child.out_features))
            count += 1
        else:
            count += replaced(child, find)
    return count


@pytest.mark.parametrize(("build", "found"), [
    (lambda: NonNegLinear(6, 4), 0),
    (lambda: NonNegProjection(6, 1, 4, num_layers=1), 1),
    (lambda: NonNegProjection(6, 10, 4), 2),
], ids=["linear", "one-layer", "projection"])  # fmt: skip
def test_what_replaces_linear_layers_leaves_the_output_non_negative(build, found: int) -> None:
    model = nn.Sequential(nn.Linear(6, 6), build())
    assert replaced(model, nn.Linear) == found + 1
    assert (model.eval()(torch.randn(64, 6)) >= 0).all()


@pytest.mark.parametrize("build", [lambda: NonNegLinear(6, 4), lambda: NonNegProjection(6, 10, 4)])
def test_dynamic_quantisation_leaves_the_output_non_negative(build) -> None:
    model, x = nn.Sequential(nn.Linear(6, 6), build()).eval(), torch.randn(64, 6)
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})
    assert (quantised(x) >= 0).all()
    assert torch.allclose(quantised(x), model(x), atol=0.1)


def test_a_product_with_the_layer_is_its_call() -> None:
    head, x = NonNegLinear(6, 4), torch.randn(3, 6)
    assert torch.equal(x @ head, head(x))
    with pytest.raises(ValueError, match=r"\(\.\.\., 6\).*\(3, 5\)"):
        x[:, :5] @ head
