"""Where contrastive learning may stand still, and why two labelled classes remove it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_heads import metrics, similarity
from ssl_heads.functional import anchor_regression, class_anchors, nt_xent
from ssl_heads.similarity import Exclusion

IMAGES, DIM, TEMPERATURE = 4, 6, 0.5
ROWS = 2 * IMAGES


def summed(u: Tensor) -> Tensor:
    """NT-Xent, summed over the rows of both views."""
    u = u.reshape(ROWS, DIM)
    return ROWS * nt_xent(u[:IMAGES], u[IMAGES:], TEMPERATURE, impl="dense")


def direction() -> Tensor:
    return F.normalize(torch.randn(DIM, dtype=torch.float64), dim=0)


@pytest.mark.parametrize("signs", ["equal", "random"])
def test_embeddings_on_one_line_are_stationary(signs: str) -> None:
    sign = torch.ones(ROWS, 1) if signs == "equal" else torch.randint(0, 2, (ROWS, 1)) * 2 - 1
    u = (sign * direction()).requires_grad_()
    loss = summed(u)
    (gradient,) = torch.autograd.grad(loss, u)
    assert gradient.abs().max() < 1e-14
    if signs == "equal":
        assert loss.item() == pytest.approx(ROWS * math.log(ROWS - 1), abs=1e-12)
    elsewhere = torch.randn(ROWS, DIM, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(summed(elsewhere), elsewhere)[0].abs().max() > 0.1


def test_full_collapse_is_a_saddle_with_a_known_spectrum() -> None:
    """CLOA's theorem 3.1 says minimum: most directions along which images move apart go down."""
    u = direction().repeat(ROWS, 1)
    hessian = torch.autograd.functional.hessian(summed, u.reshape(-1))
    eigenvalues = torch.linalg.eigvalsh(hessian)
    apart, split = -2 * ROWS / ((ROWS - 1) * TEMPERATURE), 2 * (ROWS - 2) / ((ROWS - 1) * TEMPERATURE)
    expected = torch.tensor(
        [apart] * ((IMAGES - 1) * (DIM - 1)) + [0.0] * (DIM - 1 + ROWS) + [split] * (IMAGES * (DIM - 1)),
        dtype=torch.float64,
    )
    assert [round(apart, 4), round(split, 4)] == [-4.5714, 3.4286]
    assert torch.allclose(eigenvalues, expected, atol=1e-10)


def test_collapse_to_a_line_with_both_signs_is_a_saddle_too() -> None:
    sign = torch.tensor([1, -1, 1, 1, -1, 1, -1, 1])[:, None]
    hessian = torch.autograd.functional.hessian(summed, (sign * direction()).reshape(-1))
    eigenvalues = torch.linalg.eigvalsh(hessian)
    assert (eigenvalues < -1e-6).sum() > 0
    assert (eigenvalues > 1e-6).sum() > 0


# --------------------------------------------------------------- the learning rate of the repulsion alone (recursion)
def repelled(z: Tensor, rate: float) -> Tensor:
    """One step on the negatives' part, every softmax weight uniform: the limit of small embeddings."""
    rows = len(z)
    small = (1e-6 * z).requires_grad_()
    log_sum = similarity.self_log_sum_exp(small, 1 / TEMPERATURE, exclusion=Exclusion.modulo(rows // 2))
    (gradient,) = torch.autograd.grad(log_sum.sum(), small)
    share_of_negatives = (rows - 2) / (rows - 1)
    return z - rate * share_of_negatives * gradient / 1e-6


def merged_views(images: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(images, dim, generator=generator, dtype=torch.float64) + 0.3
    return F.normalize(z, dim=1).repeat(2, 1)


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9])
def test_the_mean_embedding_follows_the_recursion(rate: float) -> None:
    z = merged_views(64, 16, 0)
    factor = 1 - 2 * rate / TEMPERATURE * 126 / 127
    assert torch.allclose(repelled(z, rate).mean(0), factor * z.mean(0), rtol=1e-5, atol=1e-9)


def test_the_recursion_has_a_window_of_rates_that_ends_at_the_temperature() -> None:
    """For this recursion only: free embeddings under the true gradient do not collapse at large rates."""

    def rank_after(rate: float) -> float:
        z = merged_views(64, 16, 0)
        for _ in range(50):
            z = F.normalize(repelled(z, rate), dim=1)
        return metrics.effective_rank(z)

    assert rank_after(0.9 * TEMPERATURE) > 15
    assert rank_after(0.5 * TEMPERATURE) > 15
    assert rank_after(1.25 * TEMPERATURE) < 2


# ------------------------------------------------------------------------------------------------------------ anchors
def test_the_gradient_of_the_anchor_term() -> None:
    anchors = class_anchors(3, DIM).double()
    labels = torch.tensor([0, 1, 2, -1, 1, 0, -1, 2])
    z = F.normalize(torch.randn(ROWS, DIM, dtype=torch.float64), dim=1).requires_grad_()
    (gradient,) = torch.autograd.grad(anchor_regression(z, labels, anchors), z)
    anchors = F.normalize(anchors, dim=1)
    for row, unit, label in zip(gradient, z.detach(), labels.tolist(), strict=True):
        expected = torch.zeros(DIM, dtype=torch.float64)
        if label >= 0:
            expected = -(anchors[label] - unit * (unit @ anchors[label])) / 6
            assert expected.norm() > 1e-2
        assert torch.allclose(row, expected, atol=1e-12)


def test_collapse_is_stationary_with_one_labelled_class_and_never_with_two() -> None:
    anchors = class_anchors(2, DIM).double()

    def gradient(z0: Tensor, labels: Tensor) -> Tensor:
        z = z0.repeat(ROWS, 1).requires_grad_()
        return torch.autograd.grad(summed(z) + anchor_regression(z, labels, anchors), z)[0].norm(dim=1)

    one, two = torch.tensor([0, -1] * 4), torch.tensor([0, 1] * 4)
    for sign in (1, -1):
        assert gradient(sign * anchors[0], one).max() < 1e-7
    # at the first class's anchor, its own rows stand still and the other's do not
    at_anchor = gradient(anchors[0], two)
    assert at_anchor[0::2].max() < 1e-7
    assert at_anchor[1::2].min() > 0.1
    for _ in range(20):
        assert gradient(direction(), two).max() > 0.05


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_a_network_that_ignores_its_input_stops_at_the_mean_anchor(classes: int) -> None:
    """What anchors do not exclude: only a shared bias is left to move."""
    anchors, labels = class_anchors(classes, DIM).double(), torch.arange(classes)
    bias = torch.randn(DIM, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([bias], max_iter=100, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = anchor_regression(bias.expand(classes, DIM), labels, anchors)
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    assert closure().item() == pytest.approx(1 - 1 / math.sqrt(classes), abs=1e-6)
    assert F.cosine_similarity(bias, anchors.mean(0), dim=0).item() == pytest.approx(1, abs=1e-6)
