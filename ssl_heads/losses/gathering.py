"""What all losses share that compare rows of several ranks."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import nn
from typing_extensions import Self

from ssl_heads.distributed import Gather, check_gather

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class GatheringLoss(nn.Module):
    """A loss over the rows of this rank or of all ranks, see `ssl_heads.distributed`.

    Args:
        gather: Whose rows are compared: ``"none"`` this rank's, ``"all"`` or ``"ring"`` those of all ranks.
        group: The ranks that hold the batch; None is the default group, looked up in each call.

    Raises:
        ValueError: If the way of gathering is unknown.
    """

    def __init__(self, gather: Gather, group: ProcessGroup | None) -> None:
        super().__init__()
        check_gather(gather)
        self.gather, self.group = gather, group

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy that talks to the same ranks: a process group can be shared, not copied."""
        duplicate = self.__class__.__new__(self.__class__)
        memo[id(self)] = duplicate
        memo[id(self.group)] = self.group
        duplicate.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return duplicate
