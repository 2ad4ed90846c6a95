"""Reductions over a similarity matrix that is never stored.

A softmax loss needs, of `S = scale * q k^T`, one log-sum-exp a row (and a column) and the positive logits. The
positives are n row dots in plain torch; the engine gives the log-sum-exp over the *negatives*, so that

    loss_i = softplus(lse_i - positive_i),    d loss_i = (1 - p_i) d(lse_i - positive_i),

where `p_i` is the probability of the positive. Both the value and the gradient keep their relative accuracy when
training succeeds and `p_i` approaches 1; `lse over all - positive` loses it.

Row and column biases are two more features: `[scale q, a, 1] @ [k, 1, b]^T`.
"""

from __future__ import annotations

from ssl_heads.similarity.dispatch import (
    IMPLS,
    Impl,
    implementation,
    kernels_run_on,
    log_sum_exp,
    refuse_transforms,
    self_log_sum_exp,
    softplus_sum,
)
from ssl_heads.similarity.exclusion import Exclusion

__all__ = [
    "IMPLS",
    "Exclusion",
    "Impl",
    "implementation",
    "kernels_run_on",
    "log_sum_exp",
    "refuse_transforms",
    "self_log_sum_exp",
    "softplus_sum",
]
