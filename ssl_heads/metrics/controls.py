"""Controls: what the same numbers say about codes that have learned nothing."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssl_heads._check import positive
from ssl_heads.metrics._inputs import ArrayLike, finite, same_samples
from ssl_heads.metrics._rows import CHUNK, EPS
from ssl_heads.metrics.sparsity import l0


class Controls(NamedTuple):
    """The result of `controls`: each measure by its name.

    Attributes:
        trained: Of the given features.
        untrained: Of the untrained head, at the L0 of the given features.
        random: Of random codes, at the L0 of each row.
    """

    trained: dict[str, float]
    untrained: dict[str, float]
    random: dict[str, float]


@torch.no_grad()
def controls(
    measures: Mapping[str, Callable[[Tensor], float]],
    features: ArrayLike,
    untrained: ArrayLike,
    *,
    eps: float = EPS,
    seed: int = 0,
) -> Controls:
    r"""The same numbers for features, for an untrained head and for random codes, at equal L0.

    A number that an untrained head reaches says nothing about training: class consistency and monosemanticity of an
    untrained sparse code of good features equal those of a trained one. And sparser codes score higher in most numbers,
    so the controls are as sparse as what they stand beside:

    - of an untrained row the entries of largest magnitude are kept, as many as :math:`L_0` of the features, rounded;
    - a random row is the row of the features with its entries in random places, so that L0 and all values are the same.

    Args:
        measures: Functions of a matrix (n, d), such as `lambda z: class_consistency(z, y).chance_corrected`, by name.
        features: Shape (n, d), of the trained head.
        untrained: Shape (n, e), of an untrained head and the same samples; see `untrained_copy`.
        eps: Magnitude of a normalised entry above which a dimension is active.
        seed: Seed of the random codes.

    Returns:
        With NaN or infinity in either matrix every number is NaN.

    Raises:
        ValueError: If the numbers of rows differ, or `eps` is not positive.

    Reference:
        Random directions reach the scores of trained sparse autoencoders: arXiv 2602.14111 (2026), and arXiv 2606.24716
        (ECCV 2026).

    Example:
        >>> from ssl_heads.metrics import hoyer, orthogonality
        >>> z = torch.eye(6).repeat(20, 1)
        >>> found = controls({"hoyer": hoyer, "orthogonality": orthogonality}, z, torch.randn(120, 6))
        >>> found.trained["hoyer"] == found.random["hoyer"], found.trained["orthogonality"]
        (True, 0.0)
    """
    x, y = same_samples("features", features, "untrained", untrained)
    positive("eps", eps)
    if not finite(x, y):
        unknown = dict.fromkeys(measures, math.nan)
        return Controls(unknown, dict(unknown), dict(unknown))
    arms = (x, _largest(y, max(round(l0(x, eps)), 1)), random_codes(x, seed))
    trained, of_untrained, random = ({name: float(f(z)) for name, f in measures.items()} for z in arms)
    return Controls(trained, of_untrained, random)


def untrained_copy(module: nn.Module, seed: int = 0) -> nn.Module:
    r"""A copy of a head or a network with new random parameters, for the controls.

    Every part starts anew by its own `reset_parameters`, from the given seed; the module and the global random numbers
    stay as they are. Batch norm's statistics start anew too: run some batches in training mode before evaluation.

    Args:
        module: A module whose parts that hold parameters have `reset_parameters`, as torch's and those here.
        seed: Seed of the new parameters.

    Raises:
        ValueError: If a part holds parameters and has no `reset_parameters`.

    Example:
        >>> head = torch.nn.Linear(4, 2)
        >>> bool((untrained_copy(head).weight == head.weight).any())
        False
    """
    copied = copy.deepcopy(module)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, part in copied.named_modules():
            # torch's attention has a private one
            reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
            if callable(reset):
                reset()
            elif next(part.parameters(recurse=False), None) is not None:
                owner = f"{type(part).__name__} {name}".strip()
                raise ValueError(f"{owner} holds parameters and has no reset_parameters to start them anew")
    return copied


def _largest(x: Tensor, count: int) -> Tensor:
    """Rows with all but their largest magnitudes set to zero."""
    kept = x.abs().topk(min(count, x.shape[1]), dim=1).indices
    return torch.zeros_like(x).scatter(1, kept, x.gather(1, kept))


def random_codes(x: Tensor, seed: int = 0) -> Tensor:
    """Rows with their own entries in random places, drawn for each row: equally sparse, without meaning."""
    generator = torch.Generator("cpu").manual_seed(seed)
    codes = torch.empty_like(x)
    for part, into in zip(torch.split(x, CHUNK), torch.split(codes, CHUNK), strict=True):
        places = torch.rand(part.shape, generator=generator, device="cpu").argsort(dim=1)
        into.copy_(part.gather(1, places.to(x.device)))
    return codes
