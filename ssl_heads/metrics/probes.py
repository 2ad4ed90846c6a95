"""Probes: what a linear classifier reads from all dimensions, or from few."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_heads._check import positive, same_width
from ssl_heads.metrics._inputs import ArrayLike, as_integers, finite, labelled
from ssl_heads.metrics._optional import optional

STEPS = 1000  # of L-BFGS, at most


class KSparseProbe(NamedTuple):
    """The result of `k_sparse_probe`.

    Attributes:
        accuracy: Shape (s,), the mean of `per_class` for each number of dimensions.
        per_class: Shape (s, c), the balanced accuracy of "this class or another", float64, on the CPU; NaN for a class
            that has no scored row, or has all of them.
        dimensions: Shape (c, d), the dimensions of each class in the order in which they are taken.
        classes: Shape (c,), the classes of the training rows, ascending.
    """

    accuracy: Tensor
    per_class: Tensor
    dimensions: Tensor
    classes: Tensor


@torch.no_grad()
def linear_probe(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    features: ArrayLike,
    labels: ArrayLike,
    *,
    penalty: float = 1e-3,
) -> float:
    r"""Accuracy of multinomial logistic regression on frozen features.

    .. math:: \min_{W, b}\; -\frac1n \sum_i \log \mathrm{softmax}(W x_i + b)_{y_i} + \frac{\lambda}{2} \lVert W \rVert^2

    Dimensions are brought to mean 0 and deviation 1 on the training rows; a constant one becomes 0. The minimum is
    unique and found by L-BFGS in float64, so nothing depends on a seed or a learning rate.

    Args:
        train_features: Shape (m, d).
        train_labels: Shape (m,), classes 0, 1, ...; rows with -1 have no label and are left out.
        features: Shape (n, d).
        labels: Shape (n,); a class that no training row has is never right.
        penalty: The weight lambda.

    Returns:
        The share of rows classified correctly; NaN if a row of either holds NaN or infinity.

    Raises:
        ValueError: If shapes or labels do not fit, the training rows are of one class, or `penalty` is not positive.
        ImportError: If scipy is missing.

    Reference:
        The usual linear evaluation, Zhang et al., Colorful image colorization (ECCV 2016), without augmentation.

    Example:
        >>> x, y = torch.eye(3), torch.arange(3)
        >>> linear_probe(x, y, x, y)
        1.0
    """
    known, classes, x, y = _inputs(train_features, train_labels, features, labels)
    weight = float(positive("penalty", penalty))
    names, which = torch.unique(classes, return_inverse=True)
    _refuse_one_class(names)
    if not finite(known, x):
        return math.nan
    known, x = _standardised(known, x)
    fitted = _fit(known, which, torch.full_like(known[:, 0], 1 / len(known)), weight)
    return int((names[_logits(fitted, x).argmax(dim=1)] == y).sum()) / len(y)


@torch.no_grad()
def k_sparse_probe(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    features: ArrayLike,
    labels: ArrayLike,
    sizes: ArrayLike = (1, 2, 5, 16),
    *,
    penalty: float = 1e-3,
) -> KSparseProbe:
    r"""Balanced accuracy of telling a class from the others by k dimensions, k by k.

    .. math:: J_{ck} = \text{the } k \text{ largest of } |\bar x_{j \mid c} - \bar x_{j \mid \neg c}|

    of dimensions of deviation 1. For each class a logistic regression on these dimensions, in which class and others
    weigh one half each, and the mean of the two shares that it gets right: 0.5 by chance, whatever the number of
    classes. The curve over k is the number; untrained codes come close to trained ones, so read it beside `controls`.

    Args:
        train_features: Shape (m, d).
        train_labels: Shape (m,), classes 0, 1, ...; rows with -1 have no label and are left out.
        features: Shape (n, d).
        labels: Shape (n,); rows with -1 are not scored.
        sizes: Shape (s,), numbers of dimensions; those above d count as d.
        penalty: Weight of the penalty of `linear_probe`.

    Returns:
        With NaN or infinity in either every accuracy is NaN, and dimensions are -1.

    Raises:
        ValueError: If shapes or labels do not fit, the training rows are of one class, a size is below 1, or
            `penalty` is not positive.
        ImportError: If scipy is missing.

    Reference:
        Gurnee et al., Finding neurons in a haystack (TMLR 2023); SAEBench (ICML 2025), sparse probing.

    Example:
        >>> x, y = torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4)
        >>> k_sparse_probe(x, y, x, y, sizes=[1, 3]).accuracy
        tensor([1., 1.], dtype=torch.float64)
    """
    known, classes, x, y = _inputs(train_features, train_labels, features, labels)
    penalty = float(positive("penalty", penalty))
    counts, d = as_integers("sizes", sizes).cpu().flatten().tolist(), known.shape[1]
    if not counts or min(counts) < 1:
        raise ValueError(f"sizes must be at least 1, got {counts}")
    names = torch.unique(classes)
    _refuse_one_class(names)
    scores = torch.full((len(counts), len(names)), math.nan, dtype=torch.float64, device="cpu")
    order = torch.full((len(names), d), -1, device="cpu")
    if finite(known, x):
        known, x = _standardised(known, x)
        for c, name in enumerate(names):
            is_class, expected = classes == name, y == name
            apart = (known[is_class].mean(dim=0) - known[~is_class].mean(dim=0)).abs()
            order[c] = apart.argsort(descending=True, stable=True)
            for s, k in enumerate(counts):
                scores[s, c] = _balanced(known[:, order[c, :k]], is_class, x[:, order[c, :k]], expected, penalty)
    return KSparseProbe(scores.nanmean(dim=1), scores, order, names)


def _balanced(known: Tensor, is_class: Tensor, x: Tensor, expected: Tensor, penalty: float) -> float:
    """Balanced accuracy on (x, expected) of what is fitted on (known, is_class)."""
    share = is_class.double().mean()
    weight = torch.where(is_class, 0.5 / share, 0.5 / (1 - share)) / len(known)
    found = _logits(_fit(known, is_class.long(), weight, penalty), x).argmax(dim=1) == 1
    return float((found[expected].double().mean() + (~found[~expected]).double().mean()) / 2)


def _inputs(
    train_features: ArrayLike, train_labels: ArrayLike, features: ArrayLike, labels: ArrayLike
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Checked training rows with classes, and scored rows with classes, in float64 on the CPU."""
    known, classes = labelled("train_features", train_features, "train_labels", train_labels)
    x, y = labelled("features", features, "labels", labels)
    known, x = known.cpu().double(), x.cpu().double()
    same_width("train_features", known, "features", x)
    return known, classes.cpu(), x, y.cpu()


