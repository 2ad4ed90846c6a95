"""Starting a module anew: what every `reset_parameters` shares."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def reset_parts(module: nn.Module) -> None:
    """Start the parts of a module anew, each by its own `reset_parameters`."""
    for part in module.children():
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()
        else:
            reset_parts(part)


@torch.no_grad()
def copy_start(state: Tensor, given: Tensor, name: str) -> None:
    """Write into a parameter or buffer what the constructor was given."""
    if given.is_meta and not state.is_meta:
        raise ValueError(
            f"{name} given on the meta device has no values to start from: load a state_dict, or give one with values"
        )
    state.copy_(given)
