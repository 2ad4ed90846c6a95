"""Corrections, (n, d) -> (n,): the part of a log density ratio that comes from the marginals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ssl_heads import _check
from ssl_heads._numerics import promote
from ssl_heads._start import reset_parts


class ScalarCorrection(nn.Module):
    """One learned number: the least that ``"nce"``, ``"scl"`` and ``"nwj"`` need, whose ratio must be able to exceed 1.

    The number starts from data: the first training step of `DeltaContrast` on a finite batch sets it so that the median
    D of the batch is 0. The buffer `started` alone decides: a copy of the number copies the buffer too, as a
    `state_dict`, DistributedDataParallel and a deep copy do, and a number that was loaded or trained stays. A frozen
    number (`requires_grad_(False)`) is left as it is; torch.func and forward mode, which may write nothing, start
    nothing. A copy of the parameters alone, as some moving averages make, must copy `started` too.

    Example:
        >>> ScalarCorrection()(torch.randn(5, 3))
        tensor([0., 0., 0., 0., 0.], grad_fn=<RepeatBackward0>)
    """

    started: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))
        self.register_buffer("started", torch.zeros(1))  # a float, so that moving averages of buffers take it

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Back to zero, to be started from data again."""
        self.value.zero_()
        self.started.zero_()

    @property
    def awaits_start(self) -> bool:
        """Whether the number has yet to start from data; on a GPU the read waits for the device."""
        return not bool(self.started > 0)

    @torch.no_grad()
    def start_at(self, value: Tensor) -> None:
        """Set the number, once and to a finite one; the comparison stays on the device."""
        value = value.to(self.value.dtype)  # an overflow to infinity is not finite
        starts = (self.started == 0) & value.isfinite()
        self.value.copy_(torch.where(starts, value, self.value))
        self.started.masked_fill_(starts, 1)

    def forward(self, z: Tensor) -> Tensor:
        """Embeddings of shape (n, d) to the number, n times."""
        return promote(self.value).repeat(len(z))  # no view: the number is written in place

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if prefix + "value" in state_dict and prefix + "started" not in state_dict:
            # A loaded number counts as started. load_state_dict(assign=True) leaves `started` on the meta device.
            if self.started.is_meta:
                self.started = torch.ones_like(self.value, requires_grad=False)
            self.started.fill_(1)


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
        """Whether the number has yet to start from data; on a GPU the read waits for the device."""
        return self.offset.awaits_start

    def start_at(self, value: Tensor) -> None:
        """Set the constant part, once and to a finite number."""
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