def _refuse_one_class(classes: Tensor) -> None:
    if len(classes) < 2:
        raise ValueError(f"a probe needs training rows of two classes or more, got class {classes.tolist()} alone")


def _standardised(known: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Both by the mean and the deviation of the first; what varies by its rounding only becomes zero."""
    mean, deviation = known.mean(dim=0), known.std(dim=0, correction=0)
    constant = deviation <= 1e-10 * known.square().mean(dim=0).sqrt()
    scale = torch.where(constant, math.inf, deviation)
    return (known - mean) / scale, (x - mean) / scale


def _logits(weights: Tensor, x: Tensor) -> Tensor:
    """Weights (d + 1, c), the bias in the last row."""
    return x @ weights[:-1] + weights[-1]


def _fit(x: Tensor, y: Tensor, weight: Tensor, penalty: float) -> Tensor:
    """Weights (d + 1, c) of the weighted multinomial logistic regression; rows weigh one in all."""
    optimize = optional("scipy.optimize", "scipy", "a probe")
    target = torch.nn.functional.one_hot(y).double()
    shape = (x.shape[1] + 1, target.shape[1])

    def loss_and_gradient(flat: object) -> tuple[float, object]:
        w = torch.as_tensor(flat, device="cpu").view(shape)
        log_share = _logits(w, x).log_softmax(dim=1)
        residual = weight[:, None] * (log_share.exp() - target)
        gradient = torch.cat([x.mT @ residual + penalty * w[:-1], residual.sum(dim=0, keepdim=True)])
        loss = -(weight * (log_share * target).sum(dim=1)).sum() + penalty / 2 * w[:-1].square().sum()
        return float(loss), gradient.flatten().numpy()

    start = torch.zeros(shape[0] * shape[1], dtype=torch.float64, device="cpu").numpy()
    settings = {"maxiter": STEPS, "gtol": 1e-8, "ftol": 1e-14}
    found = optimize.minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=settings)
    return torch.from_numpy(found.x).view(shape)
