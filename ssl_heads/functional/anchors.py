"""Anchors: fixed directions, one a class, and the distance of labelled embeddings from theirs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_heads import _check
from ssl_heads._numerics import promote
from ssl_heads.distributed import Gather, Shard
from ssl_heads.functional.groups import NONE, counted
from ssl_heads.functional.normalize import safe_normalize

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Basis = Literal["qr", "identity", "etf", "grassmannian"]
Distance = Literal["cosine", "euclidean", "manhattan"]
BASES, DISTANCES = get_args(Basis), get_args(Distance)


def anchor_regression(
    embeddings: Tensor,
    labels: Tensor,
    anchors: Tensor,
    *,
    distance: Distance = "cosine",
    ignore_index: int = -1,
    gather: Gather = "none",
    group: ProcessGroup | None = None,
) -> Tensor:
    r"""Mean distance of the labelled embeddings from the anchor of their class.

    .. math:: \frac{1}{|S|}\sum_{i \in S} 1 - \cos(z_i, c_{y_i}), \qquad S = \{i : y_i \text{ is a label}\}

    The loss has no negatives and no temperature; add it to any other. The paper takes the sum over S and its
    successor's code the mean: a sum drowns a base loss that is a mean.

    Args:
        embeddings: Shape (n, d); the rows are divided by their length.
        labels: Integers of shape (n,), classes 0, 1, ... and -1 or `ignore_index` for a row without one.
        anchors: Shape (K, d), directions that get no gradient: see `class_anchors`.
        distance: ``"cosine"`` is 1 - cos, ``"euclidean"`` the length of the difference, ``"manhattan"`` its L1 norm.
        ignore_index: What stands for no label beside -1.
        gather, group: Over whose labelled rows the mean is taken, see `ssl_heads.distributed`. Ranks may hold different
            numbers of them; one count is exchanged, no embedding.

    Returns:
        A scalar in float32 (float64 for float64 inputs): 0 and still part of the graph without a labelled row, NaN for
        a NaN in any row, labelled or not. A zero row is at distance 1 from every anchor and gets no gradient.

    Raises:
        ValueError: If shapes do not fit, the distance is unknown, or a label (on the CPU, where reading costs no
            wait) has no anchor.

    Reference:
        Unsupervised contrastive learning with orthonormal anchors (arXiv 2403.18699), equation 2.

    Example:
        >>> import torch
        >>> from ssl_heads.functional import anchor_regression
        >>> z = torch.tensor([[2.0, 0.0], [1.0, 1.0], [5.0, 5.0]])
        >>> anchor_regression(z, torch.tensor([0, 1, -1]), torch.eye(2))
        tensor(0.1464)
    """

    def checked() -> tuple[Tensor, Tensor]:
        _check.rows("embeddings", embeddings)
        integers = _check.integers("labels", labels, len(embeddings), "embeddings", embeddings)
        _check.choice("distance", distance, DISTANCES)
        _check.rows("anchors", anchors)
        _check.same_width("embeddings", embeddings, "anchors", anchors)
        labelled = (integers != NONE) & (integers != ignore_index)
        index = torch.where(labelled, integers, 0)
        _check.classes("labels", index, len(anchors), "anchors", ignore_index)
        return labelled, index

    facts: dict[str, object] = {"call": "anchor_regression", "distance": distance, "ignore_index": ignore_index}
    facts["shape of anchors"] = getattr(anchors, "shape", anchors)
    shard, (labelled, index) = Shard.of(gather, group, {"embeddings": embeddings}, facts, checked)
    u = safe_normalize(promote(embeddings))
    difference = u - safe_normalize(F.embedding(index, anchors.detach().to(u.dtype)))
    if distance == "cosine":
        # |u - c|^2 / 2 = 1 - cos for unit rows, without its cancellation where they meet
        each = torch.where(u.detach().any(dim=1), difference.square().sum(1) / 2, 1.0)
    else:
        each = torch.linalg.vector_norm(difference, ord=2 if distance == "euclidean" else 1, dim=1)
    count = shard.all_reduce(labelled.sum())
    return shard.ddp_sum(counted(each, labelled)) / count.clamp_min(1)


def class_anchors(num_classes: int, dim: int, basis: Basis = "qr", generator: torch.Generator | None = None) -> Tensor:
    r"""Unit directions, one a class, of a given geometry.

    ========================  ======================================  =================
    basis                     cosine of two anchors                   needs
    ========================  ======================================  =================
    ``"qr"``                  0; uniformly random directions          K <= d
    ``"identity"``            0; the axes, which ReLU can reach       K <= d
    ``"etf"``                 -1 / (K - 1), a regular simplex         K <= d + 1
    ``"grassmannian"``        as small in magnitude as is found       nothing
    ========================  ======================================  =================

    A non-negative embedding cannot reach random directions (the best cosine is about 0.71): give it the identity.

    Args:
        num_classes: K.
        dim: d.
        basis: The geometry. ``"grassmannian"`` minimises the largest |cosine|: `coherence` measures the result, and
            `welch_bound` is its lower bound.
        generator: Random numbers, on the CPU, where the geometry is found.

    Returns:
        Shape (K, d), float32, on the default device.

    Raises:
        ValueError: If a number is below 1, the basis is unknown, or so many classes have no such geometry in d
            dimensions.

    Example:
        >>> anchors = class_anchors(3, 8, "etf")
        >>> (anchors @ anchors.T).round(decimals=4)
        tensor([[ 1.0000, -0.5000, -0.5000],
                [-0.5000,  1.0000, -0.5000],
                [-0.5000, -0.5000,  1.0000]])
    """
    _check.choice("basis", basis, BASES)
    num_classes, dim = _check.at_least_one("num_classes", num_classes), _check.at_least_one("dim", dim)
    room = {"qr": dim, "identity": dim, "etf": dim + 1}.get(basis, num_classes)
    if num_classes > room:
        raise ValueError(
            f"{dim} dimensions hold at most {room} anchors of basis {basis!r}, got num_classes={num_classes}: use more "
            'dimensions, or basis="grassmannian", whose anchors are as far from parallel as they can be'
        )
    with torch.device("cpu"):
        anchors = _anchors(num_classes, dim, basis, generator)
    # torch.get_default_device of torch 2.6 fails after set_default_device(None)
    default_device = torch.empty(0).device
    return anchors.float().to(default_device)


def _anchors(num_classes: int, dim: int, basis: Basis, generator: torch.Generator | None) -> Tensor:
    if basis == "identity":
        return torch.eye(num_classes, dim)
    if basis == "etf" or (basis == "grassmannian" and num_classes == dim + 1):
        return _simplex(num_classes, dim, generator)
    if basis == "grassmannian" and num_classes > dim:
        return _least_coherent(num_classes, dim, generator)
    return _orthonormal_rows(num_classes, dim, generator)


def _orthonormal_rows(count: int, dim: int, generator: torch.Generator | None) -> Tensor:
    """Uniform (Haar) over all orthonormal sets; the signs make QR unique."""
    q, r = torch.linalg.qr(torch.randn(dim, count, dtype=torch.float64, generator=generator))
    rows: Tensor = (q * torch.where(r.diagonal() < 0, -1.0, 1.0)).T
    return rows


def _simplex(classes: int, dim: int, generator: torch.Generator | None) -> Tensor:
    r"""`sqrt(K / (K - 1)) B Q`: B has the K - 1 directions orthogonal to ones, Q puts them at random into d."""
    if classes == 1:
        return _orthonormal_rows(1, dim, generator)
    ones_first = torch.cat([torch.ones(classes, 1), torch.eye(classes, classes - 1)], dim=1).double()
    centred: Tensor = torch.linalg.qr(ones_first).Q[:, 1:]
    return math.sqrt(classes / (classes - 1)) * centred @ _orthonormal_rows(classes - 1, dim, generator)


def _least_coherent(classes: int, dim: int, generator: torch.Generator | None) -> Tensor:
    """Minimise a soft maximum of the squared cosines, in steps of growing sharpness."""
    free = torch.randn(classes, dim, dtype=torch.float64, generator=generator).requires_grad_()
    above = torch.ones(classes, classes, dtype=torch.bool).triu(1)
    for sharpness in (10.0, 100.0, 1000.0, 10000.0):
        optimizer = torch.optim.LBFGS([free], max_iter=200, history_size=20, line_search_fn="strong_wolfe")

        def soft_maximum(optimizer: torch.optim.LBFGS = optimizer, sharpness: float = sharpness) -> float:
            optimizer.zero_grad()
            unit = F.normalize(free, dim=1)
            value = torch.logsumexp(sharpness * (unit @ unit.T)[above].square(), dim=0) / sharpness
            value.backward()  # type: ignore[no-untyped-call]
            return value.item()

        with torch.enable_grad():
            optimizer.step(soft_maximum)  # type: ignore[no-untyped-call]
    return F.normalize(free.detach(), dim=1)


def coherence(anchors: Tensor) -> float:
    """The largest absolute cosine of two different anchors; 0 for an orthonormal set and for a single one.

    Args:
        anchors: Shape (K, d).

    Raises:
        ValueError: If `anchors` is not a floating-point matrix with rows.

    Example:
        >>> round(coherence(class_anchors(4, 3, "etf")), 4)
        0.3333
    """
    _check.rows("anchors", anchors)
    unit = safe_normalize(anchors.detach().double())
    return float((unit @ unit.T).fill_diagonal_(0).abs().max())


def welch_bound(num_classes: int, dim: int) -> float:
    r"""The least coherence that K unit rows in d dimensions can have.

    .. math:: \sqrt{\frac{K - d}{d (K - 1)}} \text{ for } K > d, \text{ else } 0

    Args:
        num_classes: K, at least 1.
        dim: d, at least 1.

    Raises:
        ValueError: If a number is below 1.

    Example:
        >>> round(welch_bound(4, 3), 4)
        0.3333
    """
    num_classes, dim = _check.at_least_one("num_classes", num_classes), _check.at_least_one("dim", dim)
    return math.sqrt((num_classes - dim) / (dim * (num_classes - 1))) if num_classes > dim else 0.0
