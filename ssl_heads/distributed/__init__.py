r"""One batch that is spread over processes: value and gradients equal one process on the whole batch.

The contract. N rows lie on W ranks, in rank order. Each rank returns

.. math:: L_r = \frac{W}{N} \sum_{i \in r} l_i,

which is the mean over its own rows where all ranks hold equally many; the mean of :math:`L_r` over ranks is the loss of
the whole batch. The backward of every collective here is its adjoint, so the gradient that reaches a parameter on all
ranks together is that of :math:`\sum_r L_r`, and the mean that DistributedDataParallel takes is the gradient of the
loss of the whole batch. This holds for features, temperatures, scales, biases and importances alike.

Whose rows a loss compares is its `gather`, and the ranks that hold the batch are its `group`, None for the default one:

- ``"none"``: those of this rank. Nothing is sent.
- ``"all"``: those of all ranks. Every rank gathers the keys once and compares its own rows with all columns. Memory
  O(N d).
- ``"ring"``: those of all ranks. Keys travel from rank to rank, and the next block arrives while this one is compared.
  Memory O(N d / W); the backward sends the keys round once more, and their gradients after them.

Losses through moments exchange one d x d matrix for ``"all"`` and ``"ring"`` alike.

Rank and size are read from the group in each call. Without a process group, or with one rank, nothing is sent.
"""

from __future__ import annotations

from ssl_heads.distributed.agreement import world_size
from ssl_heads.distributed.collectives import all_gather_rows, all_reduce_sum
from ssl_heads.distributed.reductions import (
    class_sum,
    distance_from_identity,
    log_sum_exp,
    self_log_sum_exp,
    softplus_sum,
    square_sum,
    weighted_square_sum,
)
from ssl_heads.distributed.shard import GATHERS, Gather, Pairs, Shard

__all__ = [
    "GATHERS",
    "Gather",
    "Pairs",
    "Shard",
    "all_gather_rows",
    "all_reduce_sum",
    "class_sum",
    "distance_from_identity",
    "log_sum_exp",
    "self_log_sum_exp",
    "softplus_sum",
    "square_sum",
    "weighted_square_sum",
    "world_size",
]
