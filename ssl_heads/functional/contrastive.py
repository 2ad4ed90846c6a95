"""Softmax and sigmoid contrastive losses, as equations over embeddings."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from einops import einsum, repeat
from torch import Tensor

from ssl_heads import _check, similarity
from ssl_heads.functional.normalize import safe_normalize
from ssl_heads.similarity import Exclusion, Impl, promote

MultiPositive = Literal["out", "in"]


def unit_rows(x: Tensor, normalize: bool) -> Tensor:
    """Rows in fp32 or fp64, of length one on request."""
    x = promote(x)
    return safe_normalize(x) if normalize else x


def row_dots(a: Tensor, b: Tensor) -> Tensor:
    """``<a_i, b_i>`` of shape (n,)."""
    return einsum(a, b, "n d, n d -> n")


def against_negatives(log_sum: Tensor, positive: Tensor) -> Tensor:
    """``-log(e^positive / (e^positive + e^log_sum))``, exact when the positive wins by far."""
    return -F.logsigmoid(positive - log_sum)


def cosine_bound(scale: float | Tensor, normalize: bool) -> float:
    """The largest logit of unit rows, where the scale is a number; infinity where it is not known."""
    known = normalize and not isinstance(scale, Tensor)
    return abs(float(scale)) * 1.001 if known else math.inf


def nt_xent(
    z0: Tensor,
    z1: Tensor,
    temperature: float | Tensor = 0.2,
    *,
    normalize: bool = True,
    ids: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    r"""The loss of SimCLR: each row finds its other view among all rows of both views.

    .. math:: \frac{1}{2n}\sum_i -\log\frac{e^{u_i\cdot u_{p(i)}/T}}{\sum_{j \ne i} e^{u_i\cdot u_j/T}}

    Args:
        z0: First views, of shape (n, d).
        z1: Second views, of shape (n, d), row by row of the same samples.
        temperature: Divides the similarities.
        normalize: Whether rows are divided by their length.
        ids: Integers of shape (n,); samples with an equal id are never negatives of each other.
        impl: How the similarity matrix is reduced, see `ssl_heads.similarity.Impl`.

    Returns:
        A scalar in fp32 (fp64 for fp64 inputs). One pair has no negatives and gives 0.

    Raises:
        ValueError: If shapes differ, the batch is empty or the temperature is not above 0.

    Example:
        >>> import torch
        >>> from ssl_heads.functional import nt_xent
        >>> nt_xent(torch.eye(4), torch.eye(4), temperature=0.5).shape
        torch.Size([])
    """
    _check.paired("z0", z0, "z1", z1)
    _check.positive("temperature", temperature)
    u = unit_rows(torch.cat([z0, z1]), normalize)
    return nt_xent_of_rows(u, 1 / temperature, None, ids, cosine_bound(1 / temperature, normalize), impl)


def nt_xent_of_rows(
    u: Tensor, scale: float | Tensor, importance: Tensor | None, ids: Tensor | None, bound: float, impl: Impl
) -> Tensor:
    """NT-Xent of stacked views ``u`` of shape (2n, d) with logits ``scale * u diag(importance) u^T``."""
    n = u.shape[0] // 2
    first, second = u[:n], u[n:]
    exclusion = Exclusion.modulo(n)
    if ids is not None:
        _check.integers("ids", ids, n, "z0", first)
        both = repeat(ids, "n -> (views n)", views=2)
        exclusion = exclusion._replace(query_ids=both, key_ids=both)
    log_sum = similarity.self_log_sum_exp(u, scale, weight=importance, exclusion=exclusion, bound=bound, impl=impl)
    positive = row_dots(first if importance is None else first * importance, second) * scale
    return against_negatives(log_sum, repeat(positive, "n -> (views n)", views=2)).mean()


def info_nce(
    query: Tensor,
    key: Tensor,
    queue: Tensor | None = None,
    temperature: float | Tensor = 0.2,
    *,
    normalize: bool = True,
    impl: Impl = "auto",
) -> Tensor:
    r"""Each query finds its own key among the keys of the batch, or among the entries of a queue (MoCo).

    .. math:: \frac{1}{n}\sum_i -\log\frac{e^{q_i\cdot k_i/T}}{e^{q_i\cdot k_i/T} + \sum_{c} e^{q_i\cdot c/T}}

    where `c` runs over the other keys, or over the queue if there is one.

    Args:
        query: Shape (n, d).
        key: Shape (n, d).
        queue: Shape (K, d), or None. It gets no gradient.
        temperature: Divides the similarities.
        normalize: Whether the rows of all three are divided by their length.
        impl: How the similarity matrix is reduced.

    Returns:
        A scalar in fp32 (fp64 for fp64 inputs).

    Raises:
        ValueError: If shapes do not fit, the batch is empty or the temperature is not above 0.

    Example:
        >>> import torch
        >>> from ssl_heads.functional import info_nce
        >>> round(info_nce(torch.eye(2), torch.eye(2), temperature=1.0).item(), 4)
        0.3133
    """
    _check.paired("query", query, "key", key)
    _check.positive("temperature", temperature)
    scale = 1 / temperature
    q, k = unit_rows(query, normalize), unit_rows(key, normalize)
    others, exclusion = k, Exclusion.diagonal(len(q), len(k))
    if queue is not None:
        _check.rows("queue", queue)
        _check.same_width("query", query, "queue", queue)
        others, exclusion = unit_rows(queue.detach(), normalize).to(q.dtype), Exclusion.nothing()
    bound = cosine_bound(scale, normalize)
    log_sum, _ = similarity.log_sum_exp(q, others, scale, exclusion=exclusion, bound=bound, impl=impl)
    return against_negatives(log_sum, row_dots(q, k) * scale).mean()


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None = None,
    *,
    impl: Impl = "auto",
) -> Tensor:
    r"""The loss of CLIP: each image finds its text, each text its image, in equal parts.

    .. math:: \frac{1}{2n}\sum_i -\log\frac{e^{S_{ii}}}{\sum_j e^{S_{ij}}} - \log\frac{e^{S_{ii}}}{\sum_j e^{S_{ji}}},
        \quad S = \text{scale} \cdot I T^\top

    Args:
        image_features: Shape (n, d), used as they come: the model normalises.
        text_features: Shape (n, d).
        logit_scale: Multiplies the similarities, already exponentiated.
        logit_bias: Accepted because models with a bias pass it; a softmax does not depend on it.
        impl: How the similarity matrix is reduced.

    Returns:
        A scalar in fp32 (fp64 for fp64 inputs).

    Raises:
        ValueError: If shapes differ or the batch is empty.

    Example:
        >>> import torch
        >>> from ssl_heads.functional import clip_loss
        >>> round(clip_loss(torch.eye(2), torch.eye(2), 1.0).item(), 4)
        0.3133
    """
    _check.paired("image_features", image_features, "text_features", text_features)
    image, text = promote(image_features), promote(text_features)
    exclusion = Exclusion.diagonal(len(image), len(text))
    row, column = similarity.log_sum_exp(image, text, logit_scale, exclusion=exclusion, columns=True, impl=impl)
    assert column is not None
    positive = row_dots(image, text) * logit_scale
    loss = (against_negatives(row, positive).mean() + against_negatives(column, positive).mean()) / 2
    # DistributedDataParallel waits for a gradient of every parameter it has seen in the forward pass.
    return loss + 0 * logit_bias.sum() if isinstance(logit_bias, Tensor) else loss


def siglip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    *,
    impl: Impl = "auto",
) -> Tensor:
    r"""The loss of SigLIP: every pair of an image and a text is a yes-or-no question of its own.

    .. math:: \frac{1}{n}\sum_i \Big[\text{softplus}(-S_{ii}) + \sum_{j \ne i} \text{softplus}(S_{ij})\Big],
        \quad S = \text{scale} \cdot I T^\top + \text{bias}

    Args:
        image_features: Shape (n, d), used as they come: the model normalises.
        text_features: Shape (n, d).
        logit_scale: Multiplies the similarities, already exponentiated.
        logit_bias: Added to every logit; -10 at the start in the paper.
        impl: How the similarity matrix is reduced.

    Returns:
        A scalar in fp32 (fp64 for fp64 inputs).

    Raises:
        ValueError: If shapes differ or the batch is empty.

    Example:
        >>> import torch
        >>> from ssl_heads.functional import siglip_loss
        >>> round(siglip_loss(torch.eye(2), torch.eye(2), 1.0, 0.0).item(), 4)
        1.0064
    """
    _check.paired("image_features", image_features, "text_features", text_features)
    image, text = promote(image_features), promote(text_features)
    bias = torch.as_tensor(logit_bias, dtype=image.dtype, device=image.device).reshape(())
    negative = similarity.softplus_sum(
        image, text, logit_scale, bias, exclusion=Exclusion.diagonal(len(image), len(text)), impl=impl
    )
    positive = row_dots(image, text) * logit_scale + bias
    return (negative - F.logsigmoid(positive).sum()) / len(image)


def sup_con(
    embeddings: Tensor,
    labels: Tensor,
    temperature: float | Tensor = 0.1,
    *,
    multi_positive: MultiPositive = "out",
    impl: Impl = "auto",
) -> Tensor:
    r"""Supervised contrastive loss: all other rows of the class are positives.

    .. math::
        \text{out:} \quad \frac{1}{|P(i)|}\sum_{p \in P(i)} -\log\frac{e^{S_{ip}}}{\sum_{j \ne i} e^{S_{ij}}}
        \qquad
        \text{in:} \quad -\log\frac{\sum_{p \in P(i)} e^{S_{ip}}}{\sum_{j \ne i} e^{S_{ij}}}

    averaged over the rows that have a positive, with :math:`S` the cosines over the temperature.

    Args:
        embeddings: Shape (n, d); the rows are divided by their length.
        labels: Integers of shape (n,).
        temperature: Divides the cosines.
        multi_positive: ``"out"`` averages the positives outside the logarithm (the SupCon paper's choice), ``"in"``
            sums them inside it (what SimCLR forks compute when labels are passed as indexes).
        impl: How the similarity matrix is reduced.

    Returns:
        A scalar in fp32 (fp64 for fp64 inputs); 0 where no row has a positive.

    Raises:
        ValueError: If shapes do not fit, the batch is empty, the temperature is not above 0 or the form is unknown.

    Example:
        >>> import torch
        >>> from ssl_heads.functional import sup_con
        >>> round(sup_con(torch.eye(4), torch.tensor([0, 0, 1, 1]), temperature=1.0).item(), 4)
        1.0986
    """
    _check.rows("embeddings", embeddings)
    _check.integers("labels", labels, len(embeddings), "embeddings", embeddings)
    _check.positive("temperature", temperature)
    _check.choice("multi_positive", multi_positive, ("out", "in"))
    u = unit_rows(embeddings, normalize=True)
    scale = 1 / temperature
    loss, has_positive = (_positives_outside if multi_positive == "out" else _positives_inside)(u, labels, scale, impl)
    return torch.where(has_positive, loss, 0).sum() / has_positive.sum().clamp_min(1)


def _positives_outside(u: Tensor, labels: Tensor, scale: float | Tensor, impl: Impl) -> tuple[Tensor, Tensor]:
    """The mean positive logit is a row dot with the class's sum, so only the denominator needs the matrix."""
    n = len(u)
    group = group_index(labels)
    class_sum = torch.zeros_like(u).index_add(0, group, u)[group]
    positives = torch.zeros_like(u[:, 0]).index_add(0, group, torch.ones_like(u[:, 0]))[group] - 1
    mean_positive = row_dots(u, class_sum - u) / positives.clamp_min(1) * scale
    bound = cosine_bound(scale, normalize=True)
    log_sum = similarity.self_log_sum_exp(u, scale, exclusion=Exclusion.diagonal(n, n), bound=bound, impl=impl)
    return log_sum - mean_positive, positives > 0


def _positives_inside(u: Tensor, labels: Tensor, scale: float | Tensor, impl: Impl) -> tuple[Tensor, Tensor]:
    bound = cosine_bound(scale, normalize=True)
    others = Exclusion.equal_ids(labels)
    same = Exclusion.diagonal(len(u), len(u))._replace(query_ids=labels, key_ids=labels, keep_equal=True)
    negative = similarity.self_log_sum_exp(u, scale, exclusion=others, bound=bound, impl=impl)
    positive = similarity.self_log_sum_exp(u, scale, exclusion=same, bound=bound, impl=impl)
    has_positive = positive > -torch.inf
    return against_negatives(negative, torch.where(has_positive, positive, 0)), has_positive


def group_index(labels: Tensor) -> Tensor:
    """Labels renumbered from 0 in the order of their values, with no output whose shape depends on the data."""
    ordered, order = labels.sort()
    rank = torch.zeros_like(order)
    rank[1:] = (ordered[1:] != ordered[:-1]).long().cumsum(0)
    return torch.zeros_like(order).scatter(0, order, rank)
