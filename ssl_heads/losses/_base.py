"""The base classes of losses: declarations, and the configuration that losses share."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from torch import Tensor, nn
from typing_extensions import Self

from ssl_heads import _check
from ssl_heads._start import reset_parts
from ssl_heads.distributed import GATHERS, Gather
from ssl_heads.similarity import IMPLS, Impl

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


Takes = Literal["views", "labels", "towers"]


class Loss(nn.Module):
    """A loss that declares its inputs, so that an adapter calls any loss without a list of names.

    Attributes:
        takes: ``"views"`` for `loss(z0, z1)`, ``"labels"`` for `loss(embeddings, labels)`, ``"towers"`` for open_clip's
            `loss(image_features, text_features, logit_scale, logit_bias)`.
        configuration: The attributes that the repr shows, in its order.
    """

    takes: ClassVar[Takes]
    configuration: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls) -> None:
        """Raise `TypeError` for a class with a forward that declares no inputs or no configuration."""
        super().__init_subclass__()
        if "forward" not in cls.__dict__:
            return
        if getattr(cls, "takes", None) not in get_args(Takes):
            raise TypeError(f'{cls.__name__} must declare what it takes: takes = "views", "labels" or "towers"')
        if not hasattr(cls, "configuration"):
            raise TypeError(f'{cls.__name__} must declare what its repr shows: configuration = ("temperature", ...)')

    def named_terms(self, *tensors: Tensor, temperature: float | Tensor | None = None) -> dict[str, Tensor]:
        """Named terms whose sum is the loss; a temperature takes the place of the loss's own in this call."""
        return {"contrastive_loss": self(*tensors, **({} if temperature is None else {"temperature": temperature}))}

    def extra_repr(self) -> str:
        """The configuration."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.configuration)


class GatheringLoss(Loss):
    """A loss over the rows of this rank or of all ranks.

    Args:
        gather, group: Whose rows are compared, see `ssl_heads.distributed`. The group is looked up in each call.
        impl: How the similarity matrix is reduced, see `ssl_heads.similarity.Impl`; a loss without such a matrix has no
            choice.

    Raises:
        ValueError: If the way of gathering or the implementation is unknown.
    """

    def __init__(self, gather: Gather, group: ProcessGroup | None, impl: Impl = "auto") -> None:
        super().__init__()
        _check.choice("gather", gather, GATHERS)
        _check.choice("impl", impl, IMPLS)
        self.gather, self.group, self.impl = gather, group, impl

    def reset_parameters(self) -> None:
        """Start what the parts of the loss have learned anew."""
        reset_parts(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy with the same process group, which cannot be copied."""
        duplicate = self.__class__.__new__(self.__class__)
        memo[id(self)] = duplicate
        memo[id(self.group)] = self.group
        duplicate.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return duplicate
