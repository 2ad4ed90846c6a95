"""The delta family against double loops in float64, and what each kind must and must not depend on."""

from __future__ import annotations

import copy
import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_heads import (
    DeltaContrast,
    LpNorm,
    LpPower,
    NegativeCosine,
    NegativeDot,
    SquaredEuclidean,
)
from ssl_heads.functional import _negatives, delta_contrast, delta_terms
from ssl_heads.functional.delta import bounded_exp
from tests.cases import use_small_tiles
from tests.checks import assert_gradient_close, relative_error

FACTOR = torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, 0.25]])
DISSIMILARITIES = {
    "dot": (NegativeDot(2.0), lambda z, w: -(z @ w) / 2),
    "cosine": (NegativeCosine(0.5), lambda z, w: -(z @ w) / (z.norm() * w.norm()) / 0.5),
    "squared": (SquaredEuclidean(), lambda z, w: ((z - w) ** 2).sum()),
    "metric": (SquaredEuclidean(FACTOR), lambda z, w: ((FACTOR.double() @ (z - w)) ** 2).sum()),
    "l1": (LpPower(1), lambda z, w: sum(abs(a - b) for a, b in zip(z, w, strict=True))),
    "l3": (LpPower(3), lambda z, w: sum(abs(a - b) ** 3 for a, b in zip(z, w, strict=True))),
    "norm3": (LpNorm(3), lambda z, w: sum(abs(a - b) ** 3 for a, b in zip(z, w, strict=True)) ** (1 / 3)),
}
KINDS = (
    *({"kind": kind} for kind in ("nce", "infonce", "scl", "nwj")),
    {"kind": "infonce", "symmetric": True},
    {"kind": "scl", "ratio": "linear"},
)


def literal(z: Tensor, w: Tensor, alpha: Tensor, alpha_tilde: Tensor, d, kind: str, symmetric=False, ratio="exp"):
    """The table of the family, with D as a matrix of Python sums."""
    n = len(z)
    rows = [torch.stack([d(z[i], w[j]) + alpha[i] + alpha_tilde[j] for j in range(n)]) for i in range(n)]
    matrix = torch.stack(rows)
    positive = matrix.diagonal()
    negative = matrix[~torch.eye(n, dtype=torch.bool)]
    if kind == "nce":
        return torch.log(1 + positive.exp()).mean() + torch.log(1 + (-negative).exp()).mean()
    if kind == "infonce":
        loss = F.cross_entropy(-matrix, torch.arange(n))
        return (loss + F.cross_entropy(-matrix.T, torch.arange(n))) / 2 if symmetric else loss
    if kind == "nwj":
        return positive.mean() + (-negative).exp().mean() - 1
    if ratio == "linear":
        return 2 * positive.mean() + negative.square().mean()
    return -2 * (-positive).exp().mean() + (-2 * negative).exp().mean()


def inputs(dtype: torch.dtype = torch.float64, n: int = 7) -> list[Tensor]:
    z = torch.randn(n, 3)
    w = z + 0.3 * torch.randn(n, 3)
    return [x.to(dtype).requires_grad_() for x in (z, w, torch.randn(n) / 2, torch.randn(n) / 2)]


