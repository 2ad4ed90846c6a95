"""Parameters that FSDP2 has sharded."""

from __future__ import annotations

import sys

from torch import Tensor


def full_parameter(parameter: Tensor) -> Tensor:
    """A parameter with its shards of all ranks, for a loss that reads it outside of the forward pass of its model.

    FSDP2 shards the parameter again after that pass. The gradient is the mean over the ranks, as for other parameters.
    """
    tensors = sys.modules.get("torch.distributed.tensor")  # in memory where parameters are sharded
    if tensors is None or not isinstance(parameter, tensors.DTensor):
        return parameter
    averaged = [tensors.Partial("avg")] * parameter.device_mesh.ndim
    full: Tensor = parameter.full_tensor(grad_placements=averaged)
    return full
