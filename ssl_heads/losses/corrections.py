"""Corrections: what the dissimilarity cannot say about the marginals, (n, d) -> (n,)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ssl_heads import _check
from ssl_heads._start import reset_parts
from ssl_heads.similarity import promote


class ScalarCorrection(nn.Module):
    """One learned number: the least that ``nce``, ``scl`` and ``nwj`` need, since a ratio must be able to exceed 1.

    It starts from data: the first training step of `DeltaContrast` sets it so that the median D of the batch is 0. A
    model that is loaded keeps what it had.

    Example:
        >>> ScalarCorrection()(torch.randn(5, 3))
        tensor([0., 0., 0., 0., 0.], grad_fn=<ExpandBackward0>)
    """

    started: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))
        self.register_buffer("started", torch.zeros(1, dtype=torch.bool))
        self._has_started = False  # the same on the host, where looking is free

    @property
    def awaits_start(self) -> bool:
        """Whether no data has been seen."""
        return not self._has_started

    @torch.no_grad()
    def start_at(self, value: Tensor) -> None:
        """Set the number, once."""
        self.value.copy_(value.reshape(1))
        self.started.fill_(True)
        self._has_started = True

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Back to zero, before any data."""
        self.value.zero_()
        self.started.fill_(False)
        self._has_started = False

    def forward(self, z: Tensor) -> Tensor:
        """Embeddings of shape (n, d) to the number, n times."""
        return promote(self.value).expand(len(z))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._has_started = bool(self.started)


class MLPCorrection(nn.Module):
    """A learned function of the embedding: for marginals that are not uniform, and for bounded latents.

    The published method has one such network a side. Gradients flow through the embedding. It starts from data as
    `ScalarCorrection` does, by its last bias.

    Args:
        dim: Width of the embeddings.
        hidden: Widths of the hidden layers.

    Raises:
        ValueError: If a width is below 1.

    Example:
        >>> MLPCorrection(3)(torch.randn(5, 3)).shape
        torch.Size([5])
    """

    def __init__(self, dim: int, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        if not isinstance(hidden, Sequence):
            raise ValueError(f"hidden must be a list of widths, got {hidden!r}")
        if min([_check.integer("dim", dim), *(_check.integer("a hidden width", width) for width in hidden)]) < 1:
            raise ValueError(f"widths must be at least 1, got dim={dim} and hidden={tuple(hidden)}")
        widths = [dim, *hidden]
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            layers += [nn.Linear(wide, narrow), nn.LeakyReLU(0.01)]
        self.body = nn.Sequential(*layers)
        self.slope = nn.Linear(widths[-1], 1, bias=False)
        self.offset = ScalarCorrection()

    @property
    def awaits_start(self) -> bool:
        """Whether no data has been seen."""
        return self.offset.awaits_start

    def start_at(self, value: Tensor) -> None:
        """Set the constant part, once."""
        self.offset.start_at(value)

    def reset_parameters(self) -> None:
        """Draw the network anew, before any data."""
        reset_parts(self)

    def forward(self, z: Tensor) -> Tensor:
        """Embeddings of shape (n, d) to one number a row."""
        values: Tensor = self.slope(self.body(z.to(self.slope.weight.dtype))).squeeze(1)
        offset: Tensor = self.offset(z)
        return promote(values) + offset


class KnownLogDensity(nn.Module):
    """A correction that is known: with uniform noise volume, the log-density of the positives' marginal.

    Args:
        log_density: A function of embeddings (n, d) that gives (n,).

    Example:
        >>> standard_normal = KnownLogDensity(lambda w: -w.square().sum(1) / 2)
        >>> standard_normal(torch.ones(2, 4))
        tensor([-2., -2.])
    """

    def __init__(self, log_density: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.log_density = log_density

    def forward(self, z: Tensor) -> Tensor:
        """Embeddings of shape (n, d) to one number a row."""
        return self.log_density(z)
