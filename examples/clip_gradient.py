"""The gradient of a loss over a large batch with the activations of one micro-batch in memory: cached embeddings.

Features of all micro-batches without a graph; the loss, and its gradient at the features, over the whole batch; then
every micro-batch once more, with a graph, and the gradient that was kept for it. Heads lie on the loss's side: they
are small, and their batch statistics are those of the whole batch. (Gao et al. 2021, Scaling deep contrastive
learning batch size under memory limited setup.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Precision:
    """Makes the autocast context of a pass.

    Each pass enters its own: a weight that a pass without gradient has cast would be taken from autocast's cache by the
    next, and get no gradient.
    """

    def __init__(self, device: str, name: str) -> None:
        self.device = torch.device(device).type
        self.dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        if self.dtype is torch.float16 and self.device != "cuda":
            raise ValueError(f"--precision fp16 needs a CUDA device, got {device}; bf16 runs everywhere")
        self.scaler = torch.amp.GradScaler(self.device, enabled=self.dtype is torch.float16)

    def __call__(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, self.dtype, enabled=self.dtype is not None)


@contextmanager
def replayed(state: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    """Random numbers as they came after `state`; afterwards they go on as if nothing had happened."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], device)
        yield


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def backward(
    towers: tuple[nn.Module, nn.Module],
    inputs: tuple[Tensor, Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    micro_batch: int,
    precision: Precision,
) -> Tensor:
    """Add the gradient of `loss(towers[0](inputs[0]), towers[1](inputs[1]))` to all parameters; returns the loss."""
    parts = [x.split(micro_batch) for x in inputs]
    states: list[list[tuple[Tensor, Tensor | None]]] = [[], []]
    features = []
    for tower, split, before in zip(towers, parts, states, strict=True):
        rows = []
        for part in split:
            before.append(random_state(part.device))  # dropout must fall on the same units again
            with torch.no_grad(), precision():
                rows.append(tower(part))
        features.append(torch.cat(rows).requires_grad_())
    with precision():
        value = loss(*features)
    precision.scaler.scale(value).backward()

    for tower, split, before, whole in zip(towers, parts, states, features, strict=True):
        if whole.grad is None or not any(p.requires_grad for p in tower.parameters()):
            continue
        for part, state, gradient in zip(split, before, whole.grad.split(micro_batch), strict=True):
            with replayed(state, part.device):
                with precision():
                    rows_again = tower(part)
                rows_again.backward(gradient)
    return value.detach()
