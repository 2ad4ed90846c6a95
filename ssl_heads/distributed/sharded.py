"""Parameters that FSDP2 has sharded."""

from __future__ import annotations

import sys

from torch import Tensor


def whole(parameter: Tensor) -> Tensor:
    """All of a parameter, for a loss that reads it outside of the forward pass of its model.

    There FSDP2 has sharded it again. Its gradient becomes the mean over the ranks, as that of the others does.
    """
    tensors = sys.modules.get("torch.distributed.tensor")  # what is sharded has imported it
    if tensors is None or not isinstance(parameter, tensors.DTensor):
        return parameter
    averaged = [tensors.Partial("avg")] * parameter.device_mesh.ndim
    full: Tensor = parameter.full_tensor(grad_placements=averaged)
    return full
