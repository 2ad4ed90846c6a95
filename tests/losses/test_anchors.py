"""Anchors: their geometry, the loss against a literal transcription, and what it refuses."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor

from ssl_heads import OrthonormalAnchorRegression
from ssl_heads.functional import anchor_regression, class_anchors, coherence, welch_bound
from tests.checks import assert_gradient_close, relative_error

DISTANCES = ("cosine", "euclidean", "manhattan")


def literal(z: Tensor, labels: Tensor, anchors: Tensor, distance: str, ignore_index: int = -1) -> Tensor:
    """The equation, row by row in float64."""
    terms = []
    for row, label in zip(z.double(), labels.tolist(), strict=True):
        if label == ignore_index:
            continue
        u, c = row / row.norm(), anchors[label].double() / anchors[label].double().norm()
        terms.append({"cosine": 1 - u @ c, "euclidean": (u - c).norm(), "manhattan": (u - c).abs().sum()}[distance])
    return torch.stack(terms).mean()


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    z = torch.randn(12, 6, dtype=torch.float64).to(dtype)
    return z.requires_grad_(), torch.tensor([0, 1, 2, 3, -1, -1, 3, 2, 1, -1, 0, 2]), class_anchors(4, 6)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 4e-3), (torch.float16, 2e-3)],
)
def test_value_and_gradient_equal_the_equation(distance: str, dtype: torch.dtype, rtol: float) -> None:
    z, labels, anchors = batch(dtype)
    loss = anchor_regression(z, labels, anchors, distance=distance)
    exact = z.detach().double().requires_grad_()
    expected = literal(exact, labels, anchors, distance)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert relative_error(loss, expected) < max(rtol / 10, 1e-12)
    loss.backward()
    expected.backward()
    assert z.grad is not None
    assert z.grad.dtype == dtype
    assert_gradient_close(z.grad, exact.grad, rtol)


def test_the_gradient_stays_exact_where_an_embedding_meets_its_anchor() -> None:
    anchors = class_anchors(2, 4)
    z = (anchors + 1e-4 * torch.randn(2, 4)).requires_grad_()
    exact = z.detach().double().requires_grad_()
    anchor_regression(z, torch.arange(2), anchors).backward()
    literal(exact, torch.arange(2), anchors, "cosine").backward()
    # what is left is the rounding of z itself: 6e-8 over an angle of 1e-4
    assert relative_error(z.grad, exact.grad) < 2e-3
    naive = z.detach().clone().requires_grad_()
    (1 - torch.nn.functional.cosine_similarity(naive, anchors)).mean().backward()
    assert relative_error(z.grad, exact.grad) <= relative_error(naive.grad, exact.grad)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_row_at_its_anchor_and_a_zero_row_have_finite_gradients(distance: str) -> None:
    anchors = class_anchors(3, 4, "identity")
    z = torch.stack([3 * anchors[0], torch.zeros(4), anchors[2]]).requires_grad_()
    loss = anchor_regression(z, torch.tensor([0, 1, 2]), anchors, distance=distance)
    loss.backward()
    assert loss.item() == pytest.approx(1 / 3)
    assert z.grad is not None
    assert z.grad.isfinite().all()
    assert (z.grad[1] == 0).all()


def test_no_labelled_row_is_zero_and_part_of_the_graph() -> None:
    z = torch.randn(5, 3, requires_grad=True)
    loss = OrthonormalAnchorRegression(3, 3)(z, torch.full((5,), -1))
    loss.backward()
    assert loss.item() == 0
    assert z.grad is not None
    assert (z.grad == 0).all()


def test_unlabelled_rows_count_for_nothing() -> None:
    z, labels, anchors = batch()
    labelled = labels >= 0
    expected = anchor_regression(z, labels, anchors)
    assert torch.allclose(anchor_regression(z[labelled], labels[labelled], anchors), expected, rtol=1e-14)
    assert torch.equal(anchor_regression(z, labels.where(labelled, -100), anchors, ignore_index=-100), expected)


@pytest.mark.parametrize("basis", ["qr", "identity"])
def test_orthonormal_bases(basis: str) -> None:
    anchors = class_anchors(10, 16, basis, torch.Generator().manual_seed(3)).double()
    assert (anchors @ anchors.T - torch.eye(10)).abs().max() < 1e-6


def test_qr_is_uniform_over_directions() -> None:
    # Without the signs of R, LAPACK's Q has a biased first row: the mean of a uniform direction is 0.
    draws = torch.stack([class_anchors(2, 3, "qr", torch.Generator().manual_seed(i)) for i in range(400)])
    assert draws.mean(0).abs().max() < 4 / math.sqrt(3 * 400)
    assert (draws.square().mean(0) - 1 / 3).abs().max() < 0.08


@pytest.mark.parametrize(("classes", "dim"), [(2, 1), (4, 3), (5, 9), (10, 9)])
def test_etf_is_the_regular_simplex(classes: int, dim: int) -> None:
    anchors = class_anchors(classes, dim, "etf").double()
    expected = (torch.eye(classes) * classes - 1) / (classes - 1)
    assert (anchors @ anchors.T - expected).abs().max() < 1e-6


@pytest.mark.parametrize(("classes", "dim", "slack"), [(3, 2, 1e-6), (6, 3, 2e-3), (7, 3, 2e-3), (16, 6, 0.05)])
def test_grassmannian_reaches_the_welch_bound_where_frames_that_do_exist(classes: int, dim: int, slack: float) -> None:
    anchors = class_anchors(classes, dim, "grassmannian", torch.Generator().manual_seed(0))
    assert (anchors.norm(dim=1) - 1).abs().max() < 1e-6
    best = {(7, 3): 1 / math.sqrt(3)}.get(
        (classes, dim), welch_bound(classes, dim)
    )  # Sloane's table for 7 lines in 3-D
    assert best - 1e-6 <= coherence(anchors) <= best + slack
    random = torch.nn.functional.normalize(torch.randn(classes, dim), dim=1)
    assert coherence(random) > coherence(anchors)


def test_more_classes_than_dimensions_are_refused_with_the_way_out() -> None:
    for basis, classes in (("qr", 5), ("identity", 5), ("etf", 6)):
        with pytest.raises(ValueError, match=rf"4 dimensions hold at most .* num_classes={classes}.*grassmannian"):
            OrthonormalAnchorRegression(classes, 4, basis=basis)
    assert OrthonormalAnchorRegression(6, 4, basis="grassmannian").anchors.shape == (6, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"basis": "svd"}, "basis must be one of.*'svd'"),
        ({"distance": "l3"}, "distance must be one of.*'l3'"),
        ({"ignore_index": 1}, "ignore_index must not be a class"),
        ({"basis": torch.zeros(2, 4)}, "no row of it may be zero"),
        ({"basis": torch.full((2, 4), math.nan)}, "must be finite"),
        ({"basis": torch.eye(3)}, r"shape \(2, 4\), got torch.float32 of shape \(3, 3\)"),
    ],
)
def test_bad_configuration(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OrthonormalAnchorRegression(2, 4, **arguments)  # type: ignore[arg-type]


def test_bad_inputs() -> None:
    loss = OrthonormalAnchorRegression(2, 4)
    with pytest.raises(ValueError, match=r"labels must be 0..1 for 2 anchors.*got 7"):
        loss(torch.randn(3, 4), torch.tensor([0, 7, 1]))
    with pytest.raises(ValueError, match="got -5"):
        loss(torch.randn(3, 4), torch.tensor([0, -5, 1]))
    with pytest.raises(ValueError, match=r"\(3, 5\) and \(2, 4\)"):
        loss(torch.randn(3, 5), torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match=r"one integer for each row"):
        loss(torch.randn(3, 4), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        class_anchors(0, 3)


def test_anchors_are_saved_seeded_and_never_trained() -> None:
    loss = OrthonormalAnchorRegression(3, 8, seed=5)
    assert not list(loss.parameters())
    assert torch.equal(loss.anchors, OrthonormalAnchorRegression(3, 8, seed=5).anchors)
    other = OrthonormalAnchorRegression(3, 8, seed=6)
    assert not torch.allclose(loss.anchors, other.anchors)
    other.load_state_dict(loss.state_dict())
    for twin in (other, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(loss.anchors, twin.anchors)


def test_a_tensor_basis_is_normalised() -> None:
    basis = torch.tensor([[0.0, 3.0], [2.0, 0.0]])
    assert torch.equal(OrthonormalAnchorRegression(2, 2, basis=basis).anchors, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


def test_one_labelled_class_warns_once_and_two_do_not() -> None:
    z, one = torch.randn(4, 3), torch.tensor([2, -1, 2, -1])
    loss = OrthonormalAnchorRegression(3, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(150):
            loss(z, one)
    assert len(caught) == 1
    assert "only 2 in 100 batches with labels" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        two = OrthonormalAnchorRegression(3, 3)
        for step in range(150):
            two(z, torch.tensor([step % 2, -1, -1, -1]))
        recomputed, leaf = OrthonormalAnchorRegression(3, 3), z.clone().requires_grad_()
        for _ in range(80):
            torch.utils.checkpoint.checkpoint(recomputed, leaf, one, use_reentrant=False).backward()
    with pytest.warns(UserWarning, match="two classes"):
        OrthonormalAnchorRegression(1, 3)


def test_it_compiles_whole_and_runs_under_autocast() -> None:
    loss = OrthonormalAnchorRegression(4, 6)
    z, labels, _ = batch(torch.float32)
    eager = loss(z, labels)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(z, labels), eager)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(z, labels), eager)


def test_gradgrad() -> None:
    z, labels, anchors = batch()
    assert torch.autograd.gradcheck(lambda x: anchor_regression(x, labels, anchors), z)
