"""Bernoulli gates and their divergence from a sparse prior."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ssl_heads import _check
from ssl_heads._modes import is_traced, one_node
from ssl_heads._numerics import at_least_float32


@one_node
def soft_gate(logits: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    r"""Open each gate by its probability, :math:`p = \sigma(a / T)`.

    Args:
        logits: :math:`a`, any shape.
        temperature: :math:`T > 0`.

    Returns:
        Tensor like `logits`, in [0, 1].

    Raises:
        ValueError: If `temperature` is not positive.

    Example:
        >>> soft_gate(torch.zeros(2))
        tensor([0.5000, 0.5000])
    """
    temperature = _check.positive("temperature", temperature)
    return torch.sigmoid(at_least_float32(logits) / temperature).to(logits.dtype)


@one_node
def straight_through_gate(logits: Tensor, threshold: float = 0.5, temperature: float | Tensor = 1.0) -> Tensor:
    r"""Open a gate when its probability exceeds a threshold; differentiate as if the gate were the probability.

    .. math:: m = 1[p > t], \qquad \partial m / \partial a := p (1 - p) / T, \qquad p = \sigma(a / T)

    The decision is taken in float32 (float64 stays), so it is the same for half-precision logits. The output is exactly
    0 or 1.

    Args:
        logits: :math:`a`, any shape.
        threshold: :math:`t` in (0, 1).
        temperature: :math:`T > 0`.

    Returns:
        Tensor like `logits` of zeros and ones.

    Raises:
        ValueError: If `threshold` or `temperature` is out of range.

    Reference:
        BayesNCL, straight-through estimator.

    Example:
        >>> straight_through_gate(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([0., 0., 1.])
    """
    threshold = _check.fraction("threshold", threshold)
    temperature = _check.positive("temperature", temperature)
    probability = torch.sigmoid(at_least_float32(logits) / temperature)
    hard = (probability > threshold).to(probability.dtype)
    # (p - p) is exactly zero, so the sum is exactly the hard gate.
    return (hard + (probability - probability.detach())).to(logits.dtype)


@one_node
def concrete_gate(logits: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    r"""Draw a relaxed Bernoulli gate (binary concrete), differentiable in its logits.

    .. math:: m = \sigma\bigl((a + \log u - \log(1 - u)) / T\bigr), \qquad u \sim \mathrm{Uniform}(0, 1)

    The noise is logistic, so :math:`P(m > 1/2) = \sigma(a)` at every temperature, one half at logit 0. (A single Gumbel
    draw in its place would open 63 % of the gates there.)

    Args:
        logits: :math:`a`, any shape.
        temperature: :math:`T > 0`; the lower, the closer to zero and one.

    Returns:
        Tensor like `logits`, in [0, 1].

    Raises:
        ValueError: If `temperature` is not positive.

    Reference:
        BayesNCL, relaxed estimator; Maddison et al., The Concrete Distribution (2017).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> bool(((concrete_gate(torch.zeros(10_000)) > 0.5).float().mean() - 0.5).abs() < 0.02)
        True
    """
    temperature = _check.positive("temperature", temperature)
    a = at_least_float32(logits)
    logistic = torch.logit(torch.rand_like(a), eps=1e-7)
    return torch.sigmoid((a + logistic) / temperature).to(logits.dtype)


@one_node
def bernoulli_kl(logits: Tensor, prior: float) -> Tensor:
    r"""KL divergence of Bernoulli gates from their prior: the mean over rows of the sum over dimensions.

    .. math::
        \mathrm{KL} = p \log\frac{p}{r} + (1 - p) \log\frac{1 - p}{1 - r}, \qquad p = \sigma(a), \qquad
        \frac{\partial \mathrm{KL}}{\partial a} = p (1 - p) (a - \operatorname{logit} r)

    Written in the smaller of the two probabilities, so that nothing is clamped and nothing cancels: the value is finite
    for every finite logit, and the gradient of a saturated gate keeps its relative accuracy on both sides until
    :math:`e^{-|a|}` underflows. (Clamping p to [0.01, 0.99] instead gives no pull at all beyond :math:`|a| = 4.6`.)

    A prior below one half closes gates; a prior above it opens them.

    Args:
        logits: Logits `a` of shape (..., d); divide by the gate's temperature first.
        prior: :math:`r` in (0, 1), the probability that a gate is open.

    Returns:
        Scalar, float32 (float64 for float64 logits); 0 for an empty batch.

    Raises:
        ValueError: If `prior` is out of range or `logits` has no dimension.

    Reference:
        BayesNCL, the KL term of the evidence bound.

    Example:
        >>> bernoulli_kl(torch.zeros(4, 3), prior=0.5)
        tensor(0.)
    """
    prior = _check.fraction("prior", prior)
    if logits.dim() == 0:
        raise ValueError("bernoulli_kl takes logits (..., d), got a scalar")
    a = at_least_float32(logits)
    is_open = a >= 0
    # u = min(p, 1 - p). On the open side KL = log(1 - u) - log r - u (a - logit r), and likewise on the other.
    smaller = torch.where(is_open, -a, a)
    distance = a - math.log(prior / (1 - prior))
    log_prior = torch.where(is_open, a.new_full((), math.log(prior)), a.new_full((), math.log1p(-prior)))
    kl = -softplus(smaller) - log_prior + torch.sigmoid(smaller) * torch.where(is_open, -distance, distance)
    if is_traced():
        # A trace serves any number of rows, so none is written into it; the mean of an empty batch is NaN there.
        return kl.sum(dim=-1).mean()
    return kl.sum() / max(math.prod(logits.shape[:-1]), 1)
