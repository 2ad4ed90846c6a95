"""Every loss as its paper writes it: float64, one loop over rows, one over columns, no trick of ours.

Each oracle is differentiable, so that it gives the gradient too.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cells(matrix: Tensor) -> list[list[Tensor]]:
    """A matrix as a table of scalars that autograd follows."""
    return [list(row.unbind()) for row in matrix.unbind()]


def unit(x: Tensor) -> Tensor:
    """Rows of length one; a zero row stays zero and gets no gradient."""
    rows = []
    for row in x.double().unbind():
        length = row.norm() if float(row.detach().norm()) > 0 else torch.inf
        rows.append(row / length)
    return torch.stack(rows)


def belong(a: int | Tensor, b: int | Tensor) -> bool:
    """Whether two ids or labels say that their rows belong together; -1 says nothing."""
    return int(a) == int(b) != -1


def cross_entropy(positive: Tensor, others: list[Tensor]) -> Tensor:
    """``-log(e^p / (e^p + sum e^o))``."""
    return torch.logsumexp(torch.stack([positive, *others]), 0) - positive


def mean(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).sum() / len(terms)


def mean_square(terms: list[Tensor]) -> Tensor | float:
    return torch.stack(terms).square().sum() / len(terms) if terms else 0.0


def _nt_xent(u: Tensor, importance: Tensor, temperature: float | Tensor, ids: list[int]) -> Tensor:
    n = len(u) // 2
    s = cells((u * importance) @ u.T / temperature)
    losses = []
    for i in range(2 * n):
        negatives = []
        for j in range(2 * n):
            same_sample = i % n == j % n
            if not same_sample and not belong(ids[i % n], ids[j % n]):
                negatives.append(s[i][j])
        losses.append(cross_entropy(s[i][(i + n) % (2 * n)], negatives))
    return mean(losses)


def nt_xent(
    z0: Tensor,
    z1: Tensor,
    temperature: float | Tensor = 0.2,
    *,
    ids: Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    z = torch.cat([z0, z1]).double()
    u = unit(z) if normalize else z
    return _nt_xent(u, torch.ones_like(u[0]), temperature, list(range(len(z0))) if ids is None else ids.tolist())


def info_nce(
    query: Tensor,
    key: Tensor,
    queue: Tensor | None = None,
    temperature: float = 0.2,
    ids: Tensor | None = None,
    queue_ids: Tensor | None = None,
) -> Tensor:
    q, k = unit(query), unit(key)
    s = cells(q @ k.T / temperature)
    to_queue = None if queue is None else cells(q @ unit(queue.detach()).T / temperature)
    losses = []
    for i in range(len(q)):
        if to_queue is not None:
            negatives = [x for c, x in enumerate(to_queue[i]) if ids is None or not belong(ids[i], queue_ids[c])]
        else:
            negatives = [s[i][j] for j in range(len(k)) if j != i and (ids is None or not belong(ids[i], ids[j]))]
        losses.append(cross_entropy(s[i][i], negatives))
    return mean(losses)


def _both_directions(s: list[list[Tensor]]) -> Tensor:
    n = len(s)
    rows, columns = [], []
    for i in range(n):
        rows.append(cross_entropy(s[i][i], [s[i][j] for j in range(n) if j != i]))
        columns.append(cross_entropy(s[i][i], [s[j][i] for j in range(n) if j != i]))
    return (mean(rows) + mean(columns)) / 2


def clip(image_features: Tensor, text_features: Tensor, logit_scale: Tensor | float) -> Tensor:
    return _both_directions(cells(logit_scale * image_features.double() @ text_features.double().T))


def siglip(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | float
) -> Tensor:
    s = cells(logit_scale * image_features.double() @ text_features.double().T + logit_bias)
    n = len(s)
    terms = []
    for i in range(n):
        for j in range(n):
            sign = 1 if i == j else -1
            terms.append(-sign * s[i][j])
    return torch.nn.functional.softplus(torch.stack(terms), threshold=50).sum() / n


def sup_con(embeddings: Tensor, labels: Tensor, temperature: float = 0.1, *, multi_positive: str = "out") -> Tensor:
    u = unit(embeddings)
    y = labels.tolist()
    s = cells(u @ u.T / temperature)
    n = len(u)
    losses = []
    for i in range(n):
        everyone = [s[i][j] for j in range(n) if j != i]
        positives = [s[i][j] for j in range(n) if j != i and belong(y[i], y[j])]
        if not positives:
            continue
        denominator = torch.logsumexp(torch.stack(everyone), 0)
        if multi_positive == "out":
            losses.append(mean([denominator - p for p in positives]))
        else:
            losses.append(denominator - torch.logsumexp(torch.stack(positives), 0))
    return mean(losses) if losses else embeddings.double().sum() * 0


def _spectral(u: Tensor, importance: Tensor) -> Tensor:
    n = len(u) // 2
    s = cells((u * importance) @ u.T)
    positives, negatives = [], []
    for i in range(2 * n):
        for j in range(2 * n):
            if i != j and i % n == j % n:
                positives.append(s[i][j])
            elif i != j:
                negatives.append(s[i][j])
    return -2 * mean(positives) + mean_square(negatives)


def spectral(z0: Tensor, z1: Tensor, *, normalize: bool = True) -> Tensor:
    z = torch.cat([z0, z1]).double()
    u = unit(z) if normalize else z
    return _spectral(u, torch.ones_like(u[0]))


def decorrelation(z: Tensor, *, normalize: bool = True) -> Tensor:
    n, d = z.shape
    v = unit(z) * d**0.5 if normalize else z.double()
    columns = list(v.unbind(1))
    terms = []
    for a in range(d):
        for b in range(d):
            correlation = (columns[a] * columns[b]).sum() / n
            terms.append((correlation - (1.0 if a == b else 0.0)) ** 2)
    return torch.stack(terms).sum() / d


def tri_factor(z0: Tensor, z1: Tensor, importance: Tensor, temperature: float = 0.2) -> Tensor:
    return _nt_xent(unit(torch.cat([z0, z1])), importance, temperature, list(range(len(z0))))


def tri_factor_spectral(z0: Tensor, z1: Tensor, importance: Tensor) -> Tensor:
    return _spectral(unit(torch.cat([z0, z1])), importance)


def tri_factor_two_towers(z0: Tensor, z1: Tensor, importance: Tensor, temperature: float = 0.2) -> Tensor:
    return _both_directions(cells((unit(z0) * importance) @ unit(z1).T / temperature))


def tri_factor_spectral_two_towers(z0: Tensor, z1: Tensor, importance: Tensor) -> Tensor:
    s = cells((unit(z0) * importance) @ unit(z1).T)
    n = len(s)
    positives, negatives = [], []
    for i in range(n):
        for j in range(n):
            if i == j:
                positives.append(s[i][j])
            else:
                negatives.append(s[i][j])
    return -2 * mean(positives) + mean_square(negatives)


def nonneg_cross_entropy(features: Tensor, weight: Tensor, labels: Tensor, *, nonneg_weight: bool = True) -> Tensor:
    """The weight enters through a ReLU whose derivative is that of GELU."""
    w = weight.double()
    if nonneg_weight:
        surrogate = torch.nn.functional.gelu(w)
        w = surrogate - surrogate.detach() + w.detach().clamp_min(0)
    logits = cells(features.double() @ w.T)
    losses = []
    for i, y in enumerate(labels.tolist()):
        if y == -1:
            continue
        losses.append(cross_entropy(logits[i][y], [logits[i][c] for c in range(len(w)) if c != y]))
    return mean(losses) if losses else features.double().sum() * 0