def blocks_of(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    monkeypatch.setattr(_negatives, "BLOCK_ELEMENTS", elements)


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("name", DISSIMILARITIES)
@pytest.mark.parametrize("impl", ["dense", "tiled"])
def test_value_and_gradients_equal_the_definition(
    name: str, options: dict, impl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks_of(monkeypatch, 50)  # two or three rows a block
    dissimilarity, d = DISSIMILARITIES[name]
    for dtype, rtol in ((torch.float64, 1e-11), (torch.float32, 1e-5)):
        given = inputs(dtype)
        exact = [x.detach().double().requires_grad_() for x in given]
        z, w, alpha, alpha_tilde = given
        dissimilarity = copy.deepcopy(dissimilarity).to(dtype)
        loss = delta_contrast(z, w, options["kind"], dissimilarity, alpha, alpha_tilde, **rest(options), impl=impl)
        expected = literal(*exact, d, **options)
        assert relative_error(loss, expected) < rtol
        loss.backward()
        expected.backward()
        for x, y in zip(given, exact, strict=True):
            assert y.grad is not None
            if y.grad.norm() < 1e-12:  # infonce does not depend on alpha
                assert x.grad is None or x.grad.norm() < 1e-6
            else:
                assert_gradient_close(x.grad, y.grad, rtol)


def rest(options: dict) -> dict:
    return {key: value for key, value in options.items() if key != "kind"}


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.bfloat16, 4e-3), (torch.float16, 2e-3)])
@pytest.mark.parametrize("kind", ["nce", "infonce", "scl", "nwj"])
@pytest.mark.parametrize("name", ["squared", "l1", "cosine"])
def test_half_precision_inputs_are_computed_in_fp32(name: str, kind: str, dtype: torch.dtype, rtol: float) -> None:
    dissimilarity, d = DISSIMILARITIES[name]
    z, w, *_ = (x.detach().to(dtype).requires_grad_() for x in inputs(n=9))
    exact = [x.detach().double().requires_grad_() for x in (z, w)]
    zero = torch.zeros(9, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = delta_contrast(z, w, kind, dissimilarity)
    expected = literal(*exact, zero, zero, d, kind)
    assert loss.dtype == torch.float32
    assert relative_error(loss, expected) < 1e-5
    loss.backward()
    expected.backward()
    for x, y in zip((z, w), exact, strict=True):
        assert x.grad is not None
        assert x.grad.dtype == dtype
        assert_gradient_close(x.grad, y.grad, rtol)


def test_gradients_with_respect_to_d_are_the_closed_forms() -> None:
    n = 5
    table = torch.randn(n, n, dtype=torch.float64, requires_grad=True)
    eye = torch.eye(n, dtype=torch.float64)
    own = torch.eye(n, dtype=torch.bool)
    pairs = n * (n - 1)
    softmax = torch.softmax(-table.detach(), dim=1)
    d = table.detach()
    expected = {
        "nce": torch.where(own, torch.sigmoid(d) / n, -torch.sigmoid(-d) / pairs),
        "infonce": torch.where(own, 1 - softmax, -softmax) / n,
        "scl": torch.where(own, 2 * torch.exp(-d) / n, -2 * torch.exp(-2 * d) / pairs),
        "nwj": torch.where(own, torch.ones_like(d) / n, -torch.exp(-d) / pairs),
    }
    for kind, gradient in expected.items():
        (found,) = torch.autograd.grad(delta_contrast(eye, eye, kind, Table(table)), table)  # type: ignore[arg-type]
        assert_gradient_close(found, gradient, 1e-12)


class Table(nn.Module):
    """A dissimilarity looked up by one-hot rows: D itself is what is trained."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def pairwise(self, z: Tensor, w: Tensor) -> Tensor:
        return z @ self.table @ w.T

    def paired(self, z: Tensor, w: Tensor) -> Tensor:
        return ((z @ self.table) * w).sum(1)

    def factors(self, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return -z @ self.table, w


class Unfactored(Table):
    """The same, without the form that the engine takes."""

    def factors(self, z: Tensor, w: Tensor) -> None:  # type: ignore[override]
        return None


@pytest.mark.parametrize("form", [Table, Unfactored])
def test_a_dissimilarity_may_treat_its_sides_differently(form: type[Table]) -> None:
    table, eye = torch.randn(5, 5, dtype=torch.float64), torch.eye(5, dtype=torch.float64)
    loss = delta_contrast(eye, eye, "infonce", form(table), symmetric=True)
    target = torch.arange(5)
    assert loss.item() == pytest.approx(
        ((F.cross_entropy(-table, target) + F.cross_entropy(-table.T, target)) / 2).item(), rel=1e-12
    )


def test_infonce_with_the_cosine_is_cross_entropy_over_cosine_logits() -> None:
    z, w = torch.randn(2, 300, 16)
    logits = F.normalize(z, dim=1) @ F.normalize(w, dim=1).T / 0.2
    assert DeltaContrast()(z, w).item() == pytest.approx(F.cross_entropy(logits, torch.arange(300)).item(), rel=1e-6)


def test_the_linear_ratio_is_the_classic_spectral_loss() -> None:
    z, w = torch.randn(2, 8, 4).double()
    inner = z @ w.T
    classic = -2 * inner.diagonal().mean() + inner.square().fill_diagonal_(0).sum() / 56
    assert DeltaContrast("scl", NegativeDot(), ratio="linear")(z, w).item() == pytest.approx(classic.item(), rel=1e-12)


@pytest.mark.parametrize("kind", ["nce", "infonce", "scl", "nwj"])
def test_a_constant_moves_between_the_corrections_and_d_for_free(kind: str) -> None:
    z, w, alpha, alpha_tilde = (x.detach() for x in inputs())
    loss = delta_contrast(z, w, kind, LpPower(1), alpha, alpha_tilde)  # type: ignore[arg-type]
    moved = delta_contrast(z, w, kind, LpPower(1), alpha + 0.7, alpha_tilde - 0.7)  # type: ignore[arg-type]
    assert moved.item() == pytest.approx(loss.item(), rel=1e-12)
    by_row = delta_contrast(z, w, kind, LpPower(1), alpha + torch.arange(7), alpha_tilde)  # type: ignore[arg-type]
    assert (abs(by_row.item() - loss.item()) < 1e-12) == (kind == "infonce")


@pytest.mark.parametrize(("name", "kind"), [*product(DISSIMILARITIES, ["nce", "infonce", "scl", "nwj"])])
def test_equal_and_zero_rows_have_finite_gradients(name: str, kind: str) -> None:
    dissimilarity, _ = DISSIMILARITIES[name]
    z = torch.zeros(6, 3, requires_grad=True)
    w = torch.zeros(6, 3, requires_grad=True)
    loss = delta_contrast(z, w, kind, dissimilarity)  # type: ignore[arg-type]
    loss.backward()
    # D = 0 everywhere is the optimum over constants
    assert loss.item() == pytest.approx(
        {"nce": 2 * math.log(2), "infonce": math.log(6), "scl": -1, "nwj": 0}[kind], abs=1e-6
    )
    assert z.grad is not None
    assert w.grad is not None
    assert z.grad.isfinite().all()
    assert w.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["nce", "infonce", "scl", "nwj"])
def test_one_pair_has_no_negatives(kind: str) -> None:
    z = torch.randn(1, 3, requires_grad=True)
    loss = delta_contrast(z, z + 1, kind, LpPower(1))  # type: ignore[arg-type]
    loss.backward()
    assert loss.isfinite()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_a_squared_distance_far_from_the_origin_keeps_its_accuracy() -> None:
    z, w, *_ = (x.detach() for x in inputs())
    near = delta_contrast(z, w, "nce", SquaredEuclidean())
    far = delta_contrast((z + 1000).float(), (w + 1000).float(), "nce", SquaredEuclidean())
    rounded = delta_contrast((z + 1000).float().double(), (w + 1000).float().double(), "nce", SquaredEuclidean())
    assert relative_error(far, rounded) < 1e-5
    assert relative_error(far, near) < 1e-3


def test_the_exponential_is_bounded_and_says_how_often() -> None:
    x = torch.tensor([-3.0, 14.9, 15.0, 16.0, 1e4], requires_grad=True)
    y = bounded_exp(x, 15.0)
    assert torch.allclose(y[:3], x[:3].exp())
    assert torch.allclose(y[3:], math.exp(15) * (1 + x[3:] - 15))
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert slope.max() <= math.exp(15) * 1.0001
    assert (slope > 0).all()

    z = torch.tensor([[3.0], [0.1], [3.0]], requires_grad=True)
    for kind, share in (("nwj", 2 / 6), ("scl", 4 / 9), ("nce", 0), ("infonce", 0)):
        terms = delta_terms(z, z, kind, NegativeDot(), clamp=8.0)  # type: ignore[arg-type]
        assert terms.clamp_rate.item() == pytest.approx(share)
        assert not terms.clamp_rate.requires_grad
    huge = torch.full((3, 1), 1e4, requires_grad=True)
    delta_contrast(huge, huge, "nwj", NegativeDot()).backward()
    assert huge.grad is not None
    assert huge.grad.isfinite().all()


@pytest.mark.parametrize("which", [0, 1])
def test_an_input_that_is_overwritten_before_the_backward_is_refused(
    which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block reads the embeddings again: as a queue that is written in place between a loss and its backward."""
    blocks_of(monkeypatch, 50)
    inputs = [torch.randn(9, 3), torch.randn(9, 3)]
    leaf = inputs[1 - which].requires_grad_()
    value = DeltaContrast("nce", LpNorm(1))(*inputs)
    inputs[which].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()
    assert leaf.grad is None


@pytest.mark.parametrize("name", ["squared", "l1"])
@pytest.mark.parametrize("kind", ["infonce", "nwj"])
def test_blocks_store_their_reduction_only(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks_of(monkeypatch, 64 * 512)
    use_small_tiles(monkeypatch, 64)
    dissimilarity, _ = DISSIMILARITIES[name]
    z, w = torch.randn(2, 512, 4, requires_grad=True).unbind()
    largest = 0

    def pack(x: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        delta_contrast(z, w, kind, dissimilarity, impl="tiled")  # type: ignore[arg-type]
        tiled = largest
        largest = 0
        delta_contrast(z, w, kind, dissimilarity, impl="dense")  # type: ignore[arg-type]
    assert tiled <= 512 * 8 < 512 * 512 <= largest
