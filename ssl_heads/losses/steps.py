"""The number of optimiser steps, for warnings after many of them."""

from __future__ import annotations

from functools import cache

from torch.optim.optimizer import register_optimizer_step_post_hook


class _Counter:
    """The steps that all optimisers of this process have taken since it was made."""

    def __init__(self) -> None:
        self.taken = 0
        register_optimizer_step_post_hook(self._count)

    def _count(self, *_: object) -> None:
        self.taken += 1


_counter = cache(_Counter)  # created at the first call, so that importing registers no hook


def optimizer_steps() -> int:
    """The steps of all optimisers so far; batches of gradient accumulation without a step do not count."""
    return _counter().taken
