"""What all losses declare, and what those share that compare rows of several ranks."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn
from typing_extensions import Self

from ssl_heads._start import reset_parts
from ssl_heads.distributed import Gather, check_gather

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


Takes = Literal["views", "labels", "towers"]


class Loss(nn.Module):
    """A loss that says what it is called with, so that an adapter need not know its name.

    Attributes:
        takes: ``"views"`` for ``loss(z0, z1)``, ``"labels"`` for ``loss(embeddings, labels)``, ``"towers"`` for
            open_clip's ``loss(image_features, text_features, logit_scale, logit_bias)``.
    """

    takes: ClassVar[Takes]

    def __init_subclass__(cls) -> None:
        """A class that can be called says what with."""
        super().__init_subclass__()
        if "forward" in cls.__dict__ and not hasattr(cls, "takes"):
            raise TypeError(f'{cls.__name__} must declare what it takes: takes = "views", "labels" or "towers"')

    def named_terms(self, *tensors: Tensor, temperature: float | Tensor | None = None) -> dict[str, Tensor]:
        """Named terms whose sum is the loss; a temperature takes the place of the loss's own in this call."""
        return {"contrastive_loss": self(*tensors, **({} if temperature is None else {"temperature": temperature}))}


class GatheringLoss(Loss):
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

    def reset_parameters(self) -> None:
        """Start what the parts of the loss have learned anew."""
        reset_parts(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy that talks to the same ranks: a process group can be shared, not copied."""
        duplicate = self.__class__.__new__(self.__class__)
        memo[id(self)] = duplicate
        memo[id(self.group)] = self.group
        duplicate.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return duplicate
