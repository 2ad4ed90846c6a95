"""Spectral contrast is matrix factorisation: non-negative for NCL, with singular values for triCL."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_heads import FeatureImportance, NegativeDot, metrics
from ssl_heads.functional import delta_contrast
from ssl_heads.similarity import gram


def normalised(joint: Tensor) -> Tensor:
    """``A = P(x, x') / sqrt(P(x) P(x'))``."""
    root = joint.sum(1).sqrt()
    return joint / (root[:, None] * root)


def latent_classes(samples: int, classes: int, sharpness: float = 1.0, anchors: bool = False) -> tuple[Tensor, Tensor]:
    """A joint ``sum_c P(c) P(x|c) P(x'|c)``, and the optimum ``phi_c(x) = P(c|x) / sqrt(P(c))``."""
    likelihood = torch.rand(samples, classes, dtype=torch.float64) ** sharpness
    if anchors:  # one sample a class that belongs to no other class
        likelihood[:classes] = torch.eye(classes, dtype=torch.float64)
    likelihood /= likelihood.sum(0)
    prior = F.softmax(torch.randn(classes, dtype=torch.float64) / 3, dim=0)
    joint = (likelihood * prior) @ likelihood.T
    posterior = likelihood * prior / (likelihood @ prior)[:, None]
    return joint, posterior / prior.sqrt()


def population_spectral_loss(f: Tensor, joint: Tensor) -> Tensor:
    """``-2 E_p f(x).f(x+) + E_x E_x' (f(x).f(x'))^2``, literally."""
    marginal = joint.sum(1)
    inner = f @ f.T
    return -2 * (joint * inner).sum() + (marginal[:, None] * marginal * inner.square()).sum()


def minimise(loss: Callable[[], Tensor], parameters: list[Tensor], steps: int = 2000) -> float:
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=steps,
        history_size=30,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[arg-type]
    return closure().item()


# ---------------------------------------------------------------------------------------------------------------- NCL
def test_our_spectral_loss_on_a_sample_is_the_factorisation_of_its_matrix() -> None:
    counts = torch.tensor([[4, 1, 2], [1, 5, 1], [2, 1, 3]])
    states = [(s, t) for s in range(3) for t in range(3) for _ in range(int(counts[s, t]))]
    first, second = torch.tensor(states).T
    f = torch.rand(3, 2, dtype=torch.float64)
    z, w = f[first], f[second]
    n = len(z)

    positive = (z * w).sum(1)
    ours = delta_contrast(z, w, "scl", NegativeDot(), ratio="linear")
    off_diagonal = ours + 2 * positive.mean()
    population = -2 * positive.mean() + ((n - 1) * off_diagonal + positive.square().mean()) / n
    joint = counts.double() / n
    matrix, weighted = normalised(joint), joint.sum(1).sqrt()[:, None] * f
    factorisation = (matrix - weighted @ weighted.T).square().sum() - matrix.square().sum()
    assert population.item() == pytest.approx(factorisation.item(), abs=1e-13)
    assert population.item() == pytest.approx(population_spectral_loss(f, joint).item(), abs=1e-13)


def test_the_posterior_of_latent_classes_is_optimal() -> None:
    joint, phi = latent_classes(20, 4)
    matrix = normalised(joint)
    weighted = joint.sum(1).sqrt()[:, None] * phi
    assert torch.allclose(weighted @ weighted.T, matrix, atol=1e-14)
    floor = -matrix.square().sum().item()
    assert population_spectral_loss(phi, joint).item() == pytest.approx(floor, abs=1e-13)
    free = torch.randn(20, 4, dtype=torch.float64, requires_grad=True)
    assert minimise(lambda: population_spectral_loss(free, joint), [free]) >= floor - 1e-12


def test_rotation_is_free_for_signed_embeddings_and_breaks_non_negativity() -> None:
    joint, phi = latent_classes(20, 4)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    before, after = (population_spectral_loss(f, joint).item() for f in (phi, phi @ rotation))
    assert after == pytest.approx(before, abs=1e-12)
    assert phi.min() >= 0
    assert (phi @ rotation).min() < -0.1
    assert metrics.match_by_search(phi @ rotation, phi).mean < 0.95


def test_classes_without_overlap_give_orthogonal_dimensions_and_one_active_a_sample() -> None:
    likelihood = F.one_hot(torch.arange(20) % 4, 4).double() / 5
    prior = torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    joint = (likelihood * prior) @ likelihood.T
    phi = likelihood * prior / (likelihood @ prior)[:, None] / prior.sqrt()
    second_moment = (phi * joint.sum(1)[:, None]).T @ phi
    assert torch.allclose(second_moment, torch.eye(4, dtype=torch.float64), atol=1e-14)
    assert ((phi > 0).sum(1) == 1).all()


def fitted_non_negative(joint: Tensor, classes: int) -> tuple[float, Tensor]:
    """The square of free numbers, fitted to the matrix."""
    matrix = normalised(joint)
    root = torch.rand(len(joint), classes, dtype=torch.float64).div(3).requires_grad_()
    loss = minimise(lambda: (matrix - root.square() @ root.square().T).square().sum(), [root], steps=6000)
    return loss, root.detach().square() / joint.sum(1).sqrt()[:, None]


def agreement(found: Tensor, truth: Tensor) -> float:
    """Mean cosine of matched columns."""
    import scipy.optimize

    table = F.normalize(found, dim=0).T @ F.normalize(truth, dim=0)
    rows, columns = scipy.optimize.linear_sum_assignment(table.numpy(), maximize=True)
    return float(table[rows, columns].mean())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_classes_with_a_sample_of_their_own_are_identified(seed: int) -> None:
    torch.manual_seed(seed)
    joint, phi = latent_classes(40, 5, anchors=True)
    loss, found = fitted_non_negative(joint, 5)
    assert loss < 1e-9
    assert agreement(found, phi) > 0.9995


def test_classes_without_a_sample_of_their_own_are_not() -> None:
    agreements = []
    for seed in range(3):
        torch.manual_seed(seed)
        joint, phi = latent_classes(40, 5)
        loss, found = fitted_non_negative(joint, 5)
        assert loss < 1e-9, "as good a factorisation, and yet another one"
        agreements.append(agreement(found, phi))
    assert min(agreements) < 0.97


# -------------------------------------------------------------------------------------------------------------- triCL
SAMPLES, DIM = 80, 6


@pytest.fixture(scope="module")
def matrix() -> Tensor:
    """A normalised joint whose leading singular values are distinct."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return normalised(latent_classes(SAMPLES, 12, sharpness=6)[0])


def fitted_with_importance(matrix: Tensor, seed: int) -> tuple[float, Tensor, Tensor]:
    """Tri-spectral loss plus decorrelation, through the moments that the library uses, to its minimum."""
    generator = torch.Generator().manual_seed(seed)
    f = (0.1 * torch.randn(SAMPLES, DIM, generator=generator, dtype=torch.float64)).requires_grad_()
    importance = FeatureImportance(DIM).double()

    def loss() -> Tensor:
        s = importance()
        positive = ((matrix @ f) * f * s).sum()
        decorrelation = gram.distance_from_identity(f * math.sqrt(SAMPLES))
        return -2 * positive + gram.weighted_square_sum(f, s) + matrix.square().sum() + decorrelation

    value = minimise(loss, [f, *importance.parameters()])
    return value, f.detach(), importance().detach()


def fitted_spectral(matrix: Tensor, seed: int) -> tuple[float, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    f = (0.1 * torch.randn(SAMPLES, DIM, generator=generator, dtype=torch.float64)).requires_grad_()
    return minimise(lambda: (matrix - f @ f.T).square().sum(), [f]), f.detach()


def column_cosines(a: Tensor, b: Tensor) -> Tensor:
    return (F.normalize(a, dim=0) * F.normalize(b, dim=0)).sum(0).abs()


def test_importance_is_the_leading_singular_values_and_seeds_agree(matrix: Tensor) -> None:
    left, singular, _ = torch.linalg.svd(matrix)
    assert (singular[:DIM] - singular[1 : DIM + 1]).min() > 1e-3, "the theorem needs distinct values"
    residual = singular[DIM:].square().sum().item()
    runs = []
    for seed in range(3):
        loss, f, s = fitted_with_importance(matrix, seed)
        order = s.argsort(descending=True)
        assert loss == pytest.approx(residual, abs=1e-8)
        assert torch.allclose(s[order], singular[:DIM], atol=1e-4)
        assert column_cosines(f[:, order], left[:, :DIM]).min() > 0.9995
        runs.append(f[:, order])
    assert all(column_cosines(runs[0], other).min() > 0.9995 for other in runs[1:])


def test_without_importance_the_loss_is_the_same_and_seeds_disagree(matrix: Tensor) -> None:
    residual = torch.linalg.svdvals(matrix)[DIM:].square().sum().item()
    runs = []
    for seed in range(3):
        loss, f = fitted_spectral(matrix, seed)
        assert loss == pytest.approx(residual, abs=1e-8)
        runs.append(f[:, f.norm(dim=0).argsort(descending=True)])
    assert torch.allclose(runs[0] @ runs[0].T, runs[1] @ runs[1].T, atol=1e-4)
    assert max(column_cosines(runs[0], other).mean().item() for other in runs[1:]) < 0.9
