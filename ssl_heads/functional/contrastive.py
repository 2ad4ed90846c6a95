"""Softmax contrastive losses over views: SimCLR's NT-Xent, and InfoNCE with or without MoCo's queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_heads import _check, distributed, similarity
from ssl_heads._numerics import one_dtype, product_dtype
from ssl_heads.distributed import Gather, Pairs, Shard
from ssl_heads.functional import nt_xent_small
from ssl_heads.functional._softmax import (
    against_negatives,
    cosine_bound,
    inverse,
    nt_xent_of_rows,
    row_dots,
    unit_rows,
)
from ssl_heads.functional.groups import group_index
from ssl_heads.similarity import IMPLS, Exclusion, Impl

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def nt_xent(
    z0: Tensor,
    z1: Tensor,
    temperature: float | Tensor = 0.2,
    *,
    normalize: bool = True,
    ids: Tensor | None = None,
    gather: Gather = "none",
    group: ProcessGroup | None = None,
    impl: Impl = "auto",
) -> Tensor:
    r"""The loss of SimCLR: each row finds its other view among all rows of both views.

    .. math:: \frac{1}{2n}\sum_i -\log\frac{e^{u_i\cdot u_{p(i)}/T}}{\sum_{j \ne i} e^{u_i\cdot u_j/T}}

    Args:
        z0: First views, of shape (n, d).
        z1: Second views, of shape (n, d), row by row of the same samples.
        temperature: Divides the similarities.
        normalize: Whether rows are divided by their length.
        ids: Integers of shape (n,); samples with an equal id are never negatives of each other. -1 is no id: such a
            sample is a negative of all others.
        gather, group: Whose rows are compared, see `ssl_heads.distributed`.
        impl: How the similarity matrix is reduced, see `ssl_heads.similarity.Impl`.

    Returns:
        A scalar in float32 (float64 for float64 inputs). One pair has no negatives and gives 0.

    Raises:
        ValueError: If shapes differ, the batch is empty or the temperature is not above 0.

    Example:
        >>> import torch
        >>> from ssl_heads.functional import nt_xent
        >>> nt_xent(torch.eye(4), torch.eye(4), temperature=0.5).shape
        torch.Size([])
    """
    plain = impl == "auto" and normalize and ids is None and gather == "none"
    if plain and isinstance(temperature, float) and nt_xent_small.supports(z0, z1, temperature):
        return nt_xent_small.nt_xent(z0, z1, temperature)

    def checked() -> tuple[float | Tensor, Tensor | None]:
        _check.paired("z0", z0, "z1", z1)
        _check.choice("impl", impl, IMPLS)
        integers = None if ids is None else _check.integers("ids", ids, len(z0), "z0", z0)
        return inverse(_check.positive("temperature", temperature)), integers

    facts = {"call": "nt_xent", "temperature": temperature, "normalize": normalize, "ids": ids, "impl": impl}
    shard, (scale, ids) = Shard.of(gather, group, {"z0": z0, "z1": z1}, facts, checked)
    ids = None if ids is None else group_index(shard.gathered(ids))
    u = unit_rows(torch.cat([z0, z1]), normalize, impl)
    return nt_xent_of_rows(u, scale, None, ids, cosine_bound(scale, normalize), shard, product_dtype(z0, z1), impl)


def info_nce(
    query: Tensor,
    key: Tensor,
    queue: Tensor | None = None,
    temperature: float | Tensor = 0.2,
    *,
    normalize: bool = True,
    ids: Tensor | None = None,
    queue_ids: Tensor | None = None,
    gather: Gather = "none",
    group: ProcessGroup | None = None,
    impl: Impl = "auto",
) -> Tensor:
    r"""Each query finds its own key among the keys of the batch, or among the entries of a queue (MoCo).

    .. math:: \frac{1}{n}\sum_i -\log\frac{e^{q_i\cdot k_i/T}}{e^{q_i\cdot k_i/T} + \sum_{c} e^{q_i\cdot c/T}}

    where `c` runs over the other keys, or over the queue if there is one.

    Args:
        query: Shape (n, d).
        key: Shape (n, d).
        queue: Shape (K, d), or None. It gets no gradient, and is not gathered: all ranks hold the same one.
        temperature: Divides the similarities.
        normalize: Whether the rows of all three are divided by their length.
        ids: Integers of shape (n,); samples with an equal id are never negatives of each other. -1 is no id: such a
            sample is a negative of all others.
        queue_ids: Integers of shape (K,), needed with `ids` where there is a queue: an entry with the id of a query
            is no negative of it. `MemoryQueue` holds them; -1, its value for an entry without an id, is no id here too.
        gather, group: Whose rows are compared, see `ssl_heads.distributed`.
        impl: How the similarity matrix is reduced, see `ssl_heads.similarity.Impl`.

    Returns:
        A scalar in float32 (float64 for float64 inputs).

    Raises:
        ValueError: If shapes do not fit, the batch is empty or the temperature is not above 0.

    Example:
        >>> import torch
        >>> from ssl_heads.functional import info_nce
        >>> round(info_nce(torch.eye(2), torch.eye(2), temperature=1.0).item(), 4)
        0.3133
    """

    def checked() -> tuple[float | Tensor, tuple[Tensor | None, Tensor | None]]:
        _check.paired("query", query, "key", key)
        if queue is not None:
            _check.rows("queue", queue)
            _check.same_width("query", query, "queue", queue)
        _check.choice("impl", impl, IMPLS)
        return inverse(_check.positive("temperature", temperature)), integer_ids(query, ids, queue, queue_ids)

    facts: dict[str, object] = {"call": "info_nce", "temperature": temperature, "normalize": normalize, "impl": impl}
    facts.update({"ids": ids, "queue_ids": queue_ids, "shape of queue": getattr(queue, "shape", queue)})
    shard, (scale, given_ids) = Shard.of(gather, group, {"query": query, "key": key}, facts, checked)
    ids, queue_ids = numbered_ids(*given_ids, shard)
    bound, dtype = cosine_bound(scale, normalize), product_dtype(query, key)
    q, k = (unit_rows(x, normalize, impl) for x in one_dtype(query, key))
    if queue is not None:
        # The queue may be written in place before the backward pass, so the graph holds a copy.
        others = unit_rows(queue.detach() if normalize else queue.detach().clone(), normalize, impl).to(q.dtype)
        exclusion = Exclusion(query_ids=ids, key_ids=queue_ids)
        log_sum, _ = similarity.log_sum_exp(q, others, scale, exclusion=exclusion, bound=bound, dtype=dtype, impl=impl)
        if queue_ids is not None or not normalize:
            # 0 * others: a NaN in an entry that every query leaves out makes the gradient NaN, so the loss is NaN too
            log_sum = log_sum + 0 * others.sum()
    else:
        log_sum, _ = distributed.log_sum_exp(q, k, scale, Pairs(shard, ids), bound=bound, dtype=dtype, impl=impl)
    return shard.ddp_mean(against_negatives(log_sum, row_dots(q, k) * scale))


def integer_ids(
    query: Tensor, ids: Tensor | None, queue: Tensor | None, queue_ids: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The ids of the batch and of the queue in int64: both are given, or neither."""
    if (queue_ids is not None) != (ids is not None and queue is not None):
        given = {"ids": ids, "queue": queue, "queue_ids": queue_ids}
        names = " and ".join(name for name, x in given.items() if x is not None)
        raise ValueError(f"a queue takes ids and queue_ids together, and a batch without one ids alone, got {names}")
    if ids is None:
        return None, None
    ids = _check.integers("ids", ids, len(query), "query", query)
    return ids, None if queue is None else _check.integers("queue_ids", queue_ids, len(queue), "queue", queue)


def numbered_ids(ids: Tensor | None, queue_ids: Tensor | None, shard: Shard) -> tuple[Tensor | None, Tensor | None]:
    """Ids as `group_index` numbers them: of the batch of all ranks, or of the own rows and the queue together."""
    if ids is None:
        return None, None
    if queue_ids is None:
        return group_index(shard.gathered(ids)), None
    together = group_index(torch.cat([ids, queue_ids]))
    return together[: len(ids)], together[len(ids) :]
